"""What did training cost the language model?  The same text questions before and after, compared question by question.

A loss within ``margin`` is tolerated.  A metric is ``kept`` when the 95 % interval of (after - before) excludes a larger loss,
``lost`` when it proves one, else ``unclear``: more questions would tell.  For metrics where less is better the sign turns.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import ConfigError, DataError
from ttt.eval.cards import read_card
from ttt.eval.intervals import bootstrap, paired_p_value
from ttt.lab.statistics import Items, holm, mark, read_items

VERDICTS = ("kept", "unclear", "lost")


@dataclass(frozen=True)
class Change:
    """One metric of one task.  ``gained`` / ``lost_items``: questions whose score rose / fell; ``p``: two-sided, paired;
    ``p_holm``: adjusted for all rows of the table."""

    key: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    gained: int
    lost_items: int
    n: int
    p: float
    p_holm: float
    verdict: str


@dataclass(frozen=True)
class Scored:
    """What one evaluation left: its card and the statistics of its items, by task."""

    folder: Path
    card: Mapping[str, Any]
    items: Items


def read_scored(folder: str | Path) -> Scored:
    """``card.json`` and ``questions.jsonl`` of ``ttt eval``, or ``items.jsonl`` of ``ttt score``.

    Of the latter only metrics that are means over questions (accuracy, exact match).  Its card does not say what was asked, so
    only the items' names are compared.
    """
    folder = Path(folder)
    card = read_card(folder / "card.json")
    if (folder / "questions.jsonl").is_file():
        return Scored(folder, card, read_items(folder / "questions.jsonl"))
    return Scored(folder, {**card, "data": {}}, _means_only(read_items(folder / "items.jsonl")))


def is_scored(folder: Path) -> bool:
    """Does the folder hold what `read_scored` reads?"""
    return (folder / "card.json").is_file() and any((folder / n).is_file() for n in ("questions.jsonl", "items.jsonl"))


def _means_only(items: Items) -> Items:
    kept: dict[str, dict[str, dict[str, list[float]]]] = {}
    for task, of_task in items.items():
        rows: dict[str, list[Sequence[float]]] = {}
        for statistics in of_task.values():
            for metric, row in statistics.items():
                rows.setdefault(metric, []).append(row)
        shares = {m for m, r in rows.items() if all(len(x) == 2 and x[1] == 1.0 and 0.0 <= x[0] <= 1.0 for x in r)}
        kept[task] = {uid: {m: list(row) for m, row in s.items() if m in shares} for uid, s in of_task.items()}
    return kept


def compare(before: Scored, after: Scored, margin: float = 0.02, resamples: int = 1000, seed: int = 1) -> list[Change]:
    """Every metric that is a mean over questions, in the order of the tasks.

    Raises `DataError` when the two rest on other questions, or were asked in another way.
    """
    if margin < 0:
        raise ConfigError(f"--margin: must be >= 0, got {margin}")
    _check_alike(before, after)
    changes: list[Change] = []
    for task, of_task in before.items.items():
        of_task_after = after.items[task]
        for metric in dict.fromkeys(m for statistics in of_task.values() for m in statistics):
            key = f"{task}/{metric}"
            better = before.card["metrics"].get(key, {}).get("higher_is_better", metric != "unreadable")
            uids = [u for u in of_task if metric in of_task[u] and metric in of_task_after[u]]
            changes.append(_change(
                key, np.array([of_task[u][metric] for u in uids]), np.array([of_task_after[u][metric] for u in uids]),
                -1.0 if better is False else 1.0, margin, resamples, seed,
            ))  # fmt: skip
    if not changes:
        raise DataError(f"{before.folder}: no task has a score per question; choose tasks with accuracy or exact match")
    adjusted = holm([c.p for c in changes])
    return [Change(**{**asdict(c), "p_holm": p}) for c, p in zip(changes, adjusted, strict=True)]


def _check_alike(before: Scored, after: Scored) -> None:
    tasks = set(before.items), set(after.items)
    if tasks[0] != tasks[1]:
        odd = min(tasks[0] ^ tasks[1])
        raise DataError(
            f"task {odd!r} is only in {(before if odd in tasks[0] else after).folder}; evaluate both on the same tasks"
        )
    for task, of_task in before.items.items():
        if set(of_task) != set(after.items[task]):
            odd = min(set(of_task) ^ set(after.items[task]))
            raise DataError(
                f"task {task!r}: question {odd!r} was asked only once; evaluate both with the same data and --limit"
            )
    asked = [{**s.card["decode"], "data": s.card["data"]} for s in (before, after)]
    for name in ("tasks", "data", "protocol", "limit", "chat", "system", "shots", "vocabulary", "harness"):
        if asked[0].get(name) != asked[1].get(name):
            raise DataError(
                f"{before.folder} and {after.folder} were evaluated in different ways ({name}: {asked[0].get(name)!r:.80} and "
                f"{asked[1].get(name)!r:.80}); evaluate them again alike"
            )


def _change(
    key: str, before: np.ndarray, after: np.ndarray, sign: float, margin: float, resamples: int, seed: int
) -> Change:
    """``before``, ``after``: statistics f64 [n, 2] (score, 1) of the same questions."""
    moved = after[:, 0] - before[:, 0]
    value = bootstrap(np.stack([moved, np.ones(len(moved))], 1), _mean, resamples, seed)
    # the direction in which a loss is negative
    worst, best = sorted((sign * value.low, sign * value.high))
    verdict = "kept" if worst >= -margin else "lost" if best < -margin else "unclear"
    return Change(
        key, _mean(before.sum(0)), _mean(after.sum(0)), value.value, value.low, value.high, int((sign * moved > 0).sum()),
        int((sign * moved < 0).sum()), len(moved), paired_p_value(before, after, _mean, resamples, seed), math.nan, verdict,
    )  # fmt: skip


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def guard_table(changes: Sequence[Change], title: str, margin: float) -> str:
    """The comparison for a terminal; scores in per cent."""
    header = ("task/metric", "before", "after", "change", "95 % interval", "better/worse", "n", "p (Holm)", "")
    lines = [header]
    for c in changes:
        lines.append((
            c.key, f"{100 * c.before:.1f}", f"{100 * c.after:.1f}", f"{100 * c.difference:+.1f}",
            f"{100 * c.low:+.1f} to {100 * c.high:+.1f}", f"{c.gained}/{c.lost_items}", str(c.n),
            f"{c.p_holm:.3f}{mark(c.p_holm)}", c.verdict,
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    note = (
        f"kept: a loss of more than {100 * margin:g} points is excluded; lost: it is proven; unclear: neither, more questions "
        "would tell.  Intervals and p-values are paired by question; * p < 0.05, ** p < 0.01."
    )
    return "\n".join([title, *body, *textwrap.wrap(note, 100)])


def guard_record(changes: Sequence[Change], before: Scored, after: Scored, margin: float) -> dict[str, Any]:
    """``guard.json``."""
    return {
        "format": "ttt-guard-1", "before": str(before.folder), "after": str(after.folder), "margin": margin,
        "changes": [asdict(c) for c in changes], "decode": before.card["decode"],
        "verdict": max((c.verdict for c in changes), key=VERDICTS.index), "versions": before.card["versions"],
    }  # fmt: skip
