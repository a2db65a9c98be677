"""A table of experiments from its file to its numbers: plan and check every cell, run what is missing, write the table."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ttt.errors import ConfigError, suggest
from ttt.lab.cells import Cell, refuse_changed
from ttt.lab.plan import measured, plan
from ttt.lab.results import check_table_folder, write_table
from ttt.lab.runner import Runner, Subprocesses, run_cells, visible_gpus
from ttt.lab.table_file import TableSpec, read_table, seeds_of
from ttt.train.run_folder import hold

log = logging.getLogger(__name__)


def run_table(
    path: str | Path, overrides: Sequence[str] = (), *, seeds: str = "", only: Sequence[str] = (), jobs: int = 0,
    trainings: Sequence[str] = (), out: str | Path = "", plugins: Sequence[str] = (), dry_run: bool = False,
    overwrite: bool = False, runner: Runner | None = None,
) -> tuple[str, bool]:  # fmt: skip
    """(Text to print: the table, or with ``dry_run`` the cells; whether no cell failed).

    ``seeds``: in place of the table's; ``only``: rows to run; ``jobs``: cells at a time (0: one per GPU, or one);
    ``trainings``: folders of other tables; ``out``: default ``exp/ablations/TABLE``; ``runner``: in place of `Subprocesses`.
    """
    table = read_table(path)
    if seeds:
        table = dataclasses.replace(table, seeds=seeds_of(seeds, "--seeds"))
    rows = _rows(only, table)
    out = Path(out or Path("exp/ablations") / table.name)
    cells = plan(table, out, overrides, plugins, trainings)
    trained_first = {c.parent.name for c in cells if c.row in rows and c.parent is not None}
    selected = [c for c in cells if c.row in rows or c.name in trained_first]
    metrics = measured(table, cells)
    if not overwrite:
        refuse_changed(selected)
    missing = [c for c in selected if not c.is_done()]
    if jobs < 0:
        raise ConfigError(f"--jobs: must be >= 1, got {jobs}")
    gpus = visible_gpus(cells[0].config.run.device)
    jobs = jobs or max(1, len(gpus))
    if dry_run:
        head = f"{table.title}: {len(missing)} of {len(selected)} cells to run, {jobs} at a time, in {out}"
        return "\n".join([head, *(f"  {c.name}: {_state(c)}" for c in selected)]), True
    check_table_folder(out)
    log.info("ablate: %d cells, %d to run, %d at a time -> %s", len(selected), len(missing), jobs, out)
    with hold(out, "--out"), sigterm_as_interrupt():
        outcomes = run_cells(missing, jobs, runner or Subprocesses(jobs, gpus), overwrite)
        text = write_table(table, out, cells, metrics, outcomes)
    return text, not any(o.error for o in outcomes)


def _rows(only: Sequence[str], table: TableSpec) -> set[str]:
    """The rows to run: those of ``--only``, or all."""
    for name in only:
        if name not in table.rows:
            raise ConfigError(f"--only: no row named {name!r}.{suggest(name, table.rows)} Rows: {', '.join(table.rows)}")
    return set(only or table.rows)


def _state(cell: Cell) -> str:
    """What will be done for a cell, in words."""
    if cell.is_done():
        return "up to date"
    work = "train, decode, score"
    if cell.parent is not None or cell.config.eval.checkpoint:
        work = f"decode with the training of {cell.parent.name if cell.parent is not None else cell.config.eval.checkpoint}"
    changed = cell.changed()
    if changed:
        return f"made again ({str(changed[0]).removeprefix('config.')}): {work}"
    return f"begun, goes on: {work}" if (cell.folder / "cell.json").is_file() else work


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
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
