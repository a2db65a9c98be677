"""Statistics of ablation tables: by hand, against slow twins, and on planted differences."""

from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
import pytest

from ttt.errors import DataError
from ttt.eval.metrics import Accuracy, FirstBlockLatency, LengthRatio, Wer
from ttt.lab import grid_plots, grid_tables
from ttt.lab.grid_tables import GridCell, GridColumn, GridRow
from ttt.lab.statistics import (
    Measured,
    column,
    holm,
    mark,
    paired_p_value_two_level,
    read_items,
    repeated_value,
    statistics_of,
    summarize,
)

WER = Measured("asr/wer", "ASR WER", Wer())
RIGHT = Measured("qa/accuracy", "QA", Accuracy())


def mean(s: np.ndarray) -> float:
    return float(s[0] / s[1])


def shares(*seeds: list[int]) -> np.ndarray:
    """Right or wrong by seed and item -> f64 [s, n, 2]."""
    x = np.asarray(seeds, dtype=float)
    return np.stack([x, np.ones_like(x)], -1)


def items(right: list[int], group: str = "qa", name: str = "accuracy") -> dict:
    return {group: {f"u{i}": {name: [float(x), 1.0]} for i, x in enumerate(right)}}


def write_items(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_items_are_read_by_split_and_task(tmp_path):
    path = write_items(tmp_path / "items.jsonl", [
        {"uid": "a", "task": "asr", "split": "test", "statistics": {"wer": [1, 0, 0, 4]}},
        {"uid": "a", "task": "asr", "split": "test_unseen_voice", "statistics": {"wer": [0, 0, 0, 4]}},
    ])  # fmt: skip
    read = read_items(path)
    assert read == {"asr": {"a": {"wer": [1, 0, 0, 4]}}, "unseen_voice/asr": {"a": {"wer": [0, 0, 0, 4]}}}
    write_items(path, [{"uid": "a", "task": "asr", "statistics": {}}] * 2)
    with pytest.raises(DataError, match=r"items\.jsonl:2: item 'a' of 'asr' is there twice"):
        read_items(path)
    write_items(path, [{"uid": "a", "task": "asr"}])
    with pytest.raises(DataError, match=r"items\.jsonl:1: not a scored item: KeyError\('statistics'\)"):
        read_items(path)


def test_mean_and_sd_over_seeds_by_hand():
    # Errors over words by seed: 1/4, 3/6, so mean 0.375 and sd |0.25 - 0.5| / sqrt 2; pooled would be 4/10.
    one = {"asr": {"a": {"wer": [1, 0, 0, 2]}, "b": {"wer": [0, 0, 0, 2]}}}
    two = {"asr": {"a": {"wer": [0, 1, 1, 2]}, "b": {"wer": [1, 0, 0, 4]}}}
    statistics, uids = statistics_of({2: two, 1: one}, WER)
    assert uids == ["a", "b"] and statistics.shape == (2, 2, 4)
    cell = summarize(statistics, WER.metric.total, [1, 2], 200)
    assert cell.scores == (0.25, 0.5) and cell.value == 0.375 and cell.sd == pytest.approx(0.25 / np.sqrt(2))
    assert cell.n == 2 and cell.seeds == (1, 2) and cell.low <= cell.value <= cell.high
    alone = summarize(statistics[:1], WER.metric.total, [1], 200)
    assert alone.sd is None and alone.value == 0.25


def test_intervals_equal_full_enumeration():
    # One seed, two items: resamples are (aa, ab, ba, bb) with scores 0, 1/2, 1/2, 1: quantiles at 2.5 and 97.5 % are 0 and 1.
    cell = summarize(shares([0, 1]), mean, [1], 4000)
    assert (cell.low, cell.high) == (0.0, 1.0)
    # Two seeds that disagree on all items: seeds alone move the score, by (0, 1/2, 1) with (1/4, 1/2, 1/4).
    cell = summarize(shares([0] * 9, [1] * 9), mean, [1, 2], 4000)
    assert (cell.value, cell.low, cell.high) == (0.5, 0.0, 1.0)


def test_items_without_a_statistic_add_nothing():
    latency = Measured("tts/first_block_latency", "latency", FirstBlockLatency())
    one = {"tts": {"a": {"first_block_latency": [2.0, 1.0]}, "b": {}, "c": {}}}
    two = {"tts": {"a": {}, "b": {"first_block_latency": [4.0, 1.0]}, "c": {}}}
    statistics, uids = statistics_of({1: one, 2: two}, latency)
    assert uids == ["a", "b"]  # c has none under any seed
    assert summarize(statistics, latency.metric.total, [1, 2], 50).scores == (2.0, 4.0)
    assert statistics_of({1: {"tts": {"c": {}}}}, latency) is None and statistics_of({}, latency) is None


def test_seeds_must_answer_the_same_items():
    with pytest.raises(DataError, match="row x: qa: seeds 1 and 2 answered different items, e.g. 'u2'"):
        column({"x": {1: items([1, 0]), 2: items([1, 0, 1])}}, RIGHT, "x")
    with pytest.raises(DataError, match="rows 'y' and 'x' answered different items, e.g. 'u2'"):
        column({"x": {1: items([1, 0])}, "y": {1: items([1, 0, 1])}}, RIGHT, "x")


def test_paired_p_value_equals_enumeration_of_all_resamples():
    """Two seeds and three items: 4 x 27 equally likely resamples can be listed."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 1.0, (2, 3, 1)), rng.normal(0.0, 1.0, (2, 3, 1))
    a, b = (np.concatenate([x, np.ones_like(x)], -1) for x in (a, b))
    d = mean(a.sum((0, 1))) - mean(b.sum((0, 1)))
    hits = 0
    for seeds, drawn in itertools.product(itertools.product(range(2), repeat=2), itertools.product(range(3), repeat=3)):
        x, y = (z[list(seeds)][:, list(drawn)].sum((0, 1)) for z in (a, b))
        hits += abs(mean(x) - mean(y) - d) >= abs(d) - 1e-12
    assert 0.02 < hits / 108 < 0.9  # the example is no trivial one
    p = paired_p_value_two_level(a, b, mean, 20_000)
    assert p == pytest.approx(hits / 108, abs=0.012)  # 3.5 standard errors of 20,000 draws


def test_paired_p_value_knows_a_planted_difference_from_none():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=(3, 100, 1))
    base = np.concatenate([hard, np.ones_like(hard)], -1)
    better = base + np.array([0.3, 0.0]) + 0.1 * rng.normal(size=base.shape) * np.array([1, 0])
    assert paired_p_value_two_level(better, base, mean, 999) == pytest.approx(1 / 1000)
    assert paired_p_value_two_level(base, base, mean, 99) == 1.0
    # One seed that is better by luck among three is no evidence, however many items there are.
    lucky = base.copy()
    lucky[0, :, 0] += 0.3
    assert paired_p_value_two_level(lucky, base, mean, 999) > 0.1
    with pytest.raises(DataError, match="same seeds and items"):
        paired_p_value_two_level(base, base[:, :50], mean)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # x3, x1 (not below 0.06), x2, x4
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == [] and holm([0.04]) == [0.04]
    assert [mark(p) for p in (0.0, 0.0099, 0.01, 0.049, 0.05, None)] == ["**", "**", "*", "*", "", ""]


def test_column_tests_against_the_baseline_and_marks_the_best():
    rng = np.random.default_rng(2)
    base = {s: items(list((rng.random(80) < 0.3).astype(int))) for s in (1, 2, 3)}
    good = {s: {"qa": {u: {"accuracy": [float(x["accuracy"][0] or i % 2), 1.0]}
                       for i, (u, x) in enumerate(base[s]["qa"].items())}} for s in base}  # fmt: skip
    cells = column({"base": base, "good": good, "same": {1: base[1], 2: base[2]}, "none": {}}, RIGHT, "base", 999)
    assert list(cells) == ["base", "good", "same"]
    assert cells["base"].p is None and cells["base"].mark == ""
    assert cells["good"].p == pytest.approx(1 / 1000) and cells["good"].p_adjusted == pytest.approx(2 / 1000)
    assert cells["good"].mark == "**" and cells["good"].best and not cells["base"].best
    assert cells["same"].p == 1.0 and cells["same"].seeds == (1, 2) and cells["same"].mark == ""
    # The same numbers whatever else is in the table, but for Holm's factor.
    alone = column({"base": base, "good": good}, RIGHT, "base", 999)
    assert alone["good"].p_adjusted == pytest.approx(1 / 1000) and alone["base"] == cells["base"]


def test_nothing_is_best_where_no_direction_is_better_or_all_agree():
    length = Measured("tts/length_ratio", "length", LengthRatio())
    rows = {"a": {1: items([1, 1], "tts", "length_ratio")}, "b": {1: items([1, 0], "tts", "length_ratio")}}
    assert not any(c.best for c in column(rows, length, "a", 20).values())
    assert not any(c.best for c in column({"a": {1: items([1])}, "b": {1: items([1])}}, RIGHT, "a", 20).values())
    # A baseline without the metric: values, no test.
    assert column({"a": {}, "b": {1: items([1, 0])}}, RIGHT, "a", 20)["b"].p is None


@pytest.mark.parametrize(
    ("value", "name", "ok", "words"),
    [
        (0.2, "wer", True, "identical"),
        (0.3, "wer", True, "inside the 95 % interval"),
        (0.35, "wer", False, "outside: 5.0 above the 95 % interval"),
        (0.07, "wer", False, "outside: 3.0 below the 95 % interval"),
        (0.35, "rtf", True, "5.0 above the 95 % interval (a time: not counted)"),
        (None, "wer", False, "defined only once"),
    ],
)
def test_outcome_of_a_repetition(value, name, ok, words):
    old = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 9, "unit": "rate"}
    assert repeated_value(old, {**old, "value": value}, name) == (ok, words)
    assert repeated_value(old, None, name) == (False, "not measured again")


# ------------------------------------------------------------------------------------------------- printing

COLUMNS = [GridColumn("asr/wer", "ASR WER", "rate", False), GridColumn("t/l", "length", "ratio")]
ROWS = [
    GridRow("base", "Base & co", {"asr/wer": GridCell(0.25, 0.01, 0.2, 0.3, 50, (1, 2), (0.24, 0.26))}),
    GridRow("new", "new_50%", {
        "asr/wer": GridCell(0.125, None, 0.1, 0.15, 50, (1,), (0.125,), 0.004, 0.008, "**", True),
        "t/l": GridCell(1.0, None, 0.9, 1.1, 50, (1,), (1.0,)),
    }, "seed 2 failed"),
]  # fmt: skip


def test_grid_text():
    text = grid_tables.grid_text(COLUMNS, ROWS, "Title", ["A note."])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert f"{'Base & co':25}{'25.0 ±1.0 [20.0, 30.0]':>24} {'-':>24}" in lines
    assert f"{'new_50% †':25}{'12.5 [10.0, 15.0]**':>24} {'1.000 [0.900, 1.100]':>24}" in lines
    assert "† new_50%: seed 2 failed." in lines and "A note." in lines
    wide = GridRow("w", "w", {"asr/wer": GridCell(12.345, 10.5, 10.0, 123.45, 9)})
    assert "1234.5 ±1050.0 [1000.0, 12345.0]" in grid_tables.grid_text(COLUMNS, [wide], "T")


def test_grid_markdown_and_latex():
    page = grid_tables.grid_markdown(COLUMNS, ROWS, "Title", ["* p < 0.05"])
    assert "| | ASR WER (%) ↓ | length |\n|---|---|---|\n| Base & co | 25.0 ±1.0 [20.0, 30.0] | - |" in page
    assert r"| new_50% † | **12.5** [10.0, 15.0]\*\* | 1.000 [0.900, 1.100] |" in page and r"\* p < 0.05" in page
    tex = grid_tables.grid_latex(COLUMNS, ROWS, "Title", ["* p < 0.05"])
    assert r" & ASR WER (\%) $\downarrow$ & length \\" in tex and r"Base \& co & 25.0 $\pm$ 1.0 [20.0, 30.0] & -- \\" in tex
    assert r"new\_50\%\textsuperscript{\dag} & \textbf{12.5} [10.0, 15.0]\textsuperscript{**} & 1.000" in tex
    assert tex.count(r"\begin{") == tex.count(r"\end{") and r"p \textless{} 0.05" in tex


def test_grid_csv_holds_full_numbers():
    rows = list(csv.DictReader(io.StringIO(grid_tables.grid_csv(COLUMNS, ROWS))))
    assert [(r["row"], r["metric"]) for r in rows] == list(itertools.product(["base", "new"], ["asr/wer", "t/l"]))
    assert rows[0]["mean"] == "0.25" and rows[0]["scores"] == "0.24 0.26" and rows[0]["seeds"] == "1 2"
    assert rows[1]["mean"] == "" and rows[2]["p_holm"] == "0.008" and rows[2]["status"] == "seed 2 failed"


def test_plots(tmp_path):
    assert grid_plots.ablation_panels(COLUMNS, ROWS, tmp_path / "plot.png", "t", "base")
    assert not grid_plots.ablation_panels(COLUMNS, [GridRow("a", "a", {})], tmp_path / "no.png")
    cost, quality = GridCell(30.0, None, 29.0, 31.0, 9), GridCell(0.5, None, 0.4, 0.6, 9)
    panel = (COLUMNS[0], [("fast", cost, quality), ("silent", GridCell(None, None, None, None, 0), quality)])
    assert grid_plots.frontier([panel], tmp_path / "frontier.png", "t")
    assert not grid_plots.frontier([(COLUMNS[0], panel[1][1:])], tmp_path / "no.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frontier.png", "plot.png"]


def test_a_legend_takes_no_more_columns_than_fit():
    names = ["a", "whole canvas, random order, low confidence"]
    assert grid_plots.legend_columns(names, 4.0) == 1 and grid_plots.legend_columns(names, 8.0) == 2
    assert grid_plots.legend_columns(["a", "b"], 4.0) == 3
