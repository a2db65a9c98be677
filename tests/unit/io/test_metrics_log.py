"""The training log: written, cut back, read."""

import json

import pytest

from ttt.errors import DataError
from ttt.io.metrics_log import MetricsLog, cut_back, read_metrics


def test_a_log_goes_on_from_a_step_without_double_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.append(step, {"train/loss": float(step), "train/lr": float("nan")})
    log.sync()
    log.close()
    with path.open("a") as lines:
        lines.write('{"step": 4, "trai')  # killed in a write
    log = MetricsLog(path, 2)
    log.append(3, {"train/loss": 9.0})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert read_metrics(path)[1:] == [{"step": 2, "train/loss": 2.0, "train/lr": None}, {"step": 3, "train/loss": 9.0}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_cut_back_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert cut_back(path, 3) == 0
    path.write_text('{"step": 1}\n{"step": 5}\n[]\n{"step"')
    assert cut_back(path, 3) == 3 and path.read_text() == '{"step": 1}\n'


READ = [
    ('{"step": 1, "train": {"loss": 2.0, "x": {"y": 1}}}\n', [{"step": 1, "train/loss": 2.0, "train/x/y": 1}]),
    ('{"step": 1}\n\n{"step": 2.0}\n{"st', [{"step": 1}, {"step": 2}]),
    ("", []),
]
FAULTS = [
    ('{"step"\n{"step": 1}\n', "m.jsonl:1: not JSON"),
    ('[]\n{"step": 1}\n', "m.jsonl:1: expected an object, got list"),
    ('{"loss": 1}\n', "m.jsonl:1: 'step' must be a number, got None"),
    ('{"step": true}\n', "m.jsonl:1: 'step' must be a number, got True"),
]


@pytest.mark.parametrize(("text", "rows"), READ)
def test_reading(tmp_path, text, rows):
    (tmp_path / "m.jsonl").write_text(text)
    assert read_metrics(tmp_path / "m.jsonl") == rows


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_name_the_line(tmp_path, text, message):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_metrics(tmp_path / "m.jsonl")


def test_no_log(tmp_path):
    with pytest.raises(DataError, match="no such training log"):
        read_metrics(tmp_path / "m.jsonl")
