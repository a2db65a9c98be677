"""A store gives back, bit for bit, the streams that went in, and the loader cannot tell it from a list."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from tests.conftest import random_streams
from ttt.data.batches import loader as loader_module
from ttt.data.batches.loader import Loader
from ttt.data.sources.store import Store, StoreWriter, is_store, pack_streams
from ttt.data.sources.streams import Joined, streams_digest
from ttt.diffusion.strategies import EndPadding, Sst
from ttt.errors import ConfigError, DataError

ABOUT = {"sources": [{"examples": 25}, {"examples": 15}], "tokenizer": "t", "prompt_rule": "labels"}


@pytest.fixture(scope="module")
def streams():
    found = random_streams(7, 40, 20)
    cut = next(i for i, s in enumerate(found) if s.segments and s.segments[-1].style == "last")
    number = len(found[cut].segments) - 1
    found[cut] = dataclasses.replace(found[cut].truncate(number, 1), task="tâche")
    return found


def write(folder, streams, block=7, shard_tokens=300):
    with StoreWriter(folder, shard_tokens) as writer:
        for at in range(0, len(streams), block):
            writer.add(pack_streams(streams[at : at + block]))
        return writer.finish(ABOUT)


def same(a, b):
    for f in dataclasses.fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        equal = x.dtype == y.dtype and np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        assert equal, (f.name, x, y)


def test_round_trip_over_several_shards(tmp_path, streams):
    store = write(tmp_path / "s", streams)
    assert len(store.about["shards"]) > 3 and store.about["tokens"] == sum(map(len, streams))
    assert store.lengths.tolist() == [len(s) for s in streams] and store.digest == streams_digest(streams)
    for copy in (store, Store(tmp_path / "s"), pickle.loads(pickle.dumps(store))):
        for a, b in zip(copy, streams, strict=True):
            same(a, b)
    assert [store.uid(i) for i in range(40)] == [s.uid for s in streams]
    assert [len(p) for p in store.sources()] == [25, 15] and store.sources()[1][0].uid == streams[25].uid
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"], "nothing is left beside it"


def test_opening_reads_no_tokens(tmp_path, streams):
    write(tmp_path / "s", streams)
    for path in tmp_path.glob("s/*.ids"):
        path.write_bytes(bytes(path.stat().st_size))
    store = Store(tmp_path / "s", verify=False)  # as at every opening but the first
    assert store.lengths.sum() == sum(map(len, streams)) and len(pickle.dumps(store)) < 500
    parts = Joined([p.subset(np.arange(len(p))[::-1]) for p in store.sources()])
    assert [parts.uid(i) for i in range(40)] == [s.uid for s in [*streams[24::-1], *streams[:24:-1]]]


def test_the_bytes_do_not_depend_on_blocks(tmp_path, streams):
    write(tmp_path / "a", streams, block=40, shard_tokens=10**9)
    write(tmp_path / "b", streams, block=1, shard_tokens=10**9)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir()) and len(files) == 6
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


@pytest.mark.parametrize("pack", [True, False])
def test_loader_cannot_tell_it_from_a_list(tmp_path, streams, vocab, pack):
    store = write(tmp_path / "s", streams)
    settings = {
        "row_tokens": 120,
        "batch_tokens": 240,
        "seed": 5,
        "strategies": (Sst(p=1.0), EndPadding(p=0.5)),
        "pack": pack,
        "max_drop_share": 0.9,
    }
    a, b = (Loader(s, vocab, **settings) for s in (streams, store))
    assert a.updates_per_epoch == b.updates_per_epoch and a.report == b.report
    for update in range(2 * a.updates_per_epoch):
        x, y = a.micro_batch(update, 0), b.micro_batch(update, 0)
        assert x.uids == y.uids and all(
            (getattr(x, n) == getattr(y, n)).all()
            for n in ("ids", "kind", "run_id", "doc", "position", "target", "noisable", "visible")
        )


def test_windows(tmp_path, streams, vocab, monkeypatch):
    """An epoch of several windows shows every example about once; any update can be asked for first; ranks share it out."""
    monkeypatch.setattr(loader_module, "WINDOW", 11)
    store = write(tmp_path / "s", streams)

    def make(**more):
        return Loader(store, vocab, **{"row_tokens": 200, "batch_tokens": 200, "seed": 2, **more})

    loader = make()
    assert loader.windows == 4 and loader.updates_per_epoch == 4 * loader.updates_per_window
    wanted = range(3 * loader.updates_per_epoch)
    batches = [loader.micro_batch(u, 0) for u in wanted]
    again = make()
    for u in np.random.default_rng(0).permutation(len(batches)).tolist():
        assert again.micro_batch(u, 0).uids == batches[u].uids and (again.micro_batch(u, 0).ids == batches[u].ids).all()
    n = loader.updates_per_epoch
    for epoch in range(3):
        per_window = [
            [
                x
                for b in batches[epoch * n + w * loader.updates_per_window :][: loader.updates_per_window]
                for x in b.uids
            ]
            for w in range(4)
        ]
        for a in range(4):
            assert all(not set(per_window[a]) & set(per_window[b]) for b in range(a)), "windows share no example"
    ranks = [make(world=2, rank=r) for r in range(2)]
    alone = make(accumulate=2)
    for u in range(alone.updates_per_epoch):
        assert [r.micro_batch(u, 0).uids for r in ranks] == [alone.micro_batch(u, i).uids for i in range(2)]


def test_refusals(tmp_path, streams):
    with pytest.raises(DataError, match="uid 'e7_0' is used by examples 0 and 40"):
        write(tmp_path / "s", [*streams, streams[0]])
    assert not any(tmp_path.iterdir()), "nothing is left after an error"
    with pytest.raises(DataError, match="no example to store"):
        write(tmp_path / "s", [])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="mine: holds files that were not made by 'ttt data pack'"):
        write(tmp_path / "mine", streams)
    with pytest.raises(DataError, match="no store here .*'ttt data pack'"):
        Store(tmp_path / "mine")
    assert not is_store(tmp_path / "mine")


def test_damage_is_named(tmp_path, streams):
    folder = tmp_path / "s"
    write(folder, streams)
    whole = (folder / "00001.ids").read_bytes()
    for damaged in (whole[:-4], whole[:-1]):
        (folder / "00001.ids").write_bytes(damaged)
        with pytest.raises(DataError, match=r"00001\.ids is \d+ bytes, .*run 'ttt data pack' again"):
            list(Store(folder))
    (folder / "00001.ids").unlink()
    with pytest.raises(DataError, match=r"00001\.ids is missing"):
        list(Store(folder))
    about = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(DataError, match="format 99, this version reads 1"):
        Store(folder)
    (folder / "store.json").write_text("{")
    with pytest.raises(DataError, match=r"store\.json:1: not JSON"):
        Store(folder)


def test_an_old_store_is_replaced_as_a_whole(tmp_path, streams):
    write(tmp_path / "s", streams)
    assert len(write(tmp_path / "s", streams[:5])) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
