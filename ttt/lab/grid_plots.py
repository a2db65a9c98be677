"""Plots of a table of experiments: systems by metric, and quality against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttt.eval.plots import INK, REST, TEXT, new_figure, write_png
from ttt.lab.grid_tables import GridCell, GridColumn, GridRow

FrontierPanel = tuple[GridColumn, Sequence[tuple[str, GridCell, GridCell]]]


def ablation_panels(
    columns: Sequence[GridColumn], rows: Sequence[GridRow], out: str | Path, title: str = "", baseline: str = ""
) -> bool:
    """Systems by metric: one panel a metric, one line a row; mean with its 95 % interval, a small dot per seed.

    The dashed line is the baseline's mean.  Returns False, and writes nothing, when no cell holds a number.
    """
    columns = [c for c in columns if any(r.cells[c.key].value is not None for r in rows if c.key in r.cells)]
    if not columns:
        return False
    wide = min(3, len(columns))
    high = -(-len(columns) // wide)
    figure = new_figure(1.6 + 2.9 * wide, high * (0.34 * len(rows) + 0.9) + 0.3)
    for number, column in enumerate(columns):
        axes = figure.add_subplot(high, wide, number + 1)
        scale = 100.0 if column.unit == "rate" else 1.0
        for y, row in enumerate(rows):
            cell = row.cells.get(column.key)
            if cell is None or cell.value is None:
                continue
            color = INK if row.name == baseline else TEXT
            if cell.low is not None and cell.high is not None:
                axes.plot([scale * cell.low, scale * cell.high], [y, y], color=color, linewidth=1.6)
            seeds = [scale * x for x in cell.scores if x is not None]
            if len(seeds) > 1:
                axes.plot(seeds, [y + 0.22] * len(seeds), ".", color=REST, markersize=4)
            axes.plot([scale * cell.value], [y], "o", color=color, markersize=5)
            if row.name == baseline:
                axes.axvline(scale * cell.value, color=INK, linestyle="--", linewidth=0.8, alpha=0.5)
        axes.set_yticks(range(len(rows)), [r.label for r in rows] if number % wide == 0 else [""] * len(rows), fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title(column.head, fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.25)
    if title:
        figure.suptitle(title, fontsize=10)
    return write_png(figure, out)


def frontier(panels: Sequence[FrontierPanel], out: str | Path, title: str = "") -> bool:
    """Quality against cost.  Each panel: a quality column, and (label, cost cell, quality cell) of every system.

    Cost is network calls per second of audio (logarithmic axis); bars are 95 % intervals of the quality.
    """
    shown = [
        (column, known)
        for column, points in panels
        if (known := [(n, c, q) for n, c, q in points if c.value is not None and c.value > 0 and q.value is not None])
    ]
    if not shown:
        return False
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    names = list(dict.fromkeys(n for _, known in shown for n, _, _ in known))
    colors = {name: colormaps["tab20"](2 * (i % 10) + i // 10 % 2) for i, name in enumerate(names)}
    wide = min(3, len(shown))
    high = -(-len(shown) // wide)
    inches = 0.6 + 3.4 * wide
    beside = legend_columns(names, inches)
    figure = new_figure(inches, 3.0 * high + 0.2 * -(-len(names) // beside) + 0.3)
    handles = {}
    for number, (column, known) in enumerate(shown):
        axes = figure.add_subplot(high, wide, number + 1)
        scale = 100.0 if column.unit == "rate" else 1.0
        for name, cost, quality in known:
            x, y = float(cost.value or 0), scale * float(quality.value or 0)
            if quality.low is not None and quality.high is not None:
                axes.plot([x, x], [scale * quality.low, scale * quality.high], color=colors[name], linewidth=1.2, alpha=0.6)
            (handles[name],) = axes.plot([x], [y], "o", color=colors[name], markersize=6, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter("")
        axes.margins(x=0.1)
        axes.set_xlabel("network calls per second of audio", fontsize=8)
        axes.set_title(column.head, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, which="both")
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncol=beside, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return write_png(figure, out)


def legend_columns(names: Sequence[str], inches: float) -> int:
    """How many entries of a legend, in letters of 8 points, stand side by side in a figure of this width: 1 to 3.

    >>> legend_columns(["a", "growing canvas, low confidence"], 4.0), legend_columns(["a", "b"], 4.0)
    (1, 3)
    """
    widest = 0.45 + 0.07 * max(map(len, names))
    return max(1, min(3, int(inches / widest)))
