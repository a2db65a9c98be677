"""Results as tables.  A report: rows are metrics, columns are splits; text of at most 100 columns, or Markdown.

A grid (ablations): rows are systems, columns are metrics; text, Markdown, LaTeX or CSV.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 100
_LABEL, _CELL = 39, 30
COLUMN_NAMES = {"": "seen voices", "unseen_voice/": "unseen voices"}
_SMALL = 100  # fewer items than this are called few


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


def _bound(value: float | None, unit: str) -> str:
    return number(value, unit).removesuffix("%").removesuffix("/s").removesuffix(" s")


def interval(entry: Mapping[str, Any], unit: str) -> str:
    """``[low, high]`` in the unit of the value."""
    return f"[{_bound(entry['low'], unit):>5}, {_bound(entry['high'], unit):>5}]"


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
    low, high = _bound(entry["low"], unit), _bound(entry["high"], unit)
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


# ------------------------------------------------------------------------------------------------- grids of systems

_GRID_LABEL = 25
CSV_FIELDS = (
    "row", "label", "metric", "unit", "mean", "sd", "low", "high", "n", "seeds", "scores", "p", "p_holm", "status",
)  # fmt: skip


@dataclass(frozen=True)
class GridColumn:
    """A metric: key, printed name, unit (`ttt.eval.metrics.UNITS`), and which direction is better (None: neither)."""

    key: str
    label: str
    unit: str
    higher_is_better: bool | None = None

    @property
    def head(self) -> str:
        """Name, unit and direction, as above a column."""
        unit = {"rate": " (%)", "s": " (s)", "1/s": " (1/s)"}.get(self.unit, "")
        return f"{self.label}{unit}" + ("" if self.higher_is_better is None else " ↑" if self.higher_is_better else " ↓")


@dataclass(frozen=True)
class GridCell:
    """One system on one metric: mean and sd over ``seeds``, 95 % interval, ``scores`` per seed, test against the baseline."""

    value: float | None
    sd: float | None
    low: float | None
    high: float | None
    n: int
    seeds: tuple[int, ...] = ()
    scores: tuple[float | None, ...] = ()
    p: float | None = None
    p_adjusted: float | None = None
    mark: str = ""
    best: bool = False


@dataclass(frozen=True)
class GridRow:
    """One system.  ``cells`` by column key; ``status`` says in words what is missing (empty: nothing)."""

    name: str
    label: str
    cells: Mapping[str, GridCell]
    status: str = ""


def cell_text(value: float | None, unit: str) -> str:
    """A number without its unit, which stands in the column's head.

    >>> cell_text(0.1234, "rate"), cell_text(None, "rate")
    ('12.3', '-')
    """
    return _bound(value, unit)


def grid_text(columns: Sequence[GridColumn], rows: Sequence[GridRow], title: str, notes: Sequence[str] = ()) -> str:
    """The terminal form, about 100 columns wide: as many metrics side by side as fit."""
    drawn = {(r.name, c.key): _grid_cell(r.cells.get(c.key), c.unit) for r in rows for c in columns}
    width = max([24, *map(len, drawn.values())])  # numbers are never cut
    count = max(1, (WIDTH - _GRID_LABEL) // (width + 1))
    lines = ["=" * WIDTH, *textwrap.wrap(title, WIDTH)]
    for at in range(0, max(1, len(columns)), count):
        some = columns[at : at + count]
        lines += ["-" * WIDTH, _grid_line("", [c.head for c in some], width)]
        lines.append(_grid_line("", ["mean ±sd [95 % interval]" for _ in some], width))
        for row in rows:
            label = f"{row.label} †" if row.status else row.label
            lines.append(_grid_line(label, [drawn[row.name, c.key] for c in some], width))
    lines.append("-" * WIDTH)
    for note in (*_statuses(rows), *notes):
        lines += textwrap.wrap(note, WIDTH, subsequent_indent="  ")
    return "\n".join([*lines, "=" * WIDTH])


def grid_markdown(columns: Sequence[GridColumn], rows: Sequence[GridRow], title: str, notes: Sequence[str] = ()) -> str:
    """A page with the table; the best mean of each column is bold."""
    lines = [f"# {title}", "", "| | " + " | ".join(c.head for c in columns) + " |", "|---|" + "---|" * len(columns)]
    for row in rows:
        cells = [_grid_cell(row.cells.get(c.key), c.unit, bold="**", marks="\\*") for c in columns]
        lines.append(f"| {row.label.replace('|', chr(92) + '|')}{' †' if row.status else ''} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(_starless(note) for note in (*_statuses(rows), *notes)), ""])


def grid_latex(columns: Sequence[GridColumn], rows: Sequence[GridRow], title: str, notes: Sequence[str] = ()) -> str:
    """A ``table`` environment for the package booktabs."""
    lines = [
        r"% \usepackage{booktabs}", r"\begin{table}", r"  \centering", r"  \begin{tabular}{l" + "r" * len(columns) + "}",
        r"    \toprule", "    " + " & ".join(["", *(_tex(c.head) for c in columns)]) + r" \\", r"    \midrule",
    ]  # fmt: skip
    for row in rows:
        label = _tex(row.label) + (r"\textsuperscript{\dag}" if row.status else "")
        lines.append("    " + " & ".join([label, *(_tex_cell(row.cells.get(c.key), c.unit) for c in columns)]) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    lines.append(r"  \caption{" + " ".join(_tex(part) for part in (f"{title}.", *_statuses(rows), *notes)) + "}")
    return "\n".join([*lines, r"\end{table}", ""])


def grid_csv(columns: Sequence[GridColumn], rows: Sequence[GridRow]) -> str:
    """One line per row and metric, numbers in full; seeds and their scores are separated by blanks."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for column in columns:
            cell = row.cells.get(column.key, GridCell(None, None, None, None, 0))
            writer.writerow({
                "row": row.name, "label": row.label, "metric": column.key, "unit": column.unit, "mean": cell.value,
                "sd": cell.sd, "low": cell.low, "high": cell.high, "n": cell.n, "seeds": " ".join(map(str, cell.seeds)),
                "scores": " ".join("-" if x is None else repr(x) for x in cell.scores), "p": cell.p, "p_holm": cell.p_adjusted,
                "status": row.status,
            })  # fmt: skip
    return out.getvalue()


def _grid_line(label: str, cells: Sequence[str], width: int) -> str:
    short = label if len(label) < _GRID_LABEL else label[: _GRID_LABEL - 2] + "…"
    return (f"{short:{_GRID_LABEL}}" + " ".join(f"{c[:width]:>{width}}" for c in cells)).rstrip()


def _grid_cell(cell: GridCell | None, unit: str, bold: str = "", marks: str = "*") -> str:
    if cell is None or cell.value is None:
        return "-"
    mean = cell_text(cell.value, unit)
    spread = "" if cell.sd is None else f" ±{cell_text(cell.sd, unit)}"
    mean = f"{bold}{mean}{bold}" if cell.best else mean
    return f"{mean}{spread} [{cell_text(cell.low, unit)}, {cell_text(cell.high, unit)}]{cell.mark.replace('*', marks)}"


def _tex_cell(cell: GridCell | None, unit: str) -> str:
    if cell is None or cell.value is None:
        return "--"
    mean = cell_text(cell.value, unit)
    mean = rf"\textbf{{{mean}}}" if cell.best else mean
    spread = "" if cell.sd is None else rf" $\pm$ {cell_text(cell.sd, unit)}"
    stars = rf"\textsuperscript{{{cell.mark}}}" if cell.mark else ""
    return f"{mean}{spread} [{cell_text(cell.low, unit)}, {cell_text(cell.high, unit)}]{stars}"


_TEX = {
    "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"\dag{}", "±": r"$\pm$", "≥": r"$\geq$",
    "<": r"\textless{}", ">": r"\textgreater{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": r"$-$",
    **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def _tex(text: str) -> str:
    """Text with LaTeX's special characters written out.

    >>> print(_tex("asr_2_8 (%) ↓"))
    asr\\_2\\_8 (\\%) $\\downarrow$
    """
    return "".join(_TEX.get(c, c) for c in text)


def _starless(note: str) -> str:
    """A line of Markdown of its own whose stars are stars."""
    return note.replace("*", "\\*") + "  "


def _statuses(rows: Sequence[GridRow]) -> list[str]:
    return [f"† {row.label}: {row.status}." for row in rows if row.status]
