"""``ttt ablate TABLE.yaml``: every row under every seed, then one table.  ``ttt repro CARD.json``: a cell once more."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.config.load import build_config, load_config, to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError, TttError, suggest
from ttt.eval import cards
from ttt.lab.cells import (
    DECODING,
    Cell,
    Outcome,
    Runner,
    Subprocesses,
    differences,
    inputs_of,
    refuse_changed,
    run_cells,
    visible_gpus,
)  # fmt: skip
from ttt.lab.table_file import RowSpec, TableSpec, read_table, seeds_of
from ttt.lab.trainings import refuse_useless, taken, trainings_in

log = logging.getLogger(__name__)

FORMAT = "ttt-ablation-1"
NEED = ("data.train", "data.tokenizer", "train.steps")


def ablate(arguments: argparse.Namespace, runner: Runner | None = None) -> int:
    """Plan and check every cell, run what is missing, write and print the table.  -> 0, or 1 when a cell failed."""
    table = read_table(arguments.table)
    if arguments.seeds:
        table = dataclasses.replace(table, seeds=seeds_of(arguments.seeds, "--seeds"))
    only, overrides = _only(arguments, table)
    out = Path(arguments.out or Path("exp/ablations") / table.name)
    cells = plan(table, out, overrides, arguments.plugins, arguments.trainings)
    asked = [c for c in cells if c.row in only]
    needed = {c.parent.name for c in asked if c.parent is not None}
    asked = [c for c in cells if c.row in only or c.name in needed]
    metrics = _measured(table, cells)
    if not arguments.overwrite:
        refuse_changed(asked)
    todo = [c for c in asked if not c.is_done()]
    jobs, gpus = _jobs(arguments.jobs, asked)
    if arguments.dry_run:
        print("\n".join([f"{table.title}: {len(todo)} of {len(asked)} cells to run, {jobs} at a time, in {out}",
                         *(f"  {c.name}: {_state(c)}" for c in asked)]))  # fmt: skip
        return 0
    log.info("ablate: %d cells, %d to run, %d at a time -> %s", len(asked), len(todo), jobs, out)
    with _sigterm_as_interrupt():
        outcomes = run_cells(todo, jobs, runner or Subprocesses(jobs, gpus), arguments.overwrite)
    print(write_table(table, out, cells, metrics, outcomes))
    return int(any(o.error for o in outcomes))


def plan(
    table: TableSpec, out: Path, overrides: Sequence[str] = (), plugins: Sequence[str] = (), trained: Sequence[str] = ()
) -> list[Cell]:  # fmt: skip
    """All cells, seed by seed, trained rows before those that use their training.  Rows' own
    settings win over ``overrides``, so that rows stay different.  ``trained``: folders of tables whose trainings are taken
    where they are the same (`ttt.lab.trainings`).

    Loads and checks every configuration and takes the digests of its data; every refusal names the row.
    """
    known = trainings_in(trained)
    digests: dict[str, str] = {}
    groups: dict[tuple[str, frozenset[str]], None] = {}
    cells: dict[tuple[str, int], Cell] = {}
    ordered = sorted(table.rows.values(), key=lambda r: bool(r.decode_only_of))
    for seed in table.seeds:
        for row in ordered:
            parent = cells.get((row.decode_only_of, seed))
            folder = out / "cells" / row.name / f"seed-{seed}"
            try:
                config = _configuration(table, row, seed, folder, [*table.settings, *overrides], plugins, parent)
                _check_examples(config, groups)
                inputs = inputs_of(config, digests)
            except TttError as error:
                raise type(error)(f"{table.path}: rows.{row.name}: {error}") from error
            card = out / "cards" / f"{row.name}-seed-{seed}.json"
            cell = Cell(row.name, row.label, seed, folder, card, config, inputs, parent, table.name)
            cells[row.name, seed] = taken(cell, known)
    if trained:
        refuse_useless(list(cells.values()), known)
    return list(cells.values())


def _configuration(
    table: TableSpec, row: RowSpec, seed: int, folder: Path, settings: Sequence[str], plugins: Sequence[str],
    parent: Cell | None,
) -> RunConfig:  # fmt: skip
    """The resolved configuration of one cell."""
    layers = [table.rows[row.decode_only_of], row] if row.decode_only_of else [row]
    files = [*table.base, *(f for r in layers for f in r.files)]
    own = [f"run.seed={seed}", f"run.dir={folder}", f"eval.out={folder / 'eval'}", "eval.checkpoint=''"]
    config = load_config(files, [*settings, *(s for r in layers for s in r.settings), *own], plugins, NEED)
    if not config.eval.examples:
        raise ConfigError("eval.examples: missing; give the table splits or examples")
    found = [_absolute(item, files[-1].resolve().parent) for item in config.plugins]
    config = dataclasses.replace(config, plugins=found)
    if parent is None:
        return config
    alike = differences(_training_part(parent.config), _training_part(config))
    if alike:
        raise ConfigError(f"decode_only_of {parent.row!r}, but {alike[0]}: only eval, judge and tasks may differ")
    trained = parent.config.eval.checkpoint or str(parent.folder)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, checkpoint=trained))


def _training_part(config: RunConfig) -> dict[str, Any]:
    plain = {k: v for k, v in to_plain(config).items() if k not in DECODING}
    return {**plain, "run": {k: v for k, v in plain["run"].items() if k != "dir"}}


def _absolute(plugin: str, base: Path) -> str:
    """A plug-in file that is found beside the recipe only, by its full path: cells have recipes of their own."""
    is_file = plugin.endswith(".py") or "/" in plugin
    return str(base / plugin) if is_file and not Path(plugin).is_file() and (base / plugin).is_file() else plugin


def _check_examples(config: RunConfig, checked: dict[tuple[str, frozenset[str]], None]) -> None:
    """Refuse example files of tasks that are not configured before anything is trained for them."""
    from ttt.eval.inputs import read_files

    labels = frozenset(task.label for task in config.tasks)
    for path in config.eval.examples:
        if (path, labels) not in checked:
            if not Path(path).is_file():
                raise DataError(f"eval.examples: {path} is missing; make it first")
            read_files([path], 1, set(labels))
            checked[path, labels] = None


def _measured(table: TableSpec, cells: Sequence[Cell]) -> tuple[list[Any], list[Any]]:
    """The table's metrics and, of the same tasks, calls per second; unknown keys are refused."""
    from ttt.eval.inputs import read_files
    from ttt.eval.keys import key_prefix
    from ttt.lab.comparison import Measured
    from ttt.registry.families import METRIC

    known: dict[str, Any] = {}
    seen: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for cell in cells:
        if cell.seed != table.seeds[0]:
            continue
        tasks = {task.label: task for task in cell.config.tasks}
        files = tuple(cell.config.eval.examples)
        if files not in seen:
            examples = [e for found in read_files(files, 1, set(tasks)).values() for e in found]
            seen[files] = sorted({(key_prefix(str(e.meta.get("split") or "")), e.task) for e in examples})
        mine = {}
        for prefix, label in seen[files]:
            for name, node in tasks[label].metrics.items():
                mine[f"{prefix}{label}/{name}"] = METRIC.build(node, f"tasks.{label}.metrics.{name}")
        for key in table.metrics:
            if key not in mine:
                raise ConfigError(
                    f"{table.path}: metrics: row {cell.row!r} has no metric {key!r}.{suggest(key, mine)} There are: "
                    f"{', '.join(sorted(mine))}"
                )
        known |= mine
    shown = [Measured(key, label, known[key]) for key, label in table.metrics.items()]
    costs = {m.group: f"{m.group}/calls_per_second" for m in shown}
    return shown, [Measured(key, "calls/s", known[key]) for key in costs.values() if key in known]


def _only(arguments: argparse.Namespace, table: TableSpec) -> tuple[set[str], list[str]]:
    """The rows asked for and the settings of the command line (``--only`` may have swallowed some)."""
    only = [x for x in arguments.only if "=" not in x]
    for name in only:
        if name not in table.rows:
            raise ConfigError(f"--only: no row named {name!r}.{suggest(name, table.rows)} Rows: {', '.join(table.rows)}")
    return set(only or table.rows), [*arguments.overrides, *(x for x in arguments.only if "=" in x)]


def _jobs(told: int, cells: Sequence[Cell]) -> tuple[int, tuple[str, ...]]:
    """How many cells at a time, and the GPUs they are dealt to; told nothing: one per GPU, one without."""
    if told < 0:
        raise ConfigError(f"--jobs: must be >= 1, got {told}")
    gpus = visible_gpus(cells[0].config.run.device)
    return told or max(1, len(gpus)), gpus


def _state(cell: Cell) -> str:
    if cell.is_done():
        return "up to date"
    changed = cell.changed()
    what = "train, decode, score"
    if cell.parent is not None or cell.config.eval.checkpoint:
        what = f"decode with the training of {cell.parent.name if cell.parent is not None else cell.config.eval.checkpoint}"
    begun = "begun, goes on: " if (cell.folder / "cell.json").is_file() else ""
    return f"made again ({changed[0].removeprefix('config.')}): {what}" if changed else f"{begun}{what}"


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A plain ``kill`` stops the running cells as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------------------- the table


def write_table(
    table: TableSpec, out: Path, cells: Sequence[Cell], metrics: tuple[list[Any], list[Any]], outcomes: Sequence[Outcome] = ()
) -> str:
    """Write ``table.*``, ``results.json`` and the plots from all finished cells; returns the table's text."""
    from ttt.eval import plots, tables
    from ttt.lab.comparison import column, read_items

    shown, costs = metrics
    failed = {o.cell.name: o.error for o in outcomes if o.error}
    done = [c for c in cells if c.is_done()]
    read = {c.name: cards.read_card(c.card) for c in done}
    items: dict[str, dict[int, Any]] = {row: {} for row in table.rows}
    for cell in done:
        items[cell.row][cell.seed] = read_items(cell.folder / "eval" / "items.jsonl")
    found = {m.key: column(items, m, table.baseline, table.resamples) for m in (*shown, *costs)}
    rows = [
        tables.GridRow(
            row.name, row.label, {m.key: found[m.key][row.name] for m in shown if row.name in found[m.key]},
            _status([c for c in cells if c.row == row.name], set(read), failed),
        )
        for row in table.rows.values()
    ]  # fmt: skip
    columns = [m.column() for m in shown]
    notes = _notes(table, cells, list(read.values()))
    out.mkdir(parents=True, exist_ok=True)
    text = tables.grid_text(columns, rows, table.title, notes)
    _write(out / "table.txt", text + "\n")
    _write(out / "table.md", tables.grid_markdown(columns, rows, table.title, notes))
    _write(out / "table.tex", tables.grid_latex(columns, rows, table.title, notes))
    _write(out / "table.csv", tables.grid_csv(columns, rows))
    for name, drawn in (
        ("plot.png", plots.ablation_panels(columns, rows, out / "plot.png", table.title, table.baseline)),
        ("frontier.png", any(r.decode_only_of for r in table.rows.values()) and plots.frontier(
            _frontier(table, shown, costs, found), out / "frontier.png", table.title)),
    ):  # fmt: skip
        if not drawn:
            (out / name).unlink(missing_ok=True)  # of an earlier call
    cards.write_json(out / "results.json", {
        "format": FORMAT, "table": table.name, "title": table.title, "budget": table.budget, "baseline": table.baseline,
        "seeds": table.seeds, "resamples": table.resamples, "notes": notes,
        "rows": {r.name: {"label": r.label, "status": r.status} for r in rows},
        "values": {key: {row: dataclasses.asdict(cell) for row, cell in mine.items()} for key, mine in found.items()},
        "cells": {c.name: {
            "row": c.row, "seed": c.seed, "card": os.path.relpath(c.card, out) if c.name in read else None,
            "error": failed.get(c.name, ""),
        } for c in cells},
    })  # fmt: skip
    return text


def _status(cells: Sequence[Cell], done: set[str], failed: Mapping[str, str]) -> str:
    """What is missing of a row, in words."""
    bad = [c.seed for c in cells if c.name in failed]
    absent = [c.seed for c in cells if c.name not in done and c.name not in failed]
    parts = [f"seed {' and '.join(map(str, seeds))} {word}" for seeds, word in ((bad, "failed"), (absent, "not run")) if seeds]
    return ", ".join(parts)


def _notes(table: TableSpec, cells: Sequence[Cell], done: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the numbers rest on."""
    counts = sorted({e["n"] for card in done for key, e in card["metrics"].items() if key in table.metrics})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    against = next(r.label for r in table.rows.values() if r.name == table.baseline)
    several = len(table.seeds) > 1
    notes = [
        f"{'Mean ± sd over' if several else 'One run a row,'} {len(table.seeds)} seed{'s' if several else ''} "
        f"({', '.join(map(str, table.seeds))}); n = {n} items a metric; brackets: 95 % bootstrap intervals over "
        f"{'seeds and items (two levels)' if several else 'items'}, {table.resamples} resamples.",
        f"* p < 0.05, ** p < 0.01 against {against!r}: paired bootstrap on the same items and seeds, Holm-corrected over the "
        "rows of each metric. Bold: best mean.",
    ]
    if not several:
        notes.append("One seed says nothing about the spread between trainings: differences may be luck.")
    notes += [_budget(table, done), _floors(table, done)]
    limited = dict.fromkeys(c["limited"] for c in done if c["limited"])
    notes += [f"NOT A FULL RUN: {reason}." for reason in limited]
    rests = dict.fromkeys(
        ", ".join(f"{k} {c[k]}" for k in ("normalizer", "judge", "codec") if c[k]) for c in done
    )
    notes += [f"Rests on: {part}." for part in rests if part]
    return [*(x for x in notes if x), *([table.note] if table.note else [])]


def _floors(table: TableSpec, done: Sequence[Mapping[str, Any]]) -> str:
    """What a perfect model would get through the codec (``eval.floor``), of the table's metrics."""
    found: dict[str, None] = {}
    for card in done:
        for key, label in table.metrics.items():
            group, _, name = key.rpartition("/")
            entry = card["metrics"].get(f"{group}/floor_{name}")
            if entry is not None and entry["value"] is not None:
                shown = f"{100 * entry['value']:.1f} %" if entry["unit"] == "rate" else f"{entry['value']:.2f}"
                found[f"{label} {shown}"] = None
    return f"The true answers through the codec: {', '.join(found)}." if found else ""


def _budget(table: TableSpec, done: Sequence[Mapping[str, Any]]) -> str:
    """The budget's statement beside what was spent."""
    trained = [c["training"] for c in done if not c.get("decode_only_of") and c.get("training")]
    parts = [f"Budget: {table.budget}"] if table.budget else []
    if trained:
        spent = []
        for key, unit in (("updates", "updates"), ("tokens", "tokens"), ("seconds", "s")):
            low, high = min(t[key] for t in trained), max(t[key] for t in trained)
            digits = 1 if key == "seconds" and high < 10 else 0
            a, b = f"{low:,.{digits}f}", f"{high:,.{digits}f}"
            spent.append(f"{a} {unit}" if a == b else f"{a} to {b} {unit}")
        parts.append(f"{'m' if parts else 'M'}easured: {', '.join(spent)} a training")
    return f"{'; '.join(parts)}." if parts else ""


def _frontier(table: TableSpec, shown: Sequence[Any], costs: Sequence[Any], found: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Quality columns whose task counts calls, each with (label, cost, quality) of every row."""
    by_group = {m.group: m.key for m in costs}
    return [
        (m.column(), [
            (row.label, found[by_group[m.group]][row.name], found[m.key][row.name])
            for row in table.rows.values() if row.name in found[by_group[m.group]] and row.name in found[m.key]
        ])
        for m in shown if m.group in by_group and m.column().unit in ("rate", "score")
    ]  # fmt: skip


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# ------------------------------------------------------------------------------------------------- once more


def repro(arguments: argparse.Namespace, runner: Runner | None = None) -> int:
    """Run a card's experiment again in a fresh folder and compare.  -> 0 when every value lies in the card's interval."""
    path = Path(arguments.card)
    card = cards.read_card(path)
    out = Path(arguments.out or Path("exp/repro") / f"{_table_of(card)}{path.stem}")
    cell = _cell_of(card, path, out, arguments.plugins)
    _compare_inputs(card, cell, path)
    changed = _compare_surroundings(card)
    if arguments.dry_run:
        print("\n".join([f"{path}: {' -> '.join(cell.verbs())} in {out}", *(f"  differs: {x}" for x in changed)]))
        return 0
    if cell.card.is_file() and not arguments.overwrite:
        raise ConfigError(f"{out}: holds a finished run; give --overwrite to run it again, or another --out")
    if arguments.overwrite:
        _clear(cell)
    refuse_changed([cell])
    with _sigterm_as_interrupt():
        (outcome,) = run_cells([cell], 1, runner or Subprocesses(1, visible_gpus(cell.config.run.device)[:1]))
    if outcome.error:
        return 1
    ok, lines = compare(card, cards.read_card(cell.card))
    print("\n".join([f"{path} against {cell.card}", *lines]))
    return 0 if ok else 1


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Every metric of a card beside the repeated one; whether all lie in the card's intervals."""
    from ttt.eval.tables import interval, number
    from ttt.lab.comparison import outcome

    ok, lines = True, []
    width = max((len(key) for key in old["metrics"]), default=0)
    for key, entry in old["metrics"].items():
        again = new["metrics"].get(key)
        fine, words = outcome(entry, again, key.rpartition("/")[2])
        ok &= fine
        unit = str(entry.get("unit", "score"))
        values = f"{number(entry['value'], unit):>8} {interval(entry, unit)}  again {number((again or {}).get('value'), unit):>8}"
        lines.append(f"  {key:{width}} {values}  {words}")
    held = sum(1 for line in lines if "outside" not in line and "not measured" not in line and "only once" not in line)
    return ok, [*lines, f"{held} of {len(lines)} values are inside the card's 95 % intervals: {'ok' if ok else 'NOT REPRODUCED'}"]


def _table_of(card: Mapping[str, Any]) -> str:
    return f"{card['table']}/" if re.fullmatch(r"[\w.-]+", str(card.get("table", ""))) else ""


def _cell_of(card: Mapping[str, Any], path: Path, out: Path, plugins: Sequence[str]) -> Cell:
    """The card's experiment in a folder of its own; rows that only decode are trained again too."""
    from ttt.registry.plugins import load_plugins

    if not card["config"]:
        raise DataError(f"{path}: config is empty; this card cannot be repeated")
    plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in card["config"].items()}
    try:
        plain["run"] |= {"dir": str(out), "overwrite": False}
        kept = "" if "row" in card else plain["eval"].get("checkpoint", "")
        plain["eval"] |= {"out": str(out / "eval"), "checkpoint": kept}
    except KeyError as error:
        raise DataError(f"{path}: config lacks the section {error}; this card cannot be repeated") from error
    load_plugins([*plain.get("plugins", []), *plugins])
    try:
        config = build_config(plain, NEED)
        inputs = inputs_of(config, {}, bool(kept))
    except TttError as error:
        raise type(error)(f"{path}: {error}") from error
    seed = int(config.run.seed)
    return Cell(str(card.get("row", path.stem)), str(card.get("label", "")), seed, out, out / "card.json", config, inputs)


def _compare_inputs(card: Mapping[str, Any], cell: Cell, path: Path) -> None:
    """Other data than the card's is an error: the numbers could not be compared."""
    known = {key: about["digest"] for key, about in card.get("inputs", {}).items()}
    if not known:  # a card of 'ttt score': digests by file name
        known = {
            key: card["data"][name] for key, about in cell.inputs.items()
            if key.startswith("eval.") and (name := Path(about["path"]).name) in card["data"]
        }  # fmt: skip
    for key, digest in known.items():
        now = cell.inputs.get(key, {"path": "", "digest": "(absent)"})
        if now["digest"] != digest:
            raise DataError(
                f"{path}: {key}: {now['path']} has digest {now['digest']}, the card was made with {digest}; bring that data"
            )


def _compare_surroundings(card: Mapping[str, Any]) -> list[str]:
    """Versions and code that differ from the card's: numbers may then differ too, which is said and not refused."""
    changed = [*differences(card["versions"], cards.versions(), "versions"), *differences(card["git"], cards.git_state(), "git")]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        log.warning("repro: %s%s: numbers may differ from the card's", changed[0], more)
    return changed


def _clear(cell: Cell) -> None:
    """Remove an earlier repetition; only a folder that `Cell.prepare` made."""
    import shutil

    if (cell.folder / "cell.json").is_file():
        shutil.rmtree(cell.folder)
