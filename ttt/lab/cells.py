"""Running experiments: a cell is one configuration and seed in a folder of its own, trained, decoded and scored by verbs.

    CELL/cell.json   what it is made of: resolved configuration, digests of its data
    CELL/cell.yaml   the resolved configuration, which the verbs are given
    CELL/log.txt     everything the verbs say
    CELL/...         what `ttt train` writes; CELL/eval: what `ttt generate` and `ttt score` write
"""

from __future__ import annotations

import json
import logging
import os
import shutil
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
from typing import Any

from ttt.config.load import resolved_yaml, to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError, TttError
from ttt.eval import cards

log = logging.getLogger(__name__)

# Where a cell lives and how it is watched: neither is part of what it is.
NOT_IDENTITY = (
    "run.dir", "run.overwrite", "run.threads", "data.jobs", "eval.out", "eval.checkpoint", "train.keep_checkpoints",
    "train.save_every_steps", "train.log_every_steps", "train.tensorboard", "train.resume",
)  # fmt: skip
DECODING = ("eval", "judge", "speaker", "tasks")  # changed, they leave a training as it is
_TAIL = 6  # lines of a failed cell's log that are shown
_PATIENCE_S = 60.0  # for a child to save its checkpoint after an interrupt


class CellFailed(Exception):
    """A cell could not be finished; the message is shown, the other cells go on."""


class Halted(Exception):
    """A cell was stopped from outside."""


@dataclass(frozen=True)
class Cell:
    """One experiment.  ``inputs``: configuration key -> {"path", "digest"}; ``parent``: the cell whose training it uses."""

    row: str
    label: str
    seed: int
    folder: Path
    card: Path
    config: RunConfig
    inputs: Mapping[str, Mapping[str, str]]
    parent: Cell | None = None
    table: str = ""

    @property
    def name(self) -> str:
        """``ROW seed S``."""
        return f"{self.row} seed {self.seed}"

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON has it."""
        plain = json.loads(json.dumps(to_plain(self.config), default=str))
        for key in NOT_IDENTITY:
            section, _, name = key.partition(".")
            plain[section].pop(name, None)
        return {"config": plain, "inputs": {k: dict(v) for k, v in self.inputs.items()}}

    def digest(self) -> str:
        """16 hex digits of `identity`."""
        import hashlib

        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=8).hexdigest()

    def changed(self) -> list[str]:
        """``key: old -> new`` of what this folder was begun with and is asked for now."""
        path = self.folder / "cell.json"
        if not path.is_file():
            return []
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not JSON: {error.msg}; delete {self.folder} to make the cell again") from error
        return differences(before.get("identity", {}), self.identity())

    def is_done(self) -> bool:
        """Is there a card of exactly this experiment?"""
        if not self.card.is_file() or not (self.folder / "eval" / "items.jsonl").is_file():
            return False
        try:
            return cards.read_card(self.card).get("digest") == self.digest()
        except DataError:
            return False

    def prepare(self, overwrite: bool) -> None:
        """Write the configuration; with ``overwrite`` remove what no longer fits (a training only if it must go)."""
        changed = self.changed() if overwrite else []
        if changed:
            self.card.unlink(missing_ok=True)
            again = any(not is_decoding(key.partition(":")[0]) for key in changed)
            shutil.rmtree(self.folder if again else self.folder / "eval")
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "cell.yaml.tmp"
        temporary.write_text(resolved_yaml(self.config), encoding="utf-8")
        temporary.replace(self.folder / "cell.yaml")
        about = {"row": self.row, "seed": self.seed, "digest": self.digest(), "identity": self.identity()}
        cards.write_json(self.folder / "cell.json", about)

    def verbs(self) -> tuple[str, ...]:
        """What is run, in order."""
        return ("generate", "score") if self.config.eval.checkpoint else ("train", "generate", "score")


def is_decoding(key: str) -> bool:
    """Whether a key of `Cell.identity` leaves the training as it is.

    >>> is_decoding("config.eval.sampler"), is_decoding("inputs.eval.examples[0]"), is_decoding("config.train.lr")
    (True, True, False)
    """
    part, _, name = key.partition(".")
    names = DECODING if part == "config" else ("eval.", "judge", "speaker")
    return name.startswith(names)


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """``key: old -> new`` of every leaf that differs.

    >>> differences({"train": {"steps": 5, "lr": 1}}, {"train": {"steps": 6, "lr": 1}})
    ['train.steps: 5 -> 6']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        out: list[str] = []
        for key in sorted({*old, *new}):
            inner = f"{at}.{key}" if at else str(key)
            out += differences(old.get(key, "(absent)"), new.get(key, "(absent)"), inner)
        return out
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]


def inputs_of(config: RunConfig, digests: dict[str, str], decode_only: bool = False) -> dict[str, dict[str, str]]:
    """Digests of all that the verbs will read; ``digests`` keeps those already taken, by path.

    Raises `DataError` naming what is missing, before anything runs.
    """
    from ttt.data.mix import is_mix, sources_of

    wanted = {"data.train": config.data.train, "data.dev": config.data.dev, "data.tokenizer": config.data.tokenizer}
    wanted |= {"train.init_from": config.train.init_from, "model.path": config.model.path}
    wanted |= {f"eval.examples[{i}]": path for i, path in enumerate(config.eval.examples)}
    wanted |= {f"{k}.path": str(getattr(getattr(config, k), "path", "") or "") for k in ("codec", "judge", "speaker")}
    if decode_only:
        wanted = {k: v for k, v in wanted.items() if k.startswith(("eval.", "codec.", "judge.", "speaker."))}
    if is_mix(config.data.train) and not decode_only:  # its digest alone says nothing of its sources
        wanted |= {f"data.train[{s.name}]": str(s.path) for s in sources_of(config.data.train)}
    found = {}
    for key, name in wanted.items():
        if not name:
            continue
        if not Path(name).exists():
            raise DataError(f"{key}: {name} is missing; make it first (run.sh of the corpus says which stage does)")
        if name not in digests:
            digests[name] = cards.digest(name)
        found[key] = {"path": name, "digest": digests[name]}
    return found


def refuse_changed(cells: Sequence[Cell]) -> None:
    """One error for all cells that were begun with other settings; ``--overwrite`` makes them again."""
    changed = [(cell, found) for cell in cells if (found := cell.changed())]
    if changed:
        cell, found = changed[0]
        more = f"; {len(changed) - 1} more cells too" if len(changed) > 1 else ""
        shown = ", ".join(x.removeprefix("config.") for x in found[:3]) + (", .." if len(found) > 3 else "")
        raise ConfigError(
            f"{cell.folder}: cell {cell.name!r} was made with other settings ({shown}){more}; give --overwrite to make such "
            "cells again, or another --out"
        )


# ------------------------------------------------------------------------------------------------- one cell

class Stop(threading.Event):
    """Set: running cells shall end in order; ``hurry`` set too: at once."""

    def __init__(self) -> None:
        super().__init__()
        self.hurry = threading.Event()


Runner = Callable[[Cell, int, Stop], "dict[str, float]"]  # (cell, slot, stop) -> seconds of each verb


@dataclass(frozen=True)
class Subprocesses:
    """Runs the verbs of a cell one after the other as child processes; ``jobs`` such cells run at a time.

    ``gpus``: visible devices, dealt out by slot; empty: none.
    """

    jobs: int = 1
    gpus: tuple[str, ...] = ()
    command: tuple[str, ...] = (sys.executable, "-m", "ttt")

    def environment(self, slot: int) -> dict[str, str]:
        """A child's environment: its share of the cores (unless ``OMP_NUM_THREADS`` is set) and its GPU."""
        share = max(1, cores() // self.jobs)
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


def end(child: subprocess.Popen, hurry: threading.Event, patience_s: float = _PATIENCE_S) -> int:
    """Ask a child and its own children to stop, which lets training save; insist after ``patience_s`` or in a hurry."""
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
    """A training that was told to stop ends well too: only a finished one may be decoded."""
    if not is_trained(cell.folder, cell.config.train.steps):
        state = _state(cell.folder)
        done = state.step if state is not None else 0
        raise CellFailed(f"training stopped at step {done} of {cell.config.train.steps}; the same command goes on")


def is_trained(folder: Path, steps: int) -> bool:
    """Whether a run folder holds a training of ``steps`` updates, or one that ended at a limit of its own."""
    from ttt.train.limits import REASONS

    state = _state(folder)
    return state is not None and (state.step >= steps or state.stopped in REASONS)


def _state(folder: Path) -> Any:
    from ttt.train.checkpoint import latest_complete, read_state

    found = latest_complete(folder / "checkpoints")
    return read_state(found) if found is not None else None


def tail(folder: Path) -> str:
    """The last lines of a cell's log."""
    path = folder / "log.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return "\n".join(f"    {line}" for line in lines[-_TAIL:]) or "    (empty)"


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(device: str) -> tuple[str, ...]:
    """Names for ``CUDA_VISIBLE_DEVICES``, one per GPU that may be used."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return ()
    told = [x for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x.strip()]
    return tuple(told) or tuple(str(i) for i in range(torch.cuda.device_count()))


def write_cell_card(cell: Cell, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The score's card with what the experiment adds: row, seed, digest, inputs, training and times."""
    card = cards.read_card(cell.folder / "eval" / "card.json")
    trained = Path(cell.config.eval.checkpoint or cell.folder)
    card |= {
        "table": cell.table, "row": cell.row, "label": cell.label, "seed": cell.seed, "digest": cell.digest(),
        "inputs": {k: dict(v) for k, v in cell.inputs.items()}, "training": training_of(trained),
        "decode_only_of": cell.parent.row if cell.parent is not None else "",
        "items": os.path.relpath(cell.folder / "eval" / "items.jsonl", cell.card.parent),
    }  # fmt: skip
    card["by_kind"] = {}  # stays in the score's own card, beside the items it is computed from
    card["timing"] = {**card["timing"], **{f"{verb}_wall_s": round(s, 2) for verb, s in seconds.items()}}
    if not cell.config.eval.checkpoint:
        card["timing"]["train_s"] = card["training"].get("seconds")
    cards.write_card(cell.card, card)
    return card


def training_of(folder: Path) -> dict[str, Any]:
    """Updates, tokens, seconds and hardware of a run folder; {} when it is not one."""
    from ttt.train.checkpoint import latest_complete, read_state

    found = latest_complete(folder / "checkpoints")
    if found is None:
        return {}
    state = read_state(found)
    about: dict[str, Any] = {"updates": state.step, "tokens": state.tokens, "seconds": round(state.elapsed_s, 2)}
    try:
        env = json.loads((found / "env.json").read_text(encoding="utf-8"))
        about["hardware"] = {k: env.get(k) for k in ("cpu", "cpus", "gpus", "threads", "world_size")}
    except (OSError, json.JSONDecodeError) as error:
        log.warning("%s: machine of the training unknown: %s", found, error)
    return about


# ------------------------------------------------------------------------------------------------- many cells


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: ``card`` when it was finished, else ``error``."""

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
    asked = {cell.name for cell in cells}
    began = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for cell in list(waiting):
                    parent = cell.parent.name if cell.parent is not None and cell.parent.name in asked else ""
                    if parent and parent not in ended:
                        continue
                    if len(running) >= jobs:
                        break
                    waiting.remove(cell)
                    if parent and ended[parent].error:
                        _keep(ended, Outcome(cell, 0.0, f"its training, {parent}, failed"), len(cells), began)
                        continue
                    running[pool.submit(work, cell)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    _keep(ended, _outcome(running.pop(future), future), len(cells), began)
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
    """`TttError` and `CellFailed` belong to the cell; anything else is a fault of the program."""
    try:
        return Outcome(cell, future.result())
    except (CellFailed, TttError) as error:
        return Outcome(cell, 0.0, str(error) or type(error).__name__)


def _keep(ended: dict[str, Outcome], outcome: Outcome, total: int, began: float) -> None:
    from ttt.train.tracking import clock

    ended[outcome.cell.name] = outcome
    spent = time.monotonic() - began
    left = clock(spent / len(ended) * (total - len(ended)))
    if outcome.error:
        log.error("[%d/%d] %s: failed: %s", len(ended), total, outcome.cell.name, outcome.error)
    else:
        log.info("[%d/%d] %s: done in %.0f s  ETA %s", len(ended), total, outcome.cell.name, outcome.seconds, left)
