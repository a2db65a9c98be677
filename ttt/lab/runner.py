"""Running cells: the verbs of a cell one after the other as child processes, several cells at a time.

A failed cell is reported and the others go on.  An interrupt stops the running cells in order: training saves a checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from ttt.errors import TttError
from ttt.io.provenance import usable_cpus
from ttt.lab.cells import Cell, is_trained, last_state, write_cell_card

log = logging.getLogger(__name__)

LOG_LINES = 6  # lines of a failed cell's log that are shown
PATIENCE_S = 60.0  # for a child to save its checkpoint after an interrupt


class CellFailed(Exception):
    """A cell could not be finished; the message is shown, the other cells go on."""


class Halted(Exception):
    """A cell was stopped from outside."""


class Stop(threading.Event):
    """Set when running cells must end; with ``hurry`` set too, at once and without saving."""

    def __init__(self) -> None:
        super().__init__()
        self.hurry = threading.Event()


Runner = Callable[[Cell, int, Stop], "dict[str, float]"]  # (cell, slot, stop) -> seconds of each verb


@dataclass(frozen=True)
class Subprocesses:
    """Runs the verbs of a cell one after the other as child processes.

    ``jobs``: cells that run at a time, each in a slot of its own; ``gpus``: visible devices, assigned by slot.
    """

    jobs: int = 1
    gpus: tuple[str, ...] = ()
    command: tuple[str, ...] = (sys.executable, "-m", "ttt")

    def environment(self, slot: int) -> dict[str, str]:
        """A child's environment: its share of the cores (unless ``OMP_NUM_THREADS`` is set) and its GPU."""
        share = max(1, usable_cpus() // self.jobs)
        more = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        more |= {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        return {"OMP_NUM_THREADS": str(share), **os.environ, **more}

    def __call__(self, cell: Cell, slot: int, stop: Stop) -> dict[str, float]:
        """Seconds of each verb.  Raises `CellFailed` with the last lines of the log, `Halted` when stopped."""
        seconds = {}
        for verb in cell.verbs():
            arguments = [*self.command, verb, "--config", str(cell.folder / "cell.yaml")]
            begun = time.monotonic()
            code = self._run(arguments, cell.folder / "log.txt", self.environment(slot), stop)
            seconds[verb] = time.monotonic() - begun
            if stop.is_set():
                raise Halted(cell.name)
            if code:
                raise CellFailed(f"{verb} ended with exit code {code}; end of {cell.folder / 'log.txt'}:\n{tail(cell.folder)}")
            if verb == "train":
                check_trained(cell)
        return seconds

    def _run(self, arguments: Sequence[str], path: Path, environment: Mapping[str, str], stop: Stop) -> int:
        with path.open("a", encoding="utf-8") as out:
            out.write(f"$ {' '.join(arguments)}\n")
            out.flush()
            # A session of its own: an interrupt at the keyboard reaches the children through us, once and in order.
            child = subprocess.Popen(
                list(arguments), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(environment), start_new_session=True
            )
            while True:
                try:
                    return child.wait(timeout=0.1)
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        return end(child, stop.hurry)


def end(child: subprocess.Popen, hurry: threading.Event, patience_s: float = PATIENCE_S) -> int:
    """Interrupt a child and its children, which lets training save; terminate after ``patience_s``, or at once in a hurry."""
    for number, seconds in ((signal.SIGINT, patience_s), (signal.SIGTERM, 5.0), (signal.SIGKILL, 60.0)):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return child.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (hurry.is_set() and number == signal.SIGINT):
            try:
                return child.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
    return child.wait()


def check_trained(cell: Cell) -> None:
    """Raise `CellFailed` for a training that was interrupted: it exits with code 0 too, but must not be decoded."""
    if not is_trained(cell.folder, cell.config.train.steps):
        state = last_state(cell.folder)
        done = state.step if state is not None else 0
        raise CellFailed(f"training stopped at step {done} of {cell.config.train.steps}; the same command goes on")


def tail(folder: Path) -> str:
    """The last lines of a cell's log."""
    path = folder / "log.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES:]) or "    (empty)"


def visible_gpus(device: str) -> tuple[str, ...]:
    """Names for ``CUDA_VISIBLE_DEVICES``, one per GPU that may be used; none where ``device`` names the one to use."""
    import torch

    if device == "cpu" or ":" in device or not torch.cuda.is_available():
        return ()
    named = [x for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x.strip()]
    return tuple(named) or tuple(str(i) for i in range(torch.cuda.device_count()))


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: ``error`` is empty when its card was written."""

    cell: Cell
    seconds: float
    error: str = ""


def run_cells(cells: Sequence[Cell], jobs: int, runner: Runner, overwrite: bool = False) -> list[Outcome]:
    """Run cells, ``jobs`` at a time and each after its parent; failures are kept, the others go on.

    An interrupt stops the running cells in order (a second one at once) and is raised again.
    """
    stop = Stop()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def work(cell: Cell) -> float:
        slot = slots.get()
        begun = time.monotonic()
        try:
            if stop.is_set():
                raise Halted(cell.name)
            cell.prepare(overwrite)
            write_cell_card(cell, runner(cell, slot, stop))
            return time.monotonic() - begun
        finally:
            slots.put(slot)

    ended: dict[str, Outcome] = {}
    waiting, running = list(cells), dict[Future[float], Cell]()
    names = {cell.name for cell in cells}
    began = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for cell in list(waiting):
                    parent = cell.parent.name if cell.parent is not None and cell.parent.name in names else ""
                    if parent and parent not in ended:
                        continue
                    if len(running) >= jobs:
                        break
                    waiting.remove(cell)
                    if parent and ended[parent].error:
                        _record(ended, Outcome(cell, 0.0, f"its training, {parent}, failed"), len(cells), began)
                        continue
                    running[pool.submit(work, cell)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    _record(ended, _outcome(running.pop(future), future), len(cells), began)
        except BaseException:
            stop.set()
            log.warning("stopping %d running cells; training saves first (once more: at once)", len(running))
            try:
                wait(running)
            except KeyboardInterrupt:
                stop.hurry.set()
            raise
    return [ended[cell.name] for cell in cells]


def _outcome(cell: Cell, future: Future[float]) -> Outcome:
    """How a cell ended.  `TttError` and `CellFailed` are the cell's own; anything else is a fault of the program and raised."""
    try:
        return Outcome(cell, future.result())
    except (CellFailed, TttError) as error:
        return Outcome(cell, 0.0, str(error) or type(error).__name__)


def _record(ended: dict[str, Outcome], outcome: Outcome, total: int, began: float) -> None:
    from ttt.train.progress import clock

    ended[outcome.cell.name] = outcome
    spent = time.monotonic() - began
    left = clock(spent / len(ended) * (total - len(ended)))
    if outcome.error:
        log.error("[%d/%d] %s: failed: %s", len(ended), total, outcome.cell.name, outcome.error)
    else:
        log.info("[%d/%d] %s: done in %.0f s  ETA %s", len(ended), total, outcome.cell.name, outcome.seconds, left)
