"""recipes/audiolm: every configuration fits together, and the script gives the commands it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ttt.api import decode_settings
from ttt.config.load import load_config
from ttt.model.classes import check_class

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "recipes/audiolm/conf").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_objective_network_and_sampler_fit(path):
    config = load_config([path], ["run.dir=x", "data.train=x", "data.tokenizer=x", "codec.path=x"])
    check_class(config.model.arch.registered_name, config.objective.model_class, "objective")
    config.objective.check_network(config.model.arch)
    decode_settings(config)
    assert (config.model.arch.nar == "masked_all") == (getattr(config.eval.sampler, "first_book", "ar") == "masked")
    frames = config.eval.sampler.max_frames
    assert config.eval.max_tokens > frames * 4, "eval.max_tokens would cut answers before max_frames"


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    script = ROOT / "recipes/audiolm/run.sh"
    return subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True, env={**os.environ, **(env or {})}
    )


def test_stages_give_their_commands(tmp_path):
    log, recorder = tmp_path / "calls", tmp_path / "ttt"
    recorder.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    recorder.chmod(0o755)
    (tmp_path / "cuts").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / f"cuts/cuts_{split}.jsonl.gz").touch()
    exp = tmp_path / "exp"
    (exp / "data").mkdir(parents=True)
    (exp / "checkpoints").mkdir()
    common = ("--exp", str(exp), "--stage", "1", "train.lr=0.01")
    env = {"TTT": str(recorder)}
    done = run("--cuts", str(tmp_path / "cuts"), *common, "--stop-stage", "1", env=env)
    assert done.returncode == 0, done.stderr
    (exp / "data/train.jsonl").touch()
    done = run(
        "--conf",
        "nar",
        "--stage",
        "2",
        "--stop-stage",
        "4",
        "--exp",
        str(exp),
        "--sounds",
        "a.wav b.wav",
        "run.seed=3",
        env=env,
    )
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert [c.split()[0] for c in calls] == [
        *["data"] * 3,
        "tokenizer",
        "train",
        "generate",
        "score",
        "report",
        "continue",
    ]
    assert "--config recipes/audiolm/conf/nar.yaml" in calls[4] and calls[4].endswith("run.seed=3")
    assert calls[-1] == f"continue a.wav b.wav --run {exp} run.seed=3"


@pytest.mark.parametrize(("arguments", "message"), [
    (("--conf", "nothing"), "no recipes/audiolm/conf/nothing.yaml"),
    (("--cuts", "a", "--corpus", "b"), "give one of them"),
    (("--stage", "1", "--stop-stage", "1"), "--cuts DIR or --corpus DIR is missing"),
    (("--stage", "2", "--exp", "/nowhere"), "missing /nowhere/data/train.jsonl: run stage 1 first"),
])  # fmt: skip
def test_what_is_missing_is_said(arguments, message):
    done = run(*(("--stage", "1", "--stop-stage", "1", *arguments) if "--stage" not in arguments else arguments))
    assert done.returncode == 2 and message in done.stderr
