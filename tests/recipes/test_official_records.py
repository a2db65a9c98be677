"""The sample files of TtT's publication, and a record of each kind, through recipes/ttt: answered, scored, streamed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_python import programs
from ttt.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/model"))
SAMPLES = Path(os.environ.get("TTT_SHARED", ROOT.parent / "shared")) / "official_samples"
KINDS = ("asr_tts", "audio_chat", "text_chat", "sec_aac_asc_task", "interleaved_data_en", "interleaved_data_zh")
SPEECH = "".join(f"<|audio_{n}|>" for n in (7, 7, 16383))
CHAT = {"messages": [
    {"role": "system", "content": "answer", "text_content": None},
    {"role": "user", "content": f"say<|begin_of_audio|>{SPEECH}<|end_of_audio|>", "text_content": "{{text}}"},
    {"role": "assistant", "content": f"a cat<|begin_of_quad|>{SPEECH}<|end_of_audio_span_last|>", "text_content": None},
]}  # fmt: skip
DOCUMENT = {"text": f"a cat sat <|begin_of_audio|>{SPEECH}<|end_of_audio_new|> on the mat. one two three"}
SETTINGS = ["model.attention=sdpa", "eval.max_tokens=6", "eval.limit=1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """``exp``: a run of recipes/ttt after one update, with answers to a chat of ``records.json`` in it."""
    from local_backbones import make_backbone

    folder = tmp_path_factory.mktemp("official")
    make_backbone(folder / "model", "qwen2")
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps({**config, "max_position_embeddings": 32768}))
    (folder / "records.json").write_text(json.dumps([CHAT] * 4))
    (folder / "documents.json").write_text(json.dumps([DOCUMENT]))
    done = recipe(
        folder, "--stage", "1", "--stop-stage", "2", "--model", str(folder / "model"), "--train", str(folder / "records.json"),
        "--dev", str(folder / "records.json"), "train.steps=1", "train.accumulate=1", "train.autocast=none", "data.row_tokens=64",
        "data.batch_tokens=64", "train.generate_items=1", "model.gradient_checkpointing=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def recipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "recipes/ttt/run.sh"), "--exp", str(folder / "exp"), *SETTINGS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **programs()}, timeout=280)


def card(folder: Path, name: str) -> dict:
    return json.loads((folder / f"exp/eval/{name}/card.json").read_text())["metrics"]


def test_answers_while_it_trains(world):
    last = json.loads((world / "exp/metrics.jsonl").read_text().splitlines()[-1])
    assert last["gen/chat/wer"] >= 0 and "gen/chat/judged_wer" not in last


def test_each_test_file_gets_its_own_scores(world):
    done = recipe(world, "--stage", "3", "--test", str(world / "records.json"))
    assert done.returncode == 0, done.stderr
    assert "score: no codec and no judge: of task 'chat', only the text is scored" in done.stderr
    done = recipe(world, "--stage", "3", "--test", str(world / "documents.json"))
    assert done.returncode == 0, done.stderr
    assert "documents have no answer" in done.stderr and "chrf[chrF2]" in done.stdout
    assert card(world, "records")["chat/exact_match"]["n"] == card(world, "documents")["document/chrf"]["n"] == 1


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no official samples at {SAMPLES} (set TTT_SHARED)")
@pytest.mark.parametrize("kind", KINDS)
def test_every_published_file(kind, world, capsys):
    file = SAMPLES / f"{kind}_samples.json"
    run = world / "exp"
    settings = ["--config", str(run / "config.yaml"), f"eval.examples=[{file}]", f"eval.out={run / 'eval' / file.stem}", *SETTINGS]
    for verb in ("generate", "score", "report"):
        assert main([verb, *settings]) == 0, capsys.readouterr().err
    task, metric = ("document", "chrf") if "interleaved" in kind else ("chat", "wer")
    assert card(world, file.stem)[f"{task}/{metric}"]["n"] == 1
    assert main(["stream", str(run), "--examples", str(file), "--limit", "1", "--no-sound", *SETTINGS]) == 0
    assert f"{file.name}[0]: " in capsys.readouterr().out
