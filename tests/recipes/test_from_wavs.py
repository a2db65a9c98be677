"""recipes/ttt/from_wavs.sh: recordings with their texts and three folders of (random) weights in, spoken answers out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.glm4voice_folders import make_decoder_folder, make_tokenizer_folder
from tests.warm_python import programs

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/model"))
SHORT = [
    "train.steps=40", "train.lr=0.02", "train.warmup_steps=0", "train.autocast=none", "data.row_tokens=128",
    "data.batch_tokens=256", "model.attention=sdpa", "model.gradient_checkpointing=false", "eval.max_tokens=24",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Recordings of two rates, mono and stereo, with texts; a tiny backbone, tokenizer and decoder."""
    from local_backbones import make_backbone

    folder = tmp_path_factory.mktemp("wavs")
    make_backbone(folder / "model", "qwen2")
    make_tokenizer_folder(folder / "tokenizer")
    make_decoder_folder(folder / "decoder")
    rng = np.random.default_rng(0)
    for part, number in (("train", 4), ("test", 2)):
        (folder / part).mkdir()
        for i in range(number):
            rate_hz, channels = ((16_000, 1), (44_100, 2))[i % 2]
            soundfile.write(folder / part / f"{part}{i}.wav", 0.1 * rng.standard_normal((rate_hz, channels)), rate_hz)
            (folder / part / f"{part}{i}.txt").write_text(f"the cat {i}\n")
    return folder


def recipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [
        "bash", str(ROOT / "recipes/ttt/from_wavs.sh"), "--stage", "1", "--wavs", f"{folder}/train",
        "--test-wavs", f"{folder}/test",
        "--model", f"{folder}/model", "--codec", f"{folder}/tokenizer", "--decoder", f"{folder}/decoder",
        "--exp", f"{folder}/exp", *arguments, *SHORT,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **programs()}, timeout=280)


@pytest.mark.slow
def test_from_recordings_to_a_spoken_answer(world):
    done = recipe(world)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 were resampled from 44100 Hz to 16000 Hz, 2 mixed down to one channel" in done.stderr
    assert "no --judge DIR: nothing is scored" in done.stdout
    head, *rows = map(json.loads, (world / "exp/data/codes/train.jsonl").read_text().splitlines())
    assert head["codec"].startswith("glm4voice-64-") and [len(r["codes"]) for r in rows] == [13] * 4  # 12.5 a second
    answers = [json.loads(line) for line in (world / "exp/run/eval/test.generations.jsonl").read_text().splitlines()]
    spoken = [a for a in answers if a.get("codes")]
    assert len(answers) == 4 and spoken, answers
    for answer in spoken:
        info = soundfile.info(world / "exp/run/eval" / answer["wav"])
        assert (info.samplerate, info.frames) == (22_050, 1764 * len(answer["codes"]))
    again = recipe(world)
    assert again.returncode == 0 and again.stderr.count("up to date") >= 6, again.stderr


@pytest.mark.parametrize(
    "option, said", [("--wavs", "--wavs: no such folder"), ("--judge", "--judge: no such folder")]
)
def test_a_folder_that_is_missing_is_named_before_any_work(world, tmp_path, option, said):
    done = recipe(world, option, str(tmp_path / "nowhere"), "--exp", str(tmp_path / "exp"))
    assert done.returncode == 2 and said in done.stderr and not (tmp_path / "exp").exists()


def test_wrong_weights_are_named_before_the_corpus_is_made(world, tmp_path):
    done = recipe(world, "--decoder", f"{world}/tokenizer", "--exp", str(tmp_path / "exp"))
    assert done.returncode == 2 and f"{world}/tokenizer" in done.stderr and not (tmp_path / "exp/corpus").exists()


def test_the_test_recordings_are_not_those_of_training(world, tmp_path):
    done = recipe(world, "--test-wavs", f"{world}/train", "--exp", str(tmp_path / "exp"))
    assert done.returncode == 2 and "the same folder" in done.stderr and not (tmp_path / "exp").exists()
