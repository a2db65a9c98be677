"""Plots: files that can be opened, of what was asked; no display, no global matplotlib state."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from ttt.errors import DataError
from ttt.eval import plots
from ttt.io.metrics_log import read_metrics


def test_log_is_read_flat_and_a_half_written_last_line_is_let_pass(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "train": {"loss": {"ar": 2.0, "nar": 3.0}}}, {"step": 2, "train/loss/ar": 1.0, "lr": 0.1}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "tr')
    curves = plots.curves(read_metrics(path))
    assert sorted(curves) == ["train/loss/ar", "train/loss/nar"]
    assert curves["train/loss/ar"][0].tolist() == [1, 2] and curves["train/loss/ar"][1].tolist() == [2.0, 1.0]


def test_loss_curves(tmp_path):
    records = [
        {"step": s, "train/loss": 1 / s, "train/loss/ar": 2 / s, "train/loss/nar": 3 / s, "dev/loss/ar": 2 / s}
        for s in range(1, 60)
    ]
    assert plots.loss_curves(records, tmp_path / "loss.png")
    height, width = imread(tmp_path / "loss.png").shape[:2]
    assert width > 2.5 * height  # three panels
    assert not plots.loss_curves([{"step": 1, "lr": 0.1}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_running_mean_equals_a_loop():
    x = np.random.default_rng(0).normal(size=101)
    x[5] = np.nan
    half = 101 // 40
    slow = [np.nanmean(x[max(0, i - half) : i + half + 1]) for i in range(101)]
    np.testing.assert_allclose(plots._running_mean(x), slow)


def test_mask_picture_shows_the_modality_looked_at(tmp_path):
    kind = np.array([1, 1, 2, 2], dtype=np.uint8)
    allowed = np.tril(np.ones((4, 4), dtype=bool))
    assert plots.mask_picture(allowed, kind, tmp_path / "mask.png")
    rgb = np.rint(imread(tmp_path / "mask.png")[..., :3] * 255).astype(int).reshape(-1, 3)
    text, audio = np.array([0x2B, 0x6C, 0xB0]), np.array([0xDD, 0x6B, 0x20])
    assert all((rgb == color).all(1).mean() > 0.02 for color in (text, audio))  # the strips
    seen = {}
    for name, color in (("text", text), ("audio", audio)):
        cell = 0.35 * 255 + 0.65 * color
        seen[name] = (np.abs(rgb - cell) <= 1).all(1).sum()
    assert seen["text"] / seen["audio"] == pytest.approx(7 / 3, rel=0.1)  # 7 cells look at text, 3 at audio
    with pytest.raises(DataError, match=r"allowed \[T, T\]"):
        plots.mask_picture(allowed, kind[:3], tmp_path / "no.png")


def test_mel_pair_and_bars(tmp_path):
    mels = [("a: said", np.random.default_rng(0).normal(size=(40, 90))), ("b", np.zeros((40, 150)))]
    assert plots.mel_pair(mels, tmp_path / "mel.png", 0.01, "uid")
    assert not plots.mel_pair([("a", np.zeros((40, 0)))], tmp_path / "no.png", 0.01)
    values = {
        "asr/wer": {"value": 0.1, "low": 0.05, "high": 0.2, "n": 9, "higher_is_better": False},
        "unseen_voice/asr/wer": {"value": 0.3, "low": None, "high": None, "n": 1, "higher_is_better": False},
        "qa/accuracy": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 9, "higher_is_better": True},
        "qa/bad": {"value": None, "low": None, "high": None, "n": 0, "higher_is_better": True},
    }
    assert plots.metric_bars(values, tmp_path / "bars.png", "demo")
    assert not plots.metric_bars({}, tmp_path / "no.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bars.png", "mel.png"]


def test_no_global_state():
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
