"""Every verb that reads files, with the files it reads: the rows of the table of faults.

A row: words of the verb, files it reads, prefixes of the files it may write.
"""

from __future__ import annotations

from typing import NamedTuple

from fault_world import NAMES

C = ("--config", NAMES.recipe)
OVER = "--overwrite"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.json")
CHECKPOINT = NAMES.checkpoint
CHECKPOINT_MODEL = tuple(f"{CHECKPOINT}/model/{name}" for name in MODEL_FILES)
TOKENIZER = tuple(f"data/tokenizer/{name}" for name in ("tokenizer.json", "vocab.json"))
STORE = ("store/store.json",)
MMLU = ("eval", "mmlu-redux", "questions", "--model", "run", "--out", "new", "--draws", "16", "--max-length", "64")


class Row(NamedTuple):
    """``words``: a call; ``reads``: the files it reads; ``writes``: beginnings of the paths it may make or change."""

    words: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    stdin: str = ""

    @property
    def verb(self) -> str:
        """Name of the verb for a test's id."""
        return " ".join(word for word in self.words[:2] if word[0].isalpha() and "." not in word and "/" not in word)


ROWS = (
    Row(("config", *C), ("recipe.yaml",)),
    Row(("tokenize", OVER, *C), ("recipe.yaml", "corpus/test.jsonl", "corpus/wav/tone-5-5.wav"), ("data/codes/",)),
    Row(("tokenize", *C), ("data/codes/test.done.json",), ("data/codes/",)),
    Row(("examples", OVER, *C), ("corpus/test.jsonl", "corpus/test.items.jsonl", "data/codes/test.jsonl"), ("data/",)),
    Row(("examples", *C), ("data/examples.done.json",), ("data/",)),
    Row(("tokenizer", *C, "model.path=model", "data.tokenizer=new", "data.num_codes=32"),
        ("model/tokenizer.json", "model/config.json"), ("new",)),
    Row(("floor", OVER, *C), ("corpus/test.jsonl", "corpus/wav/tone-5-5.wav"), ("run/eval/floor",)),
    Row(("train", *C, "train.steps=5"), (
        "data/train.jsonl", "data/dev.jsonl", *TOKENIZER, "run/data.json", "run/metrics.jsonl", "run/.lock", "run/config.yaml",
        *(f"{CHECKPOINT}/{name}" for name in (
            "COMPLETE", "state.json", "config.yaml", "engine/optimizer.json", "engine/optimizer.safetensors")),
        *CHECKPOINT_MODEL,
    ), ("run/",)),
    Row(("train", *C, "data.train=store", "run.dir=new", "train.steps=1"), STORE, ("new",)),
    Row(("generate", OVER, *C),
        ("data/test.jsonl", "run/eval/test.generations.done.json", *CHECKPOINT_MODEL, f"{CHECKPOINT}/COMPLETE"), ("run/eval/",)),
    Row(("generate", *C), ("run/eval/test.generations.done.json",), ("run/eval/",)),
    Row(("score", OVER, *C), ("data/test.jsonl", "run/eval/test.generations.jsonl"), ("run/eval/",)),
    Row(("score", *C), ("run/eval/score.done.json",), ("run/eval/",)),
    Row(("report", *C), ("run/metrics.jsonl", "run/eval/card.json", "run/eval/floor.json", "run/eval/items.jsonl"),
        ("run/report", "run/plots", "run/training", "run/mask", "run/scores")),
    Row(("likelihood", OVER, *C, "--draws", "1"), ("data/test.jsonl",), ("run/eval/likelihood",)),
    Row(("show", *C), ("data/train.jsonl", *TOKENIZER)),
    Row(("show", *C, "data.train=store"), STORE),
    Row(("replay", NAMES.trace, "--speed", "0"), (NAMES.trace,)),
    Row(("replay", NAMES.trace, "--list"), (NAMES.trace,)),
    Row(("repro", NAMES.card, "--dry-run", "--out", "new"), (NAMES.card,)),
    Row(("ablate", NAMES.table, "--dry-run", "--out", "new"), (NAMES.table, "recipe.yaml")),
    Row(("doctor", "run", "--no-probes"), ("run/metrics.jsonl", "run/config.yaml", "run/data.json")),
    Row(("doctor", "run", "--no-probes", "--bands", "bands.yaml", "--recipe", "r"), ("bands.yaml",)),
    Row(("doctor", "run"), (f"{CHECKPOINT}/model/config.json", "data/train.jsonl", "data/dev.jsonl")),
    Row(("estimate", "recipe.yaml"), ("recipe.yaml", "data/train.jsonl")),
    Row(("vocode", *C, "--tokens", "codes.json", "--out", "new.wav"), ("codes.json",), ("new",)),
    Row(("data", "check", "data/test.jsonl", "--tokenizer", "data/tokenizer"), ("data/test.jsonl", *TOKENIZER)),
    Row(("data", "check", "store"), STORE),
    Row(("data", "stats", "data/test.jsonl", "--tokenizer", "data/tokenizer"), ("data/test.jsonl", *TOKENIZER)),
    Row(("data", "show", "data/test.jsonl", "--tokenizer", "data/tokenizer"), ("data/test.jsonl", *TOKENIZER)),
    Row(("data", "show", "store", "--tokenizer", "data/tokenizer"), STORE),
    Row(("data", "pack", "data/test.jsonl", "--tokenizer", "data/tokenizer", "--out", "new"),
        ("data/test.jsonl", *TOKENIZER), ("new",)),
    Row(("data", "pack", "mix.json", "--tokenizer", "data/tokenizer", "--out", "new"), ("mix.json",), ("new",)),
    Row(("data", "split", "data/test.jsonl", "--train", "new.a.jsonl", "--eval", "new.b.jsonl"), ("data/test.jsonl",), ("new",)),
    Row(("data", "encode", "chats.jsonl", "new.jsonl", *C), ("chats.jsonl",), ("new",)),
    Row(("data", "convert", "--from", "sharegpt", "chats.jsonl", "new.jsonl"), ("chats.jsonl",), ("new",)),
    Row(("data", "convert", "--from", "official", "chats.jsonl", "new.jsonl"), ("chats.jsonl",), ("new",)),
    Row(("inspect", "samplers", "run", "--examples", "data/test.jsonl", "--samplers", "own", "--limit", "1", "--draws", "1",
         "--likelihood-draws", "0", "--out", "new"), ("data/test.jsonl", f"{CHECKPOINT}/model/vocab.json"), ("new",)),
    Row(("inspect", "attention", "run", "--examples", "data/test.jsonl", "--limit", "1", "--out", "new"),
        ("data/test.jsonl",), ("new",)),
    Row(("stream", "run", "--examples", "data/test.jsonl", "--limit", "1", "--warmup", "0", "--out", "new"),
        ("data/test.jsonl", "run/config.yaml", *CHECKPOINT_MODEL), ("new",)),
    Row(("stream", "run", "--wav", "question.wav", "--warmup", "0"), ("question.wav",)),
    Row(("chat", "run"), ("run/config.yaml", *CHECKPOINT_MODEL), (), "hello\n"),
    Row(("model", "show", "model"), tuple(f"model/{name}" for name in MODEL_FILES)),
    Row(("model", "export", "model", "new"), tuple(f"model/{name}" for name in MODEL_FILES), ("new",)),
    Row(("model", "merge", "model", "new"), tuple(f"model/{name}" for name in MODEL_FILES), ("new",)),
    Row(("model", "text", "model", "new"), tuple(f"model/{name}" for name in MODEL_FILES), ("new",)),
    Row(("model", "import", "model", "new"), tuple(f"model/{name}" for name in MODEL_FILES), ("new",)),
    Row(("model", "init", "recipe.yaml", "new"), ("recipe.yaml", *TOKENIZER), ("new",)),
    Row(MMLU, ("questions/birds.jsonl",), ("new",)),
)  # fmt: skip
