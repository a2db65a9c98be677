"""Tables of a report: rows are metrics, columns are splits; text of at most 100 columns, or Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 100
_LABEL, _CELL = 39, 30
COLUMN_NAMES = {"": "seen voices", "unseen_voice/": "unseen voices"}
_SMALL = 100  # a note is printed for metrics over fewer items than this


@dataclass(frozen=True)
class Row:
    """One metric.  ``cells``: column (a key prefix) -> entry {value, low, high, n}; ``section`` groups rows."""

    section: str
    name: str
    unit: str
    cells: Mapping[str, Mapping[str, Any]]
    higher_is_better: bool | None = None

    def n_smallest(self) -> int:
        """Fewest items behind any of its numbers."""
        return min((c["n"] for c in self.cells.values() if c["n"]), default=0)


def number(value: float | None, unit: str) -> str:
    """A value as it is printed: rates in per cent.

    >>> [number(0.1234, u) for u in ("rate", "ratio", "s", "1/s", "score")] + [number(None, "rate")]
    ['12.3%', '0.123', '0.123 s', '0.12/s', '0.12', '-']
    """
    if value is None:
        return "-"
    if unit == "rate":
        return f"{100 * value:.1f}%"
    if unit in ("ratio", "s"):
        return f"{value:.3f}" + (" s" if unit == "s" else "")
    return (
        f"{value:.1f}" + ("/s" if unit == "1/s" else "")
        if value >= 1
        else f"{value:.2f}" + ("/s" if unit == "1/s" else "")
    )


def bound(value: float | None, unit: str) -> str:
    """A number without its unit, which stands beside it.

    >>> bound(0.1234, "rate"), bound(None, "rate")
    ('12.3', '-')
    """
    return number(value, unit).removesuffix("%").removesuffix("/s").removesuffix(" s")


def interval(entry: Mapping[str, Any], unit: str) -> str:
    """``[low, high]`` in the unit of the value."""
    return f"[{bound(entry['low'], unit):>5}, {bound(entry['high'], unit):>5}]"


def text_table(rows: Sequence[Row], title: str, notes: Sequence[str] = (), alert: str = "") -> str:
    """The terminal form.  ``alert`` stands above, framed by exclamation marks; ``notes`` below."""
    columns = _columns(rows)
    lines = ["=" * WIDTH, title]
    if alert:
        lines += textwrap.wrap(f"!! NOT A FULL RUN: {alert} !!", WIDTH)
    for pair in [columns[i : i + 2] for i in range(0, len(columns), 2)] or [[]]:
        lines.append("-" * WIDTH)
        heads = [f"{COLUMN_NAMES.get(c, c.rstrip('/')):^{_CELL}}" for c in pair]
        lines.append(f"{'':{_LABEL}}" + " ".join(heads))
        lines.append(f"{'metric':{_LABEL}}" + " ".join(f"{'value':>8} {'95% interval':^15} {'n':>5}" for _ in pair))
        section = None
        for row in rows:
            if not any(c in row.cells for c in pair):
                continue
            if row.section != section:
                section = row.section
                lines.append(section)
            cells = [_text_cell(row.cells.get(c), row.unit) for c in pair]
            lines.append(f"{_fit(row.name):{_LABEL}}" + " ".join(cells))
        lines = [line.rstrip() for line in lines]
    lines.append("-" * WIDTH)
    for note in (*_warnings(rows), *notes):
        lines += textwrap.wrap(note, WIDTH, subsequent_indent="  ")
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as a Markdown table; arrows say which direction is better."""
    columns = _columns(rows)
    heads = [COLUMN_NAMES.get(c, c.rstrip("/")) for c in columns]
    lines = ["| | metric | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(columns)]
    section = None
    for row in rows:
        shown = row.section if row.section != section else ""
        section = row.section
        arrow = "" if row.higher_is_better is None else (" ↑" if row.higher_is_better else " ↓")
        cells = [_markdown_cell(row.cells.get(c), row.unit) for c in columns]
        lines.append(f"| {shown} | `{row.name}`{arrow} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _columns(rows: Sequence[Row]) -> list[str]:
    found = dict.fromkeys(c for row in rows for c in row.cells)
    return [*(c for c in COLUMN_NAMES if c in found), *(c for c in found if c not in COLUMN_NAMES)]


def _text_cell(entry: Mapping[str, Any] | None, unit: str) -> str:
    if entry is None or entry["value"] is None:
        return f"{'-':>8} {'':15} {'' if entry is None else entry['n']:>5}"
    return f"{number(entry['value'], unit):>8} {interval(entry, unit):>15} {entry['n']:>5}"


def _markdown_cell(entry: Mapping[str, Any] | None, unit: str) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    low, high = bound(entry["low"], unit), bound(entry["high"], unit)
    return f"**{number(entry['value'], unit)}** [{low}, {high}] n={entry['n']}"


def _fit(name: str) -> str:
    """The name with all it rests on if there is room, else without; indented."""
    return f"  {name}" if len(name) + 3 <= _LABEL else f"  {name.partition('[')[0]}"[: _LABEL - 1]


def _warnings(rows: Sequence[Row]) -> list[str]:
    few = [row for row in rows if 0 < row.n_smallest() < _SMALL]
    if not few:
        return []
    least = min(row.n_smallest() for row in few)
    counted = f"{len(few)} of {len(rows)} rows rest on fewer than {_SMALL} (down to n = {least})"
    return [f"Few items: {counted}; trust the intervals, not the values."]
