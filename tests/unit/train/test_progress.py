"""Windows, files and the progress line."""

from __future__ import annotations

import errno
import io
import json

import pytest

from ttt.train.checkpoint import DiskFullError
from ttt.train.progress import Progress, Tracker, Window
from ttt.train.step import StepReport


def test_window_means_and_round_trip():
    reports = [
        StepReport(1.0, {"ar": 1.0, "nar": 2.0}, {"nll/low": (3.0, 2.0)}, 0.5, 10),
        StepReport(3.0, {"ar": 3.0}, {"nll/low": (1.0, 2.0), "nll/high": (0.0, 0.0)}, 1.5, 30),
    ]
    whole, cut = Window(), Window()
    for report in reports:
        whole.add(report, 2.0)
        cut.add(report, 2.0)
        cut = Window(json.loads(json.dumps(cut.state())))
    expected = {
        "train/loss": 2.0, "train/loss/ar": 2.0, "train/loss/nar": 2.0, "train/grad_norm": 1.0, "train/nll/low": 1.0,
        "train/tokens_per_s": 10.0,
    }  # fmt: skip
    assert whole.flush() == expected == cut.flush()
    assert whole.flush() == {}


def test_other_ranks_write_nothing(tmp_path):
    tracker = Tracker(tmp_path, 0, enabled=False)
    tracker.write(1, {"a": 1.0})
    tracker.sync()
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    tracker = Tracker(tmp_path, 0, tensorboard=False)
    tracker.write(1, {"a": float("nan"), "b": 2.0})
    tracker.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "a": None, "b": 2.0}


def test_a_full_disk_ends_the_log_with_a_message(tmp_path):
    tracker = Tracker(tmp_path, 0, tensorboard=False)

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    tracker._log._file = Full()
    with pytest.raises(DiskFullError, match="metrics.jsonl: the disk is full; make room"):
        tracker.write(1, {"a": 1.0})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal_and_lines_elsewhere(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ttt.train.progress.time.monotonic", lambda: now[0])
    screen, pipe = Terminal(), io.StringIO()
    for stream in (screen, pipe):
        progress = Progress(100, stream=stream)
        with caplog.at_level("INFO"):
            for step in (1, 2, 3):
                now[0] += 1.0
                progress.update(step, 50 * step, 1.25, float(step))
            progress.record(3, {"train/loss": 1.25, "train/loss/ar": 1.0}, 3.0)
            progress.end()
    assert "3/100 [" in screen.getvalue() and "loss 1.2500, 50 tokens/s, ETA 0:01:37]" in screen.getvalue()
    assert pipe.getvalue() == ""
    assert [r.message for r in caplog.records] == ["step 3/100  loss 1.2500  ar 1.0000  ETA 0:01:37"]


def test_a_time_budget_bounds_the_estimate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ttt.train.progress.time.monotonic", lambda: now[0])
    progress = Progress(1000, max_seconds=10.0, stream=io.StringIO())
    for step in (1, 2):
        now[0] += 1.0
        progress.update(step, step, 1.0, float(step))
    assert progress._rates(2, 4.0)[1] == pytest.approx(6.0)
