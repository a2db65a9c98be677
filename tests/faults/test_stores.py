"""Token stores whose files or manifest changed after they were written: refused when opened, for a new run and a resumed one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ttt.data.sources.store import INDEX, Store


def edit(name: str, change: Callable[[np.ndarray], object], dtype: object = "u1") -> Callable[[], None]:
    def spoil() -> None:
        path = Path("store", name)
        values = np.frombuffer(path.read_bytes(), dtype=dtype).copy()
        change(values)
        path.write_bytes(values.tobytes())

    return spoil


def add_one(values: np.ndarray) -> None:
    values[len(values) // 2] += 1


def shorter(values: np.ndarray) -> None:
    values["length"][0] -= 1


def cut(name: str, size: int) -> Callable[[], None]:
    return lambda: Path("store", name).write_bytes(Path("store", name).read_bytes()[:-size]) and None


def manifest(**values: object) -> Callable[[], None]:
    def spoil() -> None:
        path = Path("store/store.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


SPOILT = {
    "ids": (edit("00000.ids", add_one, "<u4"), "00000.ids has other contents"),
    "flags": (edit("00000.flags", add_one), "00000.flags has other contents"),
    "segments": (edit("00000.segments", add_one, "<i4"), "00000.segments has other contents"),
    "lengths": (edit("00000.index", shorter, INDEX), "00000.index has other contents"),
    "uids": (edit("00000.uids", add_one), "00000.uids has other contents"),
    "uids cut": (cut("00000.uids", 3), "00000.uids is "),
    "ids cut": (cut("00000.ids", 4), "00000.ids is "),
    "no flags": (lambda: Path("store/00000.flags").unlink(), "00000.flags is missing"),
    "digest": (manifest(digest="0" * 16), "store.json: was changed after it was written"),
    "tasks": (manifest(tasks=["tts", "asr", "qa"]), "store.json: was changed after it was written"),
    "no seal": (manifest(seal=None), "store.json: was changed after it was written"),
    "shards": (manifest(shards=[]), "store.json: was changed after it was written"),
}
TRAIN = ("train", "--config", "recipe.yaml", "data.train=store", "run.dir=other")


@pytest.mark.parametrize("fault", SPOILT)
def test_a_changed_store_is_refused(fault, world, run):
    Store("store")  # found good, and noted
    spoil, says = SPOILT[fault]
    spoil()
    for words in (TRAIN, ("data", "stats", "store", "--tokenizer", "data/tokenizer")):
        line = run(*words).complaint()
        assert says in line and "run 'ttt data pack' again" in line
    assert not Path("other/checkpoints").exists()


def test_a_changed_store_is_refused_on_resume(world, run):
    assert run(*TRAIN).code == 0
    SPOILT["flags"][0]()
    assert "00000.flags has other contents" in run(*TRAIN, "train.steps=6").complaint()


def test_stores_without_digests_are_taken(world, run):
    path = Path("store/store.json")
    about = json.loads(path.read_text())
    del about["seal"]
    for shard in about["shards"]:
        del shard["files"]
    path.write_text(json.dumps(about))
    outcome = run(*TRAIN)
    assert outcome.code == 0, outcome.err
    assert outcome.log.count("written without digests by an older version") == 1
    SPOILT["uids cut"][0]()
    assert "00000.index and 00000.uids do not belong together" in run(*TRAIN).complaint()
