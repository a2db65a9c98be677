"""Tables of experiments: rows are systems, columns are metrics; text, Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ttt.eval.report_tables import WIDTH, bound

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


def grid_text(columns: Sequence[GridColumn], rows: Sequence[GridRow], title: str, notes: Sequence[str] = ()) -> str:
    """The terminal form, about 100 columns wide: as many metrics side by side as fit."""
    drawn = {(r.name, c.key): _grid_cell(r.cells.get(c.key), c.unit) for r in rows for c in columns}
    width = max([24, *map(len, drawn.values())])  # numbers are never cut
    count = max(1, (WIDTH - _GRID_LABEL) // (width + 1))
    lines = ["=" * WIDTH, *textwrap.wrap(title, WIDTH)]
    for at in range(0, max(1, len(columns)), count):
        beside = columns[at : at + count]
        lines += ["-" * WIDTH, _grid_line("", [c.head for c in beside], width)]
        lines.append(_grid_line("", ["mean ±sd [95 % interval]" for _ in beside], width))
        for row in rows:
            label = f"{row.label} †" if row.status else row.label
            lines.append(_grid_line(label, [drawn[row.name, c.key] for c in beside], width))
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
    mean = bound(cell.value, unit)
    spread = "" if cell.sd is None else f" ±{bound(cell.sd, unit)}"
    mean = f"{bold}{mean}{bold}" if cell.best else mean
    return f"{mean}{spread} [{bound(cell.low, unit)}, {bound(cell.high, unit)}]{cell.mark.replace('*', marks)}"


def _tex_cell(cell: GridCell | None, unit: str) -> str:
    if cell is None or cell.value is None:
        return "--"
    mean = bound(cell.value, unit)
    mean = rf"\textbf{{{mean}}}" if cell.best else mean
    spread = "" if cell.sd is None else rf" $\pm$ {bound(cell.sd, unit)}"
    stars = rf"\textsuperscript{{{cell.mark}}}" if cell.mark else ""
    return f"{mean}{spread} [{bound(cell.low, unit)}, {bound(cell.high, unit)}]{stars}"


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
