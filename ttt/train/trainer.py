"""The loop: when to log, validate, save and stop.  It knows an objective and an engine, nothing of what they compute.

A run folder holds ``config.yaml``, ``command.txt``, ``env.json``, ``data.json`` (digests), ``metrics.jsonl``,
``answers.jsonl`` (with ``train.generate_items``), ``tensorboard/``, ``checkpoints/`` and, after a failure, ``crash-N/``
with the batch that failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ttt.config.diff import Change
from ttt.config.load import resolved_yaml
from ttt.config.record import command_line
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, suggest
from ttt.interfaces import Objective
from ttt.io import atomic, provenance
from ttt.io.outputs import is_inside, is_same
from ttt.io.threads import keep_threads
from ttt.train import run_folder
from ttt.train.checkpoint import (
    TrainState,
    latest_complete,
    load_checkpoint,
    read_state,
    remove_leftovers,
    save_checkpoint,
    set_links,
)
from ttt.train.crash import load_crash, save_crash
from ttt.train.engines import Engine, RankLostError, build_engine, check_trainable
from ttt.train.engines.ranks import PeerFailedError, is_lost_rank, lost_rank_message
from ttt.train.learning_rate import beta1_at, check_section, lr_at, with_length
from ttt.train.memory_check import check_memory
from ttt.train.progress import Progress, Tracker, Window, means
from ttt.train.step import train_step, validation_losses
from ttt.train.stop_conditions import REASONS, reached, seconds_of, time_limit_s
from ttt.types import PackedBatch

__all__ = ["Callback", "RunReport", "Trainer", "clear", "load_crash", "save_crash"]

log = logging.getLogger(__name__)

FINISHED = REASONS
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What `run.overwrite` removes: only what a run writes itself.
_STEP = "step-" + 8 * "[0-9]"
OWN_FILES = (
    "config.yaml", "command.txt", "env.json", "metrics.jsonl", "answers.jsonl", f"checkpoints/{_STEP}",
    f"checkpoints/.{_STEP}.partial", "tensorboard/events.out.tfevents.*", f"generated/{_STEP}", "crash-[0-9]*", "data.json",
)  # fmt: skip
OWN_LINKS = ("checkpoints/best", "checkpoints/epoch-[0-9]*")
OWN_FOLDERS = ("checkpoints", "tensorboard", "generated")  # removed when nothing else is in them


class Batches(Protocol):
    """What the trainer needs of a loader: batches as a pure function, so that there is no position to save."""

    digest: str

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        """Micro-batch ``index`` of update ``update`` (from 0) on this rank."""

    def epoch_of(self, update: int) -> float:
        """Epochs done when ``update`` starts."""

    def costliest_batch(self, epoch: int) -> tuple[tuple[float, int], PackedBatch]:
        """The batch of an epoch, over all ranks, that costs most: (what it counts, tokens) and the batch."""


# Called at validation time on every rank, model in evaluation mode, no gradients: (trainer, step) -> further metrics.
Callback = Callable[["Trainer", int], "Mapping[str, float] | None"]


@dataclass(frozen=True)
class RunReport:
    """How a call of `Trainer.run` ended.

    ``stopped``: a limit (`ttt.train.stop_conditions`), "SIGTERM" or "SIGINT"; ``metrics``: the last line that was logged.
    """

    step: int
    stopped: str
    checkpoint: Path | None
    metrics: Mapping[str, float]

    @property
    def exit_code(self) -> int:
        """130 after an interrupt from the keyboard, else 0."""
        return 130 if self.stopped == "SIGINT" else 0


class Trainer:
    """Trains ``model`` on ``loader`` with ``objective``; goes on from the latest complete checkpoint of ``run.dir``.

    ``model``: a `ttt.interfaces.Network`; ``dev_batches`` are validated every ``eval_every_steps`` and at the end, and
    ``callbacks`` called then.  ``vocab_digest`` guards against weights of another vocabulary (None: the model's own).
    """

    def __init__(
        self, config: RunConfig, model: Any, objective: Objective, loader: Batches,
        dev_batches: Sequence[PackedBatch] = (), *, vocab_digest: str | None = None,
        callbacks: Sequence[Callback] = (), engine: Engine | None = None,
    ) -> None:  # fmt: skip
        check_section(config.train)
        check_trainable(config.model.attention, config.run.device, config.model.dtype, config.train.autocast)
        seconds_of(config.train.max_time)  # refused before anything is made
        if config.train.check_memory and config.train.engine != "local":
            raise ConfigError(
                f"train.check_memory: engine {config.train.engine!r} cannot drop gradients; set it to false, or use "
                "train.engine=local"
            )
        if callbacks and config.eval.weights == "ema" and not config.train.ema:
            raise ConfigError("eval.weights: ema, but this run averages no weights; set train.ema=0.999, or eval.weights=raw")
        if config.train.keep_best and not (dev_batches or callbacks):
            raise ConfigError("train.keep_best: there are no validations to choose from; name data.dev")
        config = dataclasses.replace(config, train=with_length(config.train, loader.epoch_of))
        self.config, self.objective, self.loader = config, objective, loader
        self.dev_batches, self.callbacks = list(dev_batches), list(callbacks)
        self.folder = Path(config.run.dir)
        self.engine = engine or build_engine(model, config.train, config.run.device)
        if vocab_digest is None:
            vocab_digest = getattr(getattr(getattr(model, "tokenizer", None), "vocab", None), "digest", "")
        self.state = TrainState(
            seed=config.run.seed, world_size=self.engine.world_size,
            micro_batches=config.train.accumulate * self.engine.world_size, data_digest=loader.digest, vocab_digest=vocab_digest,
        )  # fmt: skip
        self._identity = {"data_digest": loader.digest, "vocab_digest": vocab_digest}
        self.window = Window()
        self._config_yaml = resolved_yaml(config)
        self._signal = self._environment = ""
        self._began = time.monotonic()
        self._lr = 0.0  # of the latest update
        self._elapsed_s = 0.0  # training time at the last look, the same on every rank
        self._metrics: dict[str, float] = {}

    @property
    def model(self) -> nn.Module:
        """The network being trained."""
        return self.engine.model

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.folder / "checkpoints"

    def run(self) -> RunReport:
        """Train to the end, to a signal, or to the time budget; always leaves a complete checkpoint when it returns."""
        main = self.engine.rank == 0
        changes: list[Change] = []
        with contextlib.ExitStack() as stack:
            try:
                with self.engine.ranks.all_or_none():
                    if main:
                        run_folder.check_made_here(self.folder)
                        stack.enter_context(run_folder.hold(self.folder))
                        changes = self._check_folder()
                stack.enter_context(self._listening())
                self._resume()
                with self.engine.ranks.all_or_none():
                    if main:  # only now: a run that is refused leaves the folder as it was
                        self._write_folder(changes)
                    tracker = Tracker(self.folder, self.state.step, self.config.train.tensorboard, enabled=main)
                stack.callback(tracker.close)
                report = self._loop(tracker)
            except Exception as error:
                if self.engine.world_size == 1 or not is_lost_rank(error):
                    raise
                last = latest_complete(self.checkpoints)
                raise RankLostError(lost_rank_message(
                    error, self.engine.rank, self.state.step, last.name if last else "the start: there is no checkpoint yet"
                )) from error  # fmt: skip
            self.engine.close()
            return report

    def validate(self, step: int, losses: bool = True, callbacks: bool = True) -> dict[str, float]:
        """Validation ``losses`` and what the ``callbacks`` add, by key."""
        was_training = self.model.training
        self.model.eval()
        values: dict[str, float] = {}
        try:
            if losses and self.dev_batches:
                values.update(self._losses("dev"))
                if self.engine.average is not None:
                    with self.engine.average.in_place():
                        values.update(self._losses("dev_ema"))
            if callbacks and self.callbacks:
                average = self.engine.average if self.config.eval.weights == "ema" else None
                in_place = contextlib.nullcontext() if average is None else average.in_place()
                with torch.no_grad(), self.engine.whole_weights(), in_place:
                    for callback in self.callbacks:
                        values.update(callback(self, step) or {})
        finally:
            self.model.train(was_training)
        return values

    def _losses(self, prefix: str) -> dict[str, float]:
        loss, terms, stats = validation_losses(self.engine, self.objective, self.dev_batches, self.config.run.seed)
        return {
            f"{prefix}/loss": loss, **{f"{prefix}/loss/{name}": value for name, value in terms.items()},
            **{f"{prefix}/{name}": value for name, value in means(stats).items()},
        }  # fmt: skip

    def _loop(self, tracker: Tracker) -> RunReport:
        train, state = self.config.train, self.state
        progress = Progress(train.steps, time_limit_s(train), enabled=self.engine.rank == 0, step=self.state.step)
        self._began = time.monotonic()
        self.model.train()
        checkpoint = latest_complete(self.checkpoints)
        stopped = self._stop_reason()
        if stopped in FINISHED:
            log.info(
                "%s: nothing left to do: %d steps, %.0f s done (%s)", self.folder, state.step, state.elapsed_s, stopped
            )
        if train.check_memory and not stopped:
            with self.engine.ranks.all_or_none():
                _, costliest_batch = self.loader.costliest_batch(int(self.loader.epoch_of(state.step)))
                check_memory(self.engine, self.objective, costliest_batch, self.config.run.seed)
            self._began = time.monotonic()
        while not stopped:
            report, seconds = self._update()
            self.window.add(report, seconds)
            progress.update(state.step, state.tokens, report.loss, self._elapsed_s)
            stopped = self._stop_reason()
            finished = stopped in FINISHED
            values: dict[str, float] = {}
            best = False
            if finished or _due(state.step, train.log_every_steps):
                values.update(self.window.flush())
                values["train/lr"] = self._lr
                values["train/tokens"] = state.tokens
                values["train/epoch"] = self.loader.epoch_of(state.step)
                values["train/seconds"] = self._elapsed_s
                if self.engine.loss_scale is not None:
                    values |= {"train/loss_scale": self.engine.loss_scale, "train/skipped": state.skipped}
            losses = finished or _due(state.step, train.eval_every_steps)
            answers = finished or _due(state.step, train.generate_every_steps or train.eval_every_steps)
            if losses or answers:
                values.update(self.validate(state.step, losses, answers))
                best = self._note_best(values, whole=losses and answers)
            tracker.write(state.step, values)
            progress.record(state.step, values, self._elapsed_s)
            self._metrics = values or self._metrics
            if stopped or best or self._epoch_reached() or _due(state.step, train.save_every_steps):
                tracker.sync()
                checkpoint = self._save(stopped)
        progress.end()
        if stopped not in FINISHED:
            log.info("%s: stopped by %s after step %d; the same command goes on", self.folder, stopped, state.step)
        return RunReport(state.step, stopped, checkpoint, self._metrics)

    def _update(self) -> tuple[Any, float]:
        """One update; on any failure its batches are saved first."""
        started = time.monotonic()
        update = self.state.step
        self._lr = lr_at(self.config.train, update, self._elapsed_s, self.loader.epoch_of(update))
        beta1 = beta1_at(self.config.train, update, self._elapsed_s)
        window: list[PackedBatch] = []
        try:
            for index in range(self.config.train.accumulate):
                window.append(
                    replace(self.loader.micro_batch(update, index), progress=update / self.config.train.steps)
                )
            report = train_step(
                self.engine, self.objective, window, update=update, seed=self.config.run.seed, lr=self._lr, beta1=beta1
            )
        except Exception as error:
            if not isinstance(error, PeerFailedError) and not is_lost_rank(error):
                folder = self.folder / f"crash-{update + 1:08d}"
                save_crash(
                    folder, window, error, self.objective, update=update, seed=self.config.run.seed, rank=self.engine.rank,
                    world_size=self.engine.world_size,
                )  # fmt: skip
            raise
        self.state.step += 1
        self.state.tokens += report.tokens
        self.state.skipped += report.skipped
        if self.engine.average is not None and not report.skipped:
            self.engine.average.update(self.state.step)
        return report, time.monotonic() - started

    def _stop_reason(self) -> str:
        """Why to stop now, or nothing.  Rank zero's clock and every rank's signals count, so all ranks agree."""
        own_s = self.state.elapsed_s + time.monotonic() - self._began
        signals = {s.name: float(self._signal == s.name) for s in SIGNALS}
        shared = self.engine.sum_over_ranks({"elapsed": own_s if self.engine.rank == 0 else 0.0, **signals})
        self._elapsed_s = shared["elapsed"]
        limit = reached(self.config.train, self.state.step, self.state.tokens, self._elapsed_s)
        return limit or next((s.name for s in SIGNALS if shared[s.name]), "")

    def _save(self, stopped: str) -> Path:
        now = time.monotonic()
        self.state.elapsed_s += now - self._began
        self._began = now
        self.state.stopped, self.state.window = stopped, self.window.state()
        files = {"config.yaml": self._config_yaml, "env.json": self._environment}
        keep = self.config.train.keep_checkpoints
        return save_checkpoint(self.checkpoints, self.state, self.engine, files, keep, self._links())

    def _links(self) -> dict[str, int]:
        """Further names of checkpoints -> their steps."""
        links = {"best": int(self.state.best["step"])} if self.state.best else {}
        epoch = self._epoch_reached()
        return {**links, f"epoch-{epoch:g}": self.state.step} if epoch else links

    def _epoch_reached(self) -> float:
        """The latest multiple of ``save_every_epochs`` that the last update brought in reach; 0: none."""
        every = self.config.train.save_every_epochs
        if not every or not self.state.step:
            return 0.0
        before, now = (math.floor(self.loader.epoch_of(self.state.step - i) / every + 1e-6) for i in (1, 0))
        return now * every if now > before else 0.0

    def _note_best(self, values: Mapping[str, float], whole: bool) -> bool:
        """Is this validation the best so far?  Rank zero's values count: the others lack what callbacks add.

        ``whole``: losses and callbacks both.
        """
        key = self.config.train.keep_best
        if not key:
            return False
        best = self.state.best if self.state.best.get("key") == key else {}
        value = self.engine.ranks.all_gather(values.get(key))[0]
        if value is None and not best and whole:
            known = sorted(name for name in values if not name.startswith("train/"))
            saved = self._save("").name
            raise ConfigError(
                f"train.keep_best: no {key!r} in a validation.{suggest(key, known)} There are: {', '.join(known)}; name one of "
                f"them, the run then goes on from {saved}"
            )
        sign = -1 if self.config.train.keep_best_mode == "max" else 1
        if value is None or math.isnan(value) or (best and sign * value >= sign * best["value"]):
            return False
        self.state.best = {"key": key, "value": value, "step": self.state.step}
        return True

    def _check_folder(self) -> list[Change]:
        """Refuse another run's folder, or clear it when told to.  -> what the run goes on with."""
        latest = latest_complete(self.checkpoints)
        if self.config.run.overwrite:
            refuse_to_clear_inputs(self.folder, paths_read(self.config))
            clear(self.folder)
        elif latest is not None and not self.config.train.resume:
            raise ConfigError(
                f"train.resume: false, but {self.folder} holds a run (latest: {latest.name}); "
                "run.overwrite=true starts over, another run.dir keeps both"
            )
        return run_folder.check_same_run(self.folder, self._config_yaml, self._identity)

    def _write_folder(self, changes: Sequence[Change]) -> None:
        """Store what this run is made of."""
        for change in changes:
            log.info("%s: the run goes on with %s", self.folder, change)
            if change.key == "train.steps":
                log.warning("train.steps changed: the learning rate follows the new length from here on")
        atomic.write_json(self.folder / "data.json", self._identity)  # first: it says that ttt made this folder
        remove_leftovers(self.checkpoints)
        self.checkpoints.mkdir(exist_ok=True)
        set_links(self.checkpoints, self._links())  # a kill may have come between a checkpoint and its links
        self._environment = json.dumps(provenance.environment(command_line()), indent=1) + "\n"
        atomic.write_text(self.folder / "env.json", self._environment)
        atomic.write_text(self.folder / "config.yaml", self._config_yaml)
        with (self.folder / "command.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {command_line()}\n")

    def _resume(self) -> None:
        with self.engine.ranks.all_or_none():
            checkpoint = latest_complete(self.checkpoints) if self.engine.rank == 0 else None
        checkpoint = self.engine.ranks.all_gather(checkpoint)[0]  # a shared folder may look older from another machine
        if checkpoint is None or not self.config.train.resume:
            return
        stored = read_state(checkpoint)
        ranks, accumulate = self.engine.world_size, self.config.train.accumulate
        micro_batches = stored.micro_batches or stored.world_size * accumulate  # 0: written before the number was stored
        if micro_batches != ranks * accumulate:
            fits = micro_batches % ranks == 0
            fitting = f"train.accumulate={micro_batches // ranks}" if fits else f"a number of ranks that divides {micro_batches}"
            raise ConfigError(
                f"{checkpoint}: an update there has {micro_batches} micro-batches, this run has {ranks} ranks x {accumulate}: the "
                f"batches would be others; give {fitting}, or start a new run with train.init_from"
            )
        self.state = load_checkpoint(checkpoint, self.engine, self.state.vocab_digest)
        self.state.world_size, self.state.micro_batches = ranks, micro_batches
        self.window = Window(self.state.window)
        self.state.stopped = ""
        keep_threads(threads_of(checkpoint))
        if self.engine.rank == 0:
            log.info("%s: going on from %s (%d tokens seen)", self.folder, checkpoint.name, self.state.tokens)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a checkpoint after the running update; a SIGINT after either acts at once.

        Schedulers signal every process of a job, and launchers hand the signal on: a second SIGTERM means nothing new.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {}

        def note(number: int, frame: Any) -> None:
            if not self._signal:
                self._signal = signal.Signals(number).name
                signal.signal(signal.SIGINT, before[signal.SIGINT])
                log.warning("%s: saving after this update; Ctrl-C stops at once", self._signal)

        for number in SIGNALS:
            before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for known, handler in before.items():
                signal.signal(known, handler)


def threads_of(checkpoint: Path) -> int:
    """CPU threads of the run that wrote a checkpoint; 0 where its record does not say."""
    try:
        threads = json.loads((checkpoint / "env.json").read_text(encoding="utf-8")).get("threads", 0)
    except (OSError, ValueError, AttributeError):
        return 0
    return threads if isinstance(threads, int) else 0


def paths_read(config: RunConfig) -> dict[str, str]:
    """Key -> path of everything a training reads."""
    data, train = config.data, config.train
    paths = {"data.train": data.train, "data.dev": data.dev, "data.tokenizer": data.tokenizer, "model.path": config.model.path}
    return {**paths, "train.init_from": train.init_from, "codec.path": str(getattr(config.codec, "path", "") or "")}


def clear(folder: Path) -> None:
    """Remove what an earlier run wrote to its folder, and nothing else."""
    for pattern in OWN_LINKS:
        for path in folder.glob(pattern):
            if path.is_symlink():
                path.unlink()
    for pattern in OWN_FILES:
        for path in folder.glob(pattern):
            log.info("run.overwrite: removing %s", path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in OWN_FOLDERS:
        with contextlib.suppress(OSError):  # not there, a link, or somebody's files are in it
            (folder / name).rmdir()


def refuse_to_clear_inputs(folder: Path, inputs: Mapping[str, str]) -> None:
    """Raise `ConfigError` when `clear` would remove one of the ``inputs`` (key -> path)."""
    own = [path for pattern in OWN_FILES for path in folder.glob(pattern)]
    for key, value in inputs.items():
        if value and any(is_same(Path(value), path) or is_inside(Path(value), path) for path in own):
            raise ConfigError(f"run.overwrite: would remove {key}, {value}, which this run reads; choose another run.dir")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
