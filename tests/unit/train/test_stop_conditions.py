"""Limits on time and tokens: spelled as schedulers do, a whole stop, an exact way on."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import ToyLoader, lines, trainer

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError
from ttt.train.checkpoint import read_state
from ttt.train.stop_conditions import reached, seconds_of, time_limit_s


@pytest.mark.parametrize("spelled", ("1:2", "1-00", "soon", "-5", "0", "nan", "inf", "1:99:00"))
def test_what_is_no_time_is_refused(spelled):
    with pytest.raises(ConfigError, match=r"^train\.max_time: expected D-HH:MM:SS, HH:MM:SS or seconds > 0, got"):
        seconds_of(spelled)


def test_the_nearer_limit_counts():
    assert time_limit_s(TrainSection(steps=1)) == 0.0
    assert time_limit_s(TrainSection(steps=1, max_time="0-00:01:00", max_seconds=90)) == 60.0
    train = TrainSection(steps=10, max_time="60", max_tokens=100)
    assert [reached(train, *at) for at in ((9, 99, 59.0), (10, 100, 60.0), (9, 100, 60.0), (9, 100, 59.0))] == [
        "", "steps", "max_time", "max_tokens",
    ]  # fmt: skip
    assert seconds_of("2-00:00:00") == 172800


def test_a_run_stopped_by_tokens_validates_saves_and_goes_on_exactly(tmp_path):
    whole = trainer(tmp_path / "whole").run()
    seen = {r["step"]: r["train/tokens"] for r in lines(tmp_path / "whole") if "train/tokens" in r}
    report = trainer(tmp_path / "cut", max_tokens=seen[3] + 1, save_every_steps=0).run()
    assert (report.stopped, report.exit_code) == ("max_tokens", 0) and 3 < report.step < 12
    assert "dev/loss" in report.metrics and read_state(report.checkpoint).tokens > seen[3]
    again = trainer(tmp_path / "cut", max_tokens=seen[3] + 1).run()
    assert again.step == report.step, "nothing left to do"
    end = trainer(tmp_path / "cut").run()
    assert end.step == whole.step == 12
    for part in ("model/model.safetensors", "engine/optimizer.safetensors"):
        one, other = (load_file(r.checkpoint / part) for r in (whole, end))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_stopped_by_time_says_so(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ttt.train.trainer.time.monotonic", lambda: now[0])

    class Loader(ToyLoader):
        def micro_batch(self, update, index):
            now[0] += 0.5
            return super().micro_batch(update, index)

    report = trainer(tmp_path, Loader(), max_time="0-00:00:05").run()
    assert (report.step, report.stopped) == (5, "max_time")
