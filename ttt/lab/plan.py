"""The cells of a table: one resolved configuration per row and seed, checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttt.config.diff import differences
from ttt.config.load import load_config, to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError, TttError, suggest
from ttt.eval.inputs import generation_files, read_files
from ttt.lab.cells import DECODING, Cell, inputs_of
from ttt.lab.statistics import Measured
from ttt.lab.table_file import RowSpec, TableSpec
from ttt.lab.trainings import refuse_useless, trainings_in, with_known_training
from ttt.registry.plugins import is_file
from ttt.tasks.records import by_label

REQUIRED = ("data.train", "data.tokenizer", "train.steps")


def plan(
    table: TableSpec, out: Path, overrides: Sequence[str] = (), plugins: Sequence[str] = (), trained: Sequence[str] = ()
) -> list[Cell]:  # fmt: skip
    """All cells, seed by seed; rows that train come before the rows that decode their training.

    A row's own settings win over ``overrides``, so that rows stay different.  ``trained``: folders of other tables, whose
    trainings are used where they are the same (`ttt.lab.trainings`).  Every configuration is loaded and checked and its data
    digested; errors name the row.
    """
    known = trainings_in(trained)
    digests: dict[str, str] = {}
    checked: set[tuple[str, frozenset[str]]] = set()
    cells: dict[tuple[str, int], Cell] = {}
    rows = sorted(table.rows.values(), key=lambda row: bool(row.decode_only_of))
    for seed in table.seeds:
        for row in rows:
            parent = cells.get((row.decode_only_of, seed))
            folder = out / "cells" / row.name / f"seed-{seed}"
            try:
                config = _configuration(table, row, seed, folder, [*table.settings, *overrides], plugins, parent)
                _check_examples(config, checked)
                inputs = inputs_of(config, digests)
            except TttError as error:
                made_by = f" (made by: {' && '.join(table.needs)})" if table.needs and isinstance(error, DataError) else ""
                raise type(error)(f"{table.path}: rows.{row.name}: {error}{made_by}") from error
            card = out / "cards" / f"{row.name}-seed-{seed}.json"
            cell = Cell(row.name, row.label, seed, folder, card, config, inputs, parent, table.name)
            cells[row.name, seed] = with_known_training(cell, known)
    if trained:
        refuse_useless(list(cells.values()), known)
    return list(cells.values())


def _configuration(
    table: TableSpec, row: RowSpec, seed: int, folder: Path, settings: Sequence[str], plugins: Sequence[str],
    parent: Cell | None,
) -> RunConfig:  # fmt: skip
    """The resolved configuration of one cell."""
    layers = [table.rows[row.decode_only_of], row] if row.decode_only_of else [row]
    files = [*table.base, *(file for layer in layers for file in layer.files)]
    of_cell = [f"run.seed={seed}", f"run.dir={folder}", f"eval.out={folder / 'eval'}", "eval.checkpoint=''"]
    of_rows = [setting for layer in layers for setting in layer.settings]
    stored: list[str | Path] = [*files, *table.settings, *of_rows]  # the table's words, not those of who runs it
    config = load_config(files, [*settings, *of_rows, *of_cell], plugins, REQUIRED, stored)
    if not config.train.steps:
        raise ConfigError("train.steps: a table compares runs of a given number of updates; give train.steps, not train.epochs")
    if not config.eval.examples:
        raise ConfigError("eval.examples: missing; give the table splits or examples")
    config = dataclasses.replace(config, plugins=[_absolute(p, files[-1].resolve().parent) for p in config.plugins])
    if parent is None:
        return config
    changed = differences(_training_part(parent.config), _training_part(config))
    if changed:
        raise ConfigError(f"decode_only_of {parent.row!r}, but {changed[0]}: only eval, judge and tasks may differ")
    trained = parent.config.eval.checkpoint or str(parent.folder)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, checkpoint=trained))


def _training_part(config: RunConfig) -> dict[str, Any]:
    plain = {k: v for k, v in to_plain(config).items() if k not in DECODING}
    return {**plain, "run": {k: v for k, v in plain["run"].items() if k != "dir"}}


def _absolute(plugin: str, recipe_folder: Path) -> str:
    """A plug-in file that lies beside the recipe, by its full path: a cell has a recipe file of its own elsewhere."""
    beside = recipe_folder / plugin
    return str(beside) if is_file(plugin) and not Path(plugin).is_file() and beside.is_file() else plugin


def _check_examples(config: RunConfig, checked: set[tuple[str, frozenset[str]]]) -> None:
    """Refuse missing example files, and examples of tasks that are not configured, before anything is trained for them.

    ``checked``: (file, task labels) that are known to be right.
    """
    tasks = by_label(config.tasks)
    labels = frozenset(tasks)
    generation_files(config)
    for path in config.eval.examples:
        if (path, labels) not in checked:
            if not Path(path).is_file():
                raise DataError(f"eval.examples: {path} is missing; make it first")
            read_files([path], 1, tasks)
            checked.add((path, labels))


def measured(table: TableSpec, cells: Sequence[Cell]) -> tuple[list[Measured], list[Measured]]:
    """(The table's metrics, calls per second of the same tasks).  Raises `ConfigError` for a key that a row does not have."""
    from ttt.eval.cards import key_prefix
    from ttt.registry.families import METRIC

    known: dict[str, Any] = {}
    splits: dict[tuple[str, ...], list[tuple[str, str]]] = {}  # example files -> (prefix of the split, task label)
    for cell in cells:
        if cell.seed != table.seeds[0]:
            continue
        tasks = by_label(cell.config.tasks)
        files = tuple(cell.config.eval.examples)
        if files not in splits:
            examples = [e for listed in read_files(files, 1, tasks).values() for e in listed]
            splits[files] = sorted({(key_prefix(str(e.meta.get("split") or "")), e.task) for e in examples})
        of_row = {}
        for prefix, label in splits[files]:
            for name, node in tasks[label].metrics.items():
                of_row[f"{prefix}{label}/{name}"] = METRIC.build(node, f"tasks.{label}.metrics.{name}")
        for key in table.metrics:
            if key not in of_row:
                raise ConfigError(
                    f"{table.path}: metrics: row {cell.row!r} has no metric {key!r}.{suggest(key, of_row)} There are: "
                    f"{', '.join(sorted(of_row))}"
                )
        known |= of_row
    shown = [Measured(key, label, known[key]) for key, label in table.metrics.items()]
    costs = dict.fromkeys(f"{m.group}/calls_per_second" for m in shown)
    return shown, [Measured(key, "calls/s", known[key]) for key in costs if key in known]
