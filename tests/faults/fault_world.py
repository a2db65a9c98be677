"""A small finished experiment, made once: corpus, codes, examples, tokenizer, store, run, answers, trace, card.

All paths in it are relative, so that a copy works when it is the working folder.  `NAMES` says what is where.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import yaml

from ttt.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

# Paths below the working folder.
NAMES = SimpleNamespace(
    recipe="recipe.yaml", corpus="corpus", manifest="corpus/test.jsonl", items="corpus/test.items.jsonl",
    codes="data/codes/test.jsonl", examples="data/test.jsonl", train="data/train.jsonl", tokenizer="data/tokenizer", store="store",
    run="run", checkpoint="run/checkpoints/step-00000004", model="model", eval="run/eval", trace="run/eval/test.trace.jsonl",
    generations="run/eval/test.generations.jsonl", card="run/eval/card.json", floor="run/eval/floor.json",
    codes_file="codes.json", questions="questions", table="table.yaml", wav="question.wav", chats="chats.jsonl",
)  # fmt: skip

RECIPE = {
    "run": {"threads": 1, "dir": "run", "device": "cpu"},
    "data": {
        "splits": ["train", "dev", "test"], "corpus": "corpus", "dir": "data", "train": "data/train.jsonl",
        "dev": "data/dev.jsonl", "tokenizer": "data/tokenizer", "bpe_size": 300, "row_tokens": 128, "batch_tokens": 256,
        "pack": False,
    },
    "codec": {"name": "toy"},
    "judge": {"name": "toy"},
    "tasks": [{"name": "asr"}, {"name": "tts"}, {"name": "qa"}],
    "model": {"preset": "toy"},
    "objective": {"name": "ttt"},
    "train": {
        "steps": 4, "save_every_steps": 2, "log_every_steps": 1, "warmup_steps": 1, "tensorboard": False,
        "eval_every_steps": 4,
    },
    "eval": {
        "examples": ["data/test.jsonl"], "out": "run/eval", "max_tokens": 12, "batch_size": 4, "bootstrap": 20,
        "limit": 1, "sampler": {"name": "blockwise", "block_length": 4, "diffusion_steps": 4, "gen_length": 8},
    },
}  # fmt: skip


def make_world() -> None:
    """Make the experiment in the working folder."""
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    spec = importlib.util.spec_from_file_location("toy_corpus", ROOT / "egs/toy/local/data.py")
    assert spec is not None and spec.loader is not None
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    corpus.make(Path("corpus"), 1, 12)
    common = ("--config", "recipe.yaml")
    for words in (
        ("tokenize", *common), ("examples", *common), ("train", *common), ("generate", "--trace", *common),
        ("score", *common), ("floor", *common),
        ("data", "pack", "data/train.jsonl", "--out", "store", "--tokenizer", "data/tokenizer"),
        ("model", "init", "recipe.yaml", "model"),
    ):  # fmt: skip
        assert main(words) == 0, words
    Path("codes.json").write_text(json.dumps({"speech_tokens": [1, 2, 3]}))
    Path("questions").mkdir()
    question = {"question": "a cat?", "choices": ["a", "cat", "sat", "mat"], "answer": 1, "error_type": "ok"}
    Path("questions/birds.jsonl").write_text(json.dumps(question) + "\n")
    chat = {"messages": [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}]}
    Path("chats.jsonl").write_text(json.dumps(chat) + "\n")
    table = {"title": "T", "seeds": 1, "config": "recipe.yaml", "rows": {"a": [], "b": ["train.lr=1e-4"]}}
    Path("table.yaml").write_text(yaml.safe_dump(table))
    mix = [{"path": "data/train.jsonl", "sample_ratio": 1.0}]
    Path("mix.json").write_text(json.dumps(mix))
    bands = {"r": {"train/loss": {1: [0.0, 100.0]}}}
    Path("bands.yaml").write_text(yaml.safe_dump(bands))
    first = sorted(Path("corpus/wav").rglob("*.wav"))[0]
    Path("question.wav").write_bytes(first.read_bytes())
