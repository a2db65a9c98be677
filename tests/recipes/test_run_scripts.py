"""The shell recipes: which commands they give, what they say when something is missing, and the toy world end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import programs
from ttt.registry import name_of

ROOT = Path(__file__).resolve().parents[2]
MINI, TOY = ROOT / "egs/mini_talk/run.sh", ROOT / "egs/toy/run.sh"


def run(script: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **programs(), **(env or {})},
        timeout=280,
    )


@pytest.mark.parametrize("script", [MINI, TOY, ROOT / "recipes/_shared/stages.sh", ROOT / "tools/env.sh"])
def test_shell_parses(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


@pytest.mark.parametrize("script", [MINI, TOY])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stge", "3"], "unknown option --stge"),
        (["--stage"], "needs a value"),
        (["--stage", "x"], "take numbers"),
        (["--stage", "5", "--stop-stage", "2"], "is after"),
        (["what"], "unknown argument what"),
        (["--stage", "1", "--recipe", "nothing"], "/conf/nothing.yaml; there are: ./"),
    ],
)
def test_wrong_arguments_are_one_line(script, arguments, message):
    done = run(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_help_is_the_header():
    done = run(MINI, "--help")
    assert done.returncode == 0 and "Stages: 0 environment" in done.stdout


def test_missing_input_names_the_stage(tmp_path):
    done = run(MINI, "--stage", "5", "--stop-stage", "5", "--name", "never-trained")
    assert done.returncode == 2
    assert "missing egs/mini_talk/exp/never-trained/checkpoints: run stage 4 first" in done.stderr


@pytest.fixture
def recorder(tmp_path):
    log = tmp_path / "calls.txt"
    script = tmp_path / "recorder"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    script.chmod(0o755)
    return {"TTT": str(script), "PYTHON": str(script)}, log


def test_training_stage_passes_settings_through(recorder):
    env, log = recorder
    data = ROOT / "egs/mini_talk/exp/full/data/train.jsonl"
    made = not data.exists()
    if made:
        data.parent.mkdir(parents=True, exist_ok=True)
        data.touch()
    try:
        done = run(MINI, "--stage", "4", "--stop-stage", "4", "train.lr=1e-5", "run.seed=3", env=env)
    finally:
        if made:
            data.unlink()
    assert done.returncode == 0, done.stderr
    (call,) = [line for line in log.read_text().splitlines() if line.startswith("train ")]
    assert "--config egs/mini_talk/conf/ttt.yaml" in call and "run.dir=egs/mini_talk/exp/ttt" in call
    assert call.endswith("train.lr=1e-5 run.seed=3")


def test_toy_world_end_to_end():
    name = f"test-{os.getpid()}"
    run_dir = ROOT / "egs/toy/exp" / name
    try:
        small = ("train.steps=40", "train.eval_every_steps=0", "eval.limit=10", "eval.samples=1", "eval.bootstrap=50")
        done = run(TOY, "--stage", "1", "--name", name, *small)
        assert done.returncode == 0, done.stderr
        report = json.loads((run_dir / "report.json").read_text())
        for key in ("asr/wer", "tts/judged_wer", "qa/accuracy", "qa/spoken_accuracy", "codec/floor_wer", "judge/wer"):
            assert set(report[key]) >= {"value", "low", "high", "n"}, key
        assert report["codec/floor_wer"]["value"] == 0 and report["judge/wer"]["value"] == 0
        assert done.stdout.rstrip().splitlines()[-1].strip()  # the table is printed last
        again = run(TOY, "--stage", "5", "--stop-stage", "5", "--name", name, *small)
        assert again.returncode == 0 and "generate: up to date" in again.stderr
        changed = run(TOY, "--stage", "5", "--stop-stage", "5", "--name", name, *small, "eval.max_tokens=20")
        assert changed.returncode == 2 and "setting max_tokens" in changed.stderr
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def test_ttt_recipe_on_official_records_and_a_local_backbone(tmp_path):
    """Stages 1 and 2 of recipes/ttt with a tiny backbone: tokenizer extended, new rows added, two updates."""
    from tests.conftest import SENTENCES, tiny_hf
    from tests.unit.cli.test_tokenizer_verb import plain_bpe

    model = tmp_path / "model"
    tiny_hf().save_pretrained(model)
    plain_bpe(SENTENCES).save(str(model / "tokenizer.json"))
    audio = "<|begin_of_quad|>" + "".join(f"<|audio_{i % 7}|>" for i in range(12)) + "<|end_of_audio_span_last|>"
    record = {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on" + audio}]}
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(record) + "\n" for _ in range(12)))
    small = ("data.num_codes=32", "data.row_tokens=128", "data.batch_tokens=256", "model.attention=sdpa")
    done = run(
        ROOT / "recipes/ttt/run.sh", "--stage", "1", "--stop-stage", "2", "--model", str(model), "--train", str(train),
        "--exp", str(tmp_path / "exp"), *small, "train.steps=2", "train.accumulate=1", "train.autocast=none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mask:" in done.stdout, "the first example is shown"
    lines = [json.loads(line) for line in (tmp_path / "exp/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2
    missing = run(ROOT / "recipes/ttt/run.sh", "--stage", "1", "--stop-stage", "1", "--train", str(train))
    assert missing.returncode == 2 and "--model DIR is missing" in missing.stderr


@pytest.mark.parametrize("method", ["ar", "nar", "dual_stream"])
def test_other_methods_share_the_stages_and_have_settings_of_their_own(method):
    from ttt.config.load import load_config

    needed = ["run.dir=x", "data.train=x", "data.tokenizer=x", "model.path=x", "train.steps=5"]
    config = load_config([ROOT / f"recipes/{method}/conf/base.yaml"], needed)
    paper = load_config([ROOT / "recipes/ttt/conf/base.yaml"], needed)
    assert name_of(config.objective) == method
    assert config.objective.canvas == config.eval.sampler.canvas
    assert config.train == paper.train and config.data == paper.data
    done = run(ROOT / f"recipes/{method}/run.sh", "--conf", "nothing")
    assert done.returncode == 2 and f"no recipes/{method}/conf/nothing.yaml" in done.stderr


@pytest.mark.parametrize(
    "script, arguments, commands",
    [
        ("audiolm/run.sh", ["--wavs", "{wavs}", "--codec", "/models/encodec"],
         ["ttt data convert --from folder", "ttt tokenize", "ttt examples", "ttt train", "ttt generate", "ttt score"]),
        ("ttt/from_wavs.sh", ["--wavs", "{wavs}/train", "--test-wavs", "{wavs}/test", "--model", "{wavs}/dev", "--codec", "{wavs}",
                              "--decoder", "{wavs}"],
         ["ttt tokenizer --config", "ttt data convert --from folder", "ttt tokenize --config", "ttt examples", "ttt train",
          "ttt generate --wav"]),
    ],
)  # fmt: skip
def test_a_dry_run_prints_the_commands_and_writes_nothing(script, arguments, commands, tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / split).mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "dev" / name).write_text("{}")
    filled = [a.format(wavs=tmp_path) for a in arguments]
    done = run(ROOT / "recipes" / script, *filled, "--exp", str(tmp_path / "exp"), "--dry-run")
    assert done.returncode == 0, done.stderr
    at = [done.stdout.index(command) for command in commands]
    assert at == sorted(at) and not (tmp_path / "exp").exists()
