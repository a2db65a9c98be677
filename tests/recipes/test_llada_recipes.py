"""recipes/llada: every configuration loads, dry-runs name the commands, the objectives are what the table says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.saved_dataset import save_to_disk
from tests.warm_python import programs
from ttt.cli.main import main
from ttt.registry import name_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/model"))
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "NNODES", "NODE_RANK", "TTT"))}
NAMES = ("pretrain", "sft", "tts", "mixed")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    """--model, --train and --exp of a tiny backbone."""
    from local_backbones import make_backbone

    folder = tmp_path_factory.mktemp("given")
    make_backbone(folder / "model", "qwen2")
    (folder / "train.jsonl").write_text('{"messages": []}\n')
    return [
        "--model", str(folder / "model"), "--train", str(folder / "train.jsonl"), "--exp", str(folder / "exp"), "--stage", "1",
        "--stop-stage", "2", "--dry-run",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_configurations_load_and_can_decode_what_they_train(name):
    from ttt.api import decode_settings
    from ttt.config.load import load_config

    config = load_config([ROOT / f"recipes/llada/conf/{name}.yaml"], ["data.text=text.jsonl"])
    settings = decode_settings(config)
    speech = name in ("tts", "mixed")
    assert settings.constraint.restricts == speech and config.eval.sampler.canvas == ("speech" if speech else "answer")
    assert config.objective.noised == {"pretrain": "answer", "sft": "answer", "tts": "speech", "mixed": "by_kind"}[name]
    assert name_of(config.objective.mask) == "full" and config.objective.min_mask_prob == 1e-3
    assert (config.train.clip_norm, config.train.weight_decay, tuple(config.train.betas)) == (1.0, 0.1, (0.9, 0.95))
    lr, steps, warmup = {"pretrain": (5e-4, 100_000, 2000), "sft": (1e-5, 10_000, 500)}.get(name, (5e-5, "???", 0))
    assert (config.train.lr, config.train.steps, config.train.warmup_steps) == (lr, steps, warmup)
    assert config.train.epochs == (10 if speech else 0)


def test_settings_that_decode_nothing_are_refused():
    from ttt.api import decode_settings
    from ttt.config.load import load_config
    from ttt.errors import ConfigError

    def settings(name, *overrides):
        return decode_settings(load_config([ROOT / f"recipes/llada/conf/{name}.yaml"], ["data.text=t", *overrides]))

    with pytest.raises(ConfigError, match="diffuses whole answers.*eval.sampler.canvas=answer"):
        settings("sft", "eval.sampler.canvas=span")
    with pytest.raises(ConfigError, match="speech alone.*eval.sampler.canvas=speech"):
        settings("tts", "eval.sampler.canvas=answer")
    with pytest.raises(ConfigError, match="objective.ends=keep never teaches where speech ends"):
        settings("tts", "objective.ends=keep")
    assert (
        settings("tts", "objective.ends=keep", "eval.length={name: fixed, last_codes: 70}").length.exact_codes(True)
        == 70
    )
    assert (
        settings("mixed", "eval.sampler.canvas=answer")
        and settings("tts", "eval.constraint=none").constraint.restricts is False
    )


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "recipes/llada/run.sh"), "--conf", name, *arguments], capture_output=True, text=True,
        env={**CLEAN, **programs()},
        timeout=200,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["pretrain", "tts"])
def test_dry_runs_name_the_commands(name, given):
    done = run(name, *given, "data.num_codes=32")
    assert done.returncode == 0, done.stderr
    assert f"ttt train --config recipes/llada/conf/{name}.yaml" in done.stdout and not Path(given[5]).exists()


def test_a_wrong_name_lists_the_configurations(given):
    done = run("base", *given)
    assert done.returncode == 2 and "no recipes/llada/conf/base.yaml" in done.stderr
    assert all(name in done.stderr for name in NAMES)


WORDS = ["a cat sat on the mat", "one two three"]
CHATS = [{"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": "a cat"}]} for w in WORDS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """``exp``: an SFT run after one update on ``saved``, a folder of Hugging Face datasets; other forms of prompts beside it."""
    pytest.importorskip("pyarrow")
    from local_backbones import make_backbone

    folder = tmp_path_factory.mktemp("sft")
    make_backbone(folder / "model", "qwen2")
    save_to_disk(folder / "saved", CHATS * 4)
    (folder / "lines.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": w}) + "\n" for w in WORDS))
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    (folder / "ids.jsonl").write_text(json.dumps({"input_ids": [40, 41, 42, 43], "prompt_length": 3}) + "\n")
    settings = [
        "--config", str(ROOT / "recipes/llada/conf/sft.yaml"), f"model.path={folder}/model", f"data.train={folder}/saved",
        f"data.tokenizer={folder}/exp/tokenizer", f"run.dir={folder}/exp",
        "train.steps=1", "train.accumulate=1", "train.autocast=none", "model.gradient_checkpointing=false",
        "data.row_tokens=64", "data.batch_tokens=128", "data.max_drop_share=1", "eval.max_tokens=16",
        "eval.sampler.gen_length=16", "eval.sampler.initial_length=8", "eval.sampler.num_iterations=2", "data.num_codes=32",
    ]  # fmt: skip
    assert main(["tokenizer", *settings]) == main(["train", *settings]) == 0
    return folder


def test_chats_are_decoded_and_scored(trained):
    done = run(
        "sft", "--exp", str(trained / "exp"), "--stage", "3", "--stop-stage", "4", "--test", str(trained / "chats.jsonl"),
        "eval.max_tokens=16", "eval.sampler.gen_length=16", "eval.sampler.initial_length=8", "eval.sampler.num_iterations=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (card,) = (trained / "exp/eval").glob("**/card.json")
    assert json.loads(card.read_text())["metrics"]["chat/exact_match"]["n"] == 2


@pytest.mark.parametrize("name", ["lines.txt", "prompts.jsonl", "chats.jsonl", "saved", "ids.jsonl"])
def test_every_form_of_prompts_is_answered(trained, name, capsys, tmp_path):
    exp, prompts = trained / "exp", trained / name
    settings = ["--config", str(exp / "config.yaml"), f"eval.examples=[{prompts}]", f"eval.out={tmp_path}", "eval.limit=2"]
    assert main(["generate", *settings]) == 0, capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / f"{prompts.stem}.generations.jsonl").read_text().splitlines()]
    assert name == "ids.jsonl" or [r["prompt"] for r in records] == WORDS
    assert all(r["n_tokens"] for r in records)
    assert main(["score", *settings]) == main(["report", *settings]) == 0, capsys.readouterr().err
    if name not in ("lines.txt", "ids.jsonl"):
        return
    assert main(["stream", str(exp), "--examples", str(prompts), "--limit", "1", "--no-sound"]) == 0, capsys.readouterr().err
    asked = ["inspect", "samplers", str(exp), "--examples", str(prompts), "--samplers", "own", "--limit", "1", "--draws", "1"]
    assert main([*asked, "--likelihood-draws", "0", "--out", str(tmp_path / "samplers")]) == 0, capsys.readouterr().err
