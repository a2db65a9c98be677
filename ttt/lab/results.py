"""What a table of experiments says: text, Markdown, LaTeX, CSV, JSON and plots, from the cells that are finished."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.eval import cards
from ttt.io.atomic import write_json, write_text
from ttt.io.outputs import check_file, is_our_json
from ttt.lab import grid_plots, grid_tables
from ttt.lab.cells import Cell
from ttt.lab.runner import Outcome
from ttt.lab.statistics import Measured, column, read_items
from ttt.lab.table_file import TableSpec

FORMAT = "ttt-ablation-1"
Columns = Mapping[str, Mapping[str, grid_tables.GridCell]]  # metric key -> row -> value
Card = Mapping[str, Any]


def check_table_folder(out: Path) -> None:
    """Raise `ConfigError` when the folder holds files that `write_table` would write, and no table of ttt wrote them."""
    if is_our_json(out / "results.json", format=FORMAT) or is_our_json(out / ".lock", pid=None, host=None):
        return
    for name in ("table.txt", "table.md", "table.tex", "table.csv", "plot.png", "frontier.png", "results.json"):
        check_file(out / name, mend="name another folder with --out")


def write_table(
    table: TableSpec, out: Path, cells: Sequence[Cell], metrics: tuple[Sequence[Measured], Sequence[Measured]],
    outcomes: Sequence[Outcome] = (),
) -> str:  # fmt: skip
    """Write ``table.*``, ``results.json`` and the plots; returns the table's text.

    ``metrics``: those shown, and calls per second of the same tasks (`ttt.lab.plan.measured`).
    """
    shown, costs = metrics
    failed = {o.cell.name: o.error for o in outcomes if o.error}
    done = [c for c in cells if c.is_done()]
    card_of = {c.name: cards.read_card(c.card) for c in done}
    items: dict[str, dict[int, Any]] = {row: {} for row in table.rows}
    for cell in done:
        items[cell.row][cell.seed] = read_items(cell.folder / "eval" / "items.jsonl")
    values: Columns = {m.key: column(items, m, table.baseline, table.resamples) for m in (*shown, *costs)}
    rows = [
        grid_tables.GridRow(
            row.name, row.label, {m.key: values[m.key][row.name] for m in shown if row.name in values[m.key]},
            _status([c for c in cells if c.row == row.name], set(card_of), failed),
        )
        for row in table.rows.values()
    ]  # fmt: skip
    columns = [m.column() for m in shown]
    notes = _notes(table, list(card_of.values()))
    text = grid_tables.grid_text(columns, rows, table.title, notes)
    write_text(out / "table.txt", text + "\n")
    write_text(out / "table.md", grid_tables.grid_markdown(columns, rows, table.title, notes))
    write_text(out / "table.tex", grid_tables.grid_latex(columns, rows, table.title, notes))
    write_text(out / "table.csv", grid_tables.grid_csv(columns, rows))
    drawn = {
        "plot.png": grid_plots.ablation_panels(columns, rows, out / "plot.png", table.title, table.baseline),
        "frontier.png": any(r.decode_only_of for r in table.rows.values())
        and grid_plots.frontier(_frontier(table, shown, costs, values), out / "frontier.png", table.title),
    }
    for name in [name for name, is_drawn in drawn.items() if not is_drawn]:
        (out / name).unlink(missing_ok=True)  # of an earlier call
    write_json(out / "results.json", {
        "format": FORMAT, "table": table.name, "title": table.title, "budget": table.budget, "baseline": table.baseline,
        "seeds": table.seeds, "resamples": table.resamples, "notes": notes,
        "rows": {r.name: {"label": r.label, "status": r.status} for r in rows},
        "values": {key: {row: dataclasses.asdict(value) for row, value in by_row.items()} for key, by_row in values.items()},
        "cells": {c.name: {
            "row": c.row, "seed": c.seed, "card": os.path.relpath(c.card, out) if c.name in card_of else None,
            "error": failed.get(c.name, ""),
        } for c in cells},
    })  # fmt: skip
    return text


def _status(cells: Sequence[Cell], done: set[str], failed: Mapping[str, str]) -> str:
    """What is missing of a row, in words; empty when all its cells are done."""
    broken = [c.seed for c in cells if c.name in failed]
    absent = [c.seed for c in cells if c.name not in done and c.name not in failed]
    return ", ".join(
        f"seed {' and '.join(map(str, seeds))} {word}" for seeds, word in ((broken, "failed"), (absent, "not run")) if seeds
    )


def _notes(table: TableSpec, done: Sequence[Card]) -> list[str]:
    """The lines below the table: numbers of seeds and items, the test, budget, floors, and what was left out."""
    counts = sorted({e["n"] for card in done for key, e in card["metrics"].items() if key in table.metrics})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    baseline = table.rows[table.baseline].label
    several = len(table.seeds) > 1
    notes = [
        f"{'Mean ± sd over' if several else 'One run a row,'} {len(table.seeds)} seed{'s' if several else ''} "
        f"({', '.join(map(str, table.seeds))}); n = {n} items a metric; brackets: 95 % bootstrap intervals over "
        f"{'seeds and items (two levels)' if several else 'items'}, {table.resamples} resamples.",
        f"* p < 0.05, ** p < 0.01 against {baseline!r}: paired bootstrap on the same items and seeds, Holm-corrected over the "
        "rows of each metric. Bold: best mean.",
    ]
    if not several:
        notes.append("One seed says nothing about the spread between trainings: differences may be luck.")
    notes += [_budget(table, done), _floors(table, done)]
    limited = dict.fromkeys(c["limited"] for c in done if c["limited"])
    notes += [f"NOT A FULL RUN: {reason}." for reason in limited]
    instruments = dict.fromkeys(
        ", ".join(f"{k} {c[k]}" for k in ("normalizer", "judge", "codec") if c[k]) for c in done
    )
    notes += [f"Rests on: {part}." for part in instruments if part]
    return [*(note for note in notes if note), *([table.note] if table.note else [])]


def _floors(table: TableSpec, done: Sequence[Card]) -> str:
    """Errors of the true answers resynthesized by the codec (``eval.floor``): the best that a perfect model would score."""
    floors: dict[str, None] = {}
    for card in done:
        for key, label in table.metrics.items():
            group, _, name = key.rpartition("/")
            entry = card["metrics"].get(f"{group}/floor_{name}")
            if entry is not None and entry["value"] is not None:
                value = f"{100 * entry['value']:.1f} %" if entry["unit"] == "rate" else f"{entry['value']:.2f}"
                floors[f"{label} {value}"] = None
    return f"The true answers through the codec: {', '.join(floors)}." if floors else ""


def _budget(table: TableSpec, done: Sequence[Card]) -> str:
    """The budget's statement beside what the trainings took."""
    trained = [c["training"] for c in done if not c.get("decode_only_of") and c.get("training")]
    parts = [f"Budget: {table.budget}"] if table.budget else []
    if trained:
        ranges = []
        for key, unit in (("updates", "updates"), ("tokens", "tokens"), ("seconds", "s")):
            least, most = min(t[key] for t in trained), max(t[key] for t in trained)
            digits = 1 if key == "seconds" and most < 10 else 0
            low, high = f"{least:,.{digits}f}", f"{most:,.{digits}f}"
            ranges.append(f"{low} {unit}" if low == high else f"{low} to {high} {unit}")
        parts.append(f"{'m' if parts else 'M'}easured: {', '.join(ranges)} a training")
    return f"{'; '.join(parts)}." if parts else ""


def _frontier(table: TableSpec, shown: Sequence[Measured], costs: Sequence[Measured], values: Columns) -> list[Any]:
    """Quality columns of tasks that count calls, each with (label, cost, quality) of every row."""
    cost_of = {m.group: values[m.key] for m in costs}
    return [
        (m.column(), [
            (row.label, cost_of[m.group][row.name], values[m.key][row.name])
            for row in table.rows.values() if row.name in cost_of[m.group] and row.name in values[m.key]
        ])
        for m in shown if m.group in cost_of and m.column().unit in ("rate", "score")
    ]  # fmt: skip
