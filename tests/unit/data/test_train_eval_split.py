"""`ttt data split`: which lines, in which order, and what is left behind after an error."""

import gzip
import json
import random

import pytest

from ttt.data.read import train_eval_split as module
from ttt.data.read.train_eval_split import held_out, split
from ttt.errors import ConfigError, DataError


def lines(path):
    raw = path.read_bytes()
    return [json.loads(line)["uid"] for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps({"uid": i, "text": "é"}) + "\n" + "\n" * (i % 3 == 0) for i in range(40)))
    return path


@pytest.mark.parametrize("n, eval_lines", [(463_071, 69_460), (10, 1), (7, 1), (6, 0)])
def test_published_sizes(n, eval_lines):
    chosen = held_out(n, 0.15, 42)
    assert (len(chosen), sum(chosen)) == (n, eval_lines)


def test_the_published_choice():
    """Python's shuffle of all indices, of which the first are held out."""
    for seed in (0, 42):
        order = list(range(1000))
        random.seed(seed)
        random.shuffle(order)
        assert [i for i, c in enumerate(held_out(1000, 0.15, seed)) if c] == sorted(order[:150])
    assert held_out(1000, 0.15, 1) != held_out(1000, 0.15, 2)


def test_order_is_kept_and_nothing_is_lost(source, tmp_path):
    train, dev = tmp_path / "train.jsonl", tmp_path / "deep/dev.jsonl"
    assert split(source, train, dev, 0.25, seed=3) == {"train": 30, "eval": 10}
    assert lines(train) == sorted(lines(train)) and lines(dev) == sorted(lines(dev))
    assert sorted(lines(train) + lines(dev)) == list(range(40)), "blank lines are no records"
    chosen = held_out(40, 0.25, 3)
    assert lines(dev) == [i for i in range(40) if chosen[i]]


def test_compressed_files_split_alike(source, tmp_path):
    with gzip.open(tmp_path / "all.jsonl.gz", "wb") as out:
        out.write(source.read_bytes().rstrip(b"\n"))
    split(source, tmp_path / "a.jsonl", tmp_path / "b.jsonl", 0.3)
    split(tmp_path / "all.jsonl.gz", tmp_path / "a.jsonl.gz", tmp_path / "b2.jsonl", 0.3)
    assert lines(tmp_path / "a.jsonl.gz") == lines(tmp_path / "a.jsonl")
    assert (tmp_path / "b2.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize(
    "ratio, message",
    [(0, "must lie between 0 and 1, got 0"), (1.0, "got 1"), (0.01, "0.01 of 40 lines leaves the eval file empty")],
)
def test_ratios_that_make_no_sense(source, tmp_path, ratio, message):
    with pytest.raises(ConfigError, match=f"--eval-ratio: .*{message}"):
        split(source, tmp_path / "a.jsonl", tmp_path / "b.jsonl", ratio)
    assert [p.name for p in tmp_path.iterdir()] == ["all.jsonl"]


def test_files_that_cannot_be_split(source, tmp_path):
    with pytest.raises(ConfigError, match="must be three different files"):
        split(source, source, tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="name a .jsonl"):
        split(tmp_path / "x.parquet", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="no such file"):
        split(tmp_path / "gone.jsonl", tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_nothing_is_left_half_written(source, tmp_path, monkeypatch):
    read = module.raw_records
    calls = []

    def breaks(path):
        calls.append(path)
        for number, found in enumerate(read(path)):
            if len(calls) == 2 and number == 20:
                raise DataError("the disk is gone")
            yield found

    (tmp_path / "a.jsonl").write_text("before\n")
    monkeypatch.setattr(module, "raw_records", breaks)
    with pytest.raises(DataError, match="the disk is gone"):
        split(source, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "all.jsonl"]
    assert (tmp_path / "a.jsonl").read_text() == "before\n"
