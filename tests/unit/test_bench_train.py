import argparse
import json

import pytest
import torch

import ttt
from ttt.bench import common, memory, train, workload
from ttt.bench.common import Report, Timing, measure, ratios, reference_loop
from ttt.cli.main import main
from ttt.errors import ConfigError, DataError, TttError


@pytest.fixture
def small(monkeypatch):
    """The same work for a network of some thousand weights."""
    for name, value in {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }.items():
        monkeypatch.setitem(workload.SHAPE, name, value)
    lengths = ((70, 50, 64, 40), (45, 80, 61, 90))
    for module in (workload, train):
        monkeypatch.setattr(module, "LENGTHS", lengths)
        monkeypatch.setattr(module, "PADDED", 160)
    monkeypatch.setattr(workload.work, "__defaults__", (600, lengths))


def test_the_work_is_what_it_says():
    made = workload.work(1)
    assert [tuple(map(len, documents)) for documents in made.rounds] == list(workload.LENGTHS)
    again, other = workload.work(1), workload.work(2)
    assert all((a.ids == b.ids).all() for a, b in zip(made.rounds[0], again.rounds[0], strict=True))
    assert not (made.rounds[0][0].ids == other.rounds[0][0].ids).all()
    for stream in (s for documents in made.rounds for s in documents):
        assert 0 < stream.prompt_length < len(stream) and stream.target[stream.prompt_length :].all()
        assert not stream.target[: stream.prompt_length].any() and stream.ids.max() < 20_000
        share = (stream.kind == 2).mean()
        assert 0.3 < share < 0.75, "text and audio in turn"
    real = sum(sum(row) for row in workload.LENGTHS) / len(workload.LENGTHS)
    assert round(real / (4 * workload.PADDED), 2) == 0.21
    network = workload.network(made.vocab, 1, "auto")
    assert sum(p.numel() for p in network.parameters()) == 24_934_912


def test_every_way_does_the_same_work_and_the_verb_writes_it(small, tmp_path, capsys):
    out = tmp_path / "train.json"
    assert main(["bench", "train", "--repeat", "2", "--ladder", "--json", str(out)]) == 0
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    names = ["reference", "unpadded", "packed", "loss_positions", "packed_step"]
    assert list(written["ratios"]) == names and written["ratios"]["reference"] == 1.0
    assert all(name in printed for name in names) and "fewer than 5 rounds" in printed
    assert [r["work"] for r in written["rows"]] == [[224.0, 276.0]] * 5, "real tokens on every side"
    assert written["environment"]["packages"]["torch"] and all(len(r["seconds"]) == 2 for r in written["rows"])


def test_other_work_is_noticed(small, monkeypatch):
    told = argparse.Namespace(
        seed=1, device="cpu", autocast="none", attention="packed", checkpointing=False, compile=False
    )
    steps = train.Steps(workload.work(1), told, reference_loop("reference_train"))
    steps.check(["reference", "packed_step"])
    monkeypatch.setattr(steps, "_draws", lambda *a: tuple(torch.rand(s) for s in ((a[1],), (a[1], a[2]))))
    with pytest.raises(TttError, match="loss of packed_step is .* not the same work"):
        steps.check(["reference", "packed_step"])


def test_ratios_are_medians_of_rounds_and_the_table_says_them():
    slow = Timing("reference", (2.0, 4.0, 2.0, 2.0, 2.0), (8,) * 5)
    fast = Timing("packed_step", (0.5, 1.0, 0.5, 0.25, 1.0), (8,) * 5)
    found = ratios([slow, fast], "reference")
    assert found == {"reference": 1.0, "packed_step": 4.0}
    assert slow.rate == 4.0 and slow.spread == 0.0 and fast.spread == pytest.approx((16 - 8) / 2 / 16)
    text = Report("title", {"batch": "4"}, [slow, fast], {**found, "memory": 0.2}, ["a note"]).table()
    assert "4.00x" in text and "memory: 0.2x" in text and "a note" in text and "medians of 5 rounds" in text


def test_ways_take_turns_and_warm_up_rounds_do_not_count():
    calls = []
    timings = measure({"a": lambda i: calls.append(("a", i)) or 1, "b": lambda i: calls.append(("b", i)) or 2}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [t.work for t in timings] == [(1.0, 1.0), (2.0, 2.0)] and all(len(t.seconds) == 2 for t in timings)
    with pytest.raises(ConfigError, match="--repeat: must be >= 1, got 0"):
        measure({}, 0)


def test_without_a_checkout_the_reference_is_missed_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(ttt, "__file__", str(tmp_path / "site" / "ttt" / "__init__.py"))
    with pytest.raises(DataError, match="reference_train.py: the reference loop is not there.*--no-reference"):
        reference_loop("reference_train")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["train", "--json", "/nowhere/x.json"], "--json: no folder /nowhere"),
        (["train", "--json", "/"], "/: is a folder; name a file"),
        (["decode", "--repeat", "0"], "--repeat: must be >= 1, got 0"),
        (["size", "--repeat", "0"], "--repeat: must be >= 1, got 0"),
        (["loader", "--batches", "0"], "--batches: must be >= 1, got 0"),
        (["loader", "--row-tokens", "0"], "--row-tokens: must be >= 1, got 0"),
        (["loader", "--threads", "0"], "--threads: must be >= 1, got 0"),
        (["train", "--device", "cuda"], "--device: cuda asked for"),
    ],
)
def test_refusals(argv, message, capsys):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["bench", *argv]) == 2 and message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(common.os, "access", lambda path, mode: False)
    assert main(["bench", "train", "--json", str(tmp_path / "x.json")]) == 2
    assert f"--json: the folder {tmp_path} cannot be written to" in capsys.readouterr().err


def test_slope():
    timings = [Timing(str(n), (n**1.5,), (1,)) for n in (2, 4, 8)]
    assert train.fitted_slope([2, 4, 8], timings) == pytest.approx(1.5)


def test_peak_memory_sees_what_was_there_in_between():
    def run():
        block = torch.ones(32 << 20)  # 128 MiB
        del block

    assert 120 << 20 < memory._peak(run, "cpu") < 180 << 20


def test_loader_bench(capsys):
    told = ["--documents", "120", "--batches", "3", "--repeat", "1", "--no-reference"]
    assert main(["bench", "loader", *told]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("packed_loader", "unpacked_loader", "prefetching_loader", "fill"))


def test_json_is_whole_or_not_there(tmp_path):
    common.write_json(Report("t", {}), tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["ratios"] == {}
    with pytest.raises(TttError, match="--json: no folder"):
        common.write_json(Report("t", {}), tmp_path / "none" / "a.json")
