"""Statistics of a table: rows (systems) x seeds x items -> means, intervals, tests against a baseline row.

Seeds and items are crossed: every seed answers the same items.  Means and standard deviations are over seeds; intervals
resample seeds and items (`bootstrap_two_level`); tests resample both systems with the same seeds and items; p-values of one
metric are adjusted for its number of rows by Holm's method (Holm 1979).

Letters: ``s`` seeds, ``n`` items, ``k`` statistics of a metric, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ttt.data.read.examples import read_records
from ttt.errors import DataError
from ttt.eval.cards import key_prefix
from ttt.eval.intervals import Total, bootstrap_two_level
from ttt.eval.report_tables import bound
from ttt.interfaces import Metric
from ttt.lab.grid_tables import GridCell, GridColumn
from ttt.rng import derive_seed

Items = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]  # group ("unseen_voice/asr") -> uid -> metric -> [k]
LEVELS = ((0.01, "**"), (0.05, "*"))
TIMED = ("rtf", "first_block_latency")  # measured by the clock, so never the same twice
_CHUNK = 2_000_000  # weights held in memory at a time


@dataclass(frozen=True)
class Measured:
    """One metric of the table: its key (``unseen_voice/asr/wer``), how it is printed, and the metric itself."""

    key: str
    label: str
    metric: Metric

    @property
    def group(self) -> str:
        """Split and task: ``unseen_voice/asr``."""
        return self.key.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The metric's name within its task."""
        return self.key.rpartition("/")[2]

    def column(self) -> GridColumn:
        """As the table's printers want it."""
        better = None if hasattr(self.metric, "best") else self.metric.higher_is_better
        return GridColumn(self.key, self.label, getattr(self.metric, "unit", "score"), better)


def read_items(path: str | Path) -> Items:
    """Statistics of every item of an evaluator's ``items.jsonl``."""
    items: dict[str, dict[str, dict[str, list[float]]]] = {}
    for where, record in read_records(Path(path)):
        try:
            group = key_prefix(str(record.get("split", ""))) + str(record["task"])
            statistics = {str(name): [float(x) for x in row] for name, row in record["statistics"].items()}
            of_group = items.setdefault(group, {})
            if record["uid"] in of_group:
                raise DataError(f"{where}: item {record['uid']!r} of {group!r} is there twice; score again")
            of_group[record["uid"]] = statistics
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: not a scored item: {error!r}; score again") from error
    return items


def statistics_of(seeds: Mapping[int, Items], measured: Measured, at: str = "") -> tuple[np.ndarray, list[str]] | None:
    """f64 [s, n, k] and the items' uids, seeds in order; None when the metric applies to no item.

    An item to which the metric does not apply under one seed (no block, so no latency) adds nothing there: zeros.  Raises
    `DataError` when the seeds answered different items.
    """
    groups = {seed: items.get(measured.group, {}) for seed, items in sorted(seeds.items())}
    if not groups:
        return None
    first, *others = groups
    for other in others:
        if set(groups[other]) != set(groups[first]):
            odd = min(set(groups[other]) ^ set(groups[first]))
            raise DataError(
                f"{at}{measured.group}: seeds {first} and {other} answered different items, e.g. {odd!r}; score them again"
            )
    uids = sorted(u for u in groups[first] if any(measured.name in g[u] for g in groups.values()))
    width = max((len(g[u][measured.name]) for g in groups.values() for u in uids if measured.name in g[u]), default=0)
    if not uids:
        return None
    out = np.zeros((len(groups), len(uids), width))
    for i, group in enumerate(groups.values()):
        for j, uid in enumerate(uids):
            if measured.name in group[uid]:
                out[i, j] = group[uid][measured.name]
    return out, uids


def summarize(statistics: np.ndarray, total: Total, seeds: Sequence[int], resamples: int, seed: int = 1) -> GridCell:
    """Mean and standard deviation over seeds, interval over seeds and items; ``statistics`` f64 [s, n, k]."""
    scores = [float(total(one.sum(0))) for one in statistics]
    known = [x for x in scores if np.isfinite(x)]
    value = bootstrap_two_level(statistics, total, resamples, seed)
    return GridCell(
        value=float(np.mean(known)) if known else None,
        sd=float(np.std(known, ddof=1)) if len(known) > 1 else None,
        low=value.low if np.isfinite(value.low) else None,
        high=value.high if np.isfinite(value.high) else None,
        n=value.n, seeds=tuple(seeds), scores=tuple(x if np.isfinite(x) else None for x in scores),
    )  # fmt: skip


def paired_p_value_two_level(a: np.ndarray, b: np.ndarray, total: Total, resamples: int = 1000, seed: int = 1) -> float:
    """Two-sided p-value that two systems differ on the same seeds and items; ``a``, ``b`` f64 [s, n, k].

    Both are resampled with the same seeds and items, drawn independently and crossed.  With d the difference of the
    pooled scores and d* its resamples, p = (1 + #{|d* - d| >= |d|}) / (1 + R); s = 1 resamples items alone.
    """
    if a.shape != b.shape or a.ndim != 3:
        raise DataError(f"paired test: need the same seeds and items [s, n, k], got {list(a.shape)} and {list(b.shape)}")
    s, n, _ = a.shape
    d = float(total(a.sum((0, 1)))) - float(total(b.sum((0, 1))))
    rng = np.random.default_rng(derive_seed(seed, "paired"))
    step = max(1, _CHUNK // n)
    away, drawn = 0, 0
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        items = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        seeds = rng.multinomial(s, np.full(s, 1 / s), size=size).astype(np.float64)
        sums = [np.einsum("rs,rsk->rk", seeds, np.einsum("rn,snk->rsk", items, x)) for x in (a, b)]
        other = np.array([total(x) - total(y) for x, y in zip(*sums, strict=True)])
        other = other[np.isfinite(other)]  # a resample may lack what is divided by
        away += int(np.sum(np.abs(other - d) >= abs(d) - 1e-12))
        drawn += len(other)
    return (1 + away) / (1 + drawn)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: (m - i) p of the i-th smallest (from 0), made monotone, at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def mark(p: float | None) -> str:
    """Stars of an adjusted p-value.

    >>> mark(0.009), mark(0.01), mark(0.2), mark(None)
    ('**', '*', '', '')
    """
    return next((stars for level, stars in LEVELS if p is not None and p < level), "")


def column(
    rows: Mapping[str, Mapping[int, Items]], measured: Measured, baseline: str, resamples: int = 1000, seed: int = 1
) -> dict[str, GridCell]:
    """One metric of every row.  ``rows``: row -> seed -> items; rows where it applies to nothing are left out.

    A row is tested against ``baseline`` on the seeds that both have; p-values are adjusted over the tested rows.
    """
    cells: dict[str, GridCell] = {}
    p_values: dict[str, float] = {}
    for row, seeds in rows.items():
        of_row = statistics_of(seeds, measured, f"row {row}: ")
        if of_row is None:
            continue
        cells[row] = summarize(of_row[0], measured.metric.total, sorted(seeds), resamples, seed)
        if row != baseline and (p := _p_value(rows, row, baseline, measured, resamples, seed)) is not None:
            p_values[row] = p
    for row, adjusted in zip(p_values, holm(list(p_values.values())), strict=True):
        cells[row] = replace(cells[row], p=p_values[row], p_adjusted=adjusted, mark=mark(adjusted))
    return _best(cells, measured)


def _p_value(
    rows: Mapping[str, Mapping[int, Items]], row: str, baseline: str, measured: Measured, resamples: int, seed: int
) -> float | None:
    """p-value on the shared seeds; None when there are none, or nothing to compare."""
    shared = sorted(set(rows[row]) & set(rows.get(baseline, {})))
    if not shared:
        return None
    both = {s: {measured.group: _union(rows[row][s], rows[baseline][s], measured, row, baseline)} for s in shared}
    union = statistics_of(both, measured)
    if union is None:
        return None
    shape, uids = union[0].shape, union[1]
    of_row, of_baseline = np.zeros(shape), np.zeros(shape)
    for i, s in enumerate(shared):
        for j, uid in enumerate(uids):
            for out, items in ((of_row, rows[row][s]), (of_baseline, rows[baseline][s])):
                statistics = items[measured.group][uid].get(measured.name)
                if statistics is not None:
                    out[i, j] = statistics
    if not all(np.isfinite(measured.metric.total(x.sum((0, 1)))) for x in (of_row, of_baseline)):
        return None
    return paired_p_value_two_level(of_row, of_baseline, measured.metric.total, resamples, seed)


def _union(a: Items, b: Items, measured: Measured, row: str, baseline: str) -> dict[str, Any]:
    """uid -> the statistics that either system has.  Raises `DataError` when they answered different items."""
    of_a, of_b = a.get(measured.group, {}), b.get(measured.group, {})
    if set(of_a) != set(of_b):
        odd = min(set(of_a) ^ set(of_b))
        raise DataError(
            f"{measured.group}: rows {row!r} and {baseline!r} answered different items, e.g. {odd!r}; score them again"
        )
    return {uid: {**of_b[uid], **of_a[uid]} for uid in of_a}


def _best(cells: Mapping[str, GridCell], measured: Measured) -> dict[str, GridCell]:
    """Mark the best mean (all that share it), where there is a better direction and not all are the same."""
    better = measured.column().higher_is_better
    known = [c.value for c in cells.values() if c.value is not None]
    if better is None or len(set(known)) < 2:
        return dict(cells)
    best = max(known) if better else min(known)
    return {row: replace(c, best=c.value == best) for row, c in cells.items()}


def repeated_value(old: Mapping[str, Any], new: Mapping[str, Any] | None, name: str) -> tuple[bool, str]:
    """Does a repeated value lie in the card's interval?  ``old``, ``new``: entries of two cards; -> (ok, in words).

    Times are compared in words, but never count as missed.
    """
    unit = str(old.get("unit", "score"))
    if new is None:
        return False, "not measured again"
    if old["value"] is None or new["value"] is None:
        same = old["value"] is None and new["value"] is None
        return same, "not defined, as before" if same else "defined only once"
    if new["value"] == old["value"]:
        return True, "identical"
    slack = 1e-9 * max(1.0, abs(old["value"]))
    below, above = old["low"] - new["value"], new["value"] - old["high"]
    if below <= slack and above <= slack:
        return True, "inside the 95 % interval"
    far = f"{bound(max(below, above), unit)} {'below' if below > above else 'above'} the 95 % interval"
    return (True, f"{far} (a time: not counted)") if name in TIMED else (False, f"outside: {far}")
