"""Recipes train as they are: only paths, sizes and an early end are given, never the length of the run or the schedule.

(`recipes/ttt/conf/base.yaml` and what extends it leave the length to the user, as their first lines say.)
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import audio, chat, text
from ttt.cli.main import main
from ttt.config.load import load_config
from ttt.data.read.examples import write_examples

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/model"))
SIZES = [
    "data.row_tokens=128", "data.batch_tokens=256", "train.accumulate=1", "train.engine=local", "train.autocast=none",
    "train.zero_stage=0", "train.max_tokens=1", "train.tensorboard=false", "model.attention=sdpa",
    "model.gradient_checkpointing=false", "data.pack=false",
]  # fmt: skip
RECIPES = {  # configuration: (data, settings that its first lines ask for)
    "ttt/conf/base": ("speech.jsonl", ["train.epochs=2", "data.num_codes=32"]),
    "ttt/conf/qwen2.5_3b": ("speech.jsonl", ["data.num_codes=32"]),
    "dual_stream/conf/base": ("speech.jsonl", ["train.steps=9", "data.num_codes=32"]),
    "ar/conf/base": ("speech.jsonl", ["train.steps=9", "data.num_codes=32"]),
    "nar/conf/base": ("speech.jsonl", ["train.steps=9", "data.num_codes=32"]),
    "llada/conf/pretrain": ("text.jsonl", []),
    "llada/conf/sft": ("chats.jsonl", []),
    "llada/conf/tts": ("tts.jsonl", ["data.num_codes=32"]),
    "llada/conf/mixed": ("tts.jsonl", ["data.num_codes=32", "data.text={world}/chats.jsonl"]),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    from local_backbones import make_backbone

    folder = tmp_path_factory.mktemp("shipped")
    make_backbone(folder / "model", "qwen2")
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 32, 20) for _ in range(12)]
    spoken = [chat(f"e{n}", [text("why")], [text("a cat"), audio(c, "last")]) for n, c in enumerate(codes)]
    write_examples(folder / "speech.jsonl", spoken)
    answers = [chat(f"e{n}", [text("a cat")], [audio(c, "last")]) for n, c in enumerate(codes)]
    write_examples(folder / "tts.jsonl", [type(e)(e.uid, e.turns[1:], "tts") for e in answers])
    (folder / "text.jsonl").write_text((json.dumps({"text": "a cat sat on the mat " * 4}) + "\n") * 30)
    (folder / "chats.jsonl").write_text((json.dumps({"instruction": "why", "response": "a cat sat"}) + "\n") * 30)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains(recipe, world, tmp_path, caplog):
    data, asked = RECIPES[recipe]
    caplog.set_level(logging.INFO)
    file = ROOT / f"recipes/{recipe}.yaml"
    settings = [
        "--config", str(file), f"run.dir={tmp_path / 'run'}", f"data.tokenizer={tmp_path / 'tok'}", f"model.path={world / 'model'}",
        f"data.train={world / data}", *(s.format(world=world) for s in asked), *SIZES,
    ]  # fmt: skip
    assert main(["tokenizer", *settings]) == 0, caplog.text
    assert main(["train", *settings]) == 0, caplog.text
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    train = load_config([file], asked).train
    if train.epochs:
        assert f"train: {train.epochs:g} epochs are" in caplog.text
    else:
        assert f"step {last['step']}/{train.steps}" in caplog.text
    assert np.isfinite(last["train/loss"]) and last["step"] >= 1
