"""The learning rate and beta1 as pure functions of progress, the length of a run, and checks of the section ``train``."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

from ttt.config.schema import MISSING, TrainSection
from ttt.errors import ConfigError
from ttt.interfaces import LrSchedule, ScheduleState
from ttt.registry.families import LR_SCHEDULE
from ttt.train.optimizers import optimizer_name, optimizer_of

log = logging.getLogger(__name__)


def schedule_of(train: TrainSection) -> LrSchedule:
    """``train.schedule`` as an object, if it is only a name yet."""
    return LR_SCHEDULE.build(train.schedule, "train.schedule")


def lr_at(train: TrainSection, update: int, elapsed_s: float = 0.0, epoch: float = 0.0) -> float:
    """Learning rate of update number ``update`` (from 0), with ``epoch`` epochs done (whole ones count).

    Warm-up is linear over ``warmup_steps`` updates, unless the schedule has its own.  The decay goes from progress
    ``decay_start`` to 1, where progress is ``update / steps`` (and the decay waits for the warm-up's end), or with
    ``schedule_by: seconds`` the larger of that and ``elapsed_s / max_seconds``.

    >>> train = TrainSection(steps=10, lr=1.0, schedule="linear", warmup_steps=2)
    >>> [lr_at(train, u) for u in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    progress = _progress(train, update, elapsed_s)
    start = max(train.decay_start, train.warmup_steps / train.steps)
    if train.schedule_by == "seconds":
        start = train.decay_start
    x = 0.0 if progress <= start else min(1.0, (progress - start) / (1.0 - start))
    schedule = schedule_of(train)
    at = ScheduleState(update=update, epoch=math.floor(epoch), decayed=x, warmup_steps=train.warmup_steps)
    falling = train.min_lr_ratio + (1.0 - train.min_lr_ratio) * schedule.decay(at)
    lr = train.lr * schedule.warmup(at) * falling
    beta1 = beta1_at(train, update, elapsed_s)
    return lr if beta1 is None else lr * (1.0 - train.betas[0]) / (1.0 - beta1)


def beta1_at(train: TrainSection, update: int, elapsed_s: float = 0.0) -> float | None:
    """beta1 on its straight way from ``betas[0]`` to ``final_beta1``; None: it stays.

    LLaDA's momentum decay.  `lr_at` keeps lr / (1 - beta1), the length of a step in a constant gradient's direction, on
    the schedule.

    >>> train = TrainSection(steps=10, betas=(0.9, 0.95), final_beta1=0.5)
    >>> [beta1_at(train, u) for u in (0, 5, 10)]
    [0.9, 0.7, 0.5]
    """
    if not train.final_beta1:
        return None
    left = 1.0 - min(1.0, _progress(train, update, elapsed_s))
    return train.final_beta1 + (train.betas[0] - train.final_beta1) * left


def _progress(train: TrainSection, update: int, elapsed_s: float) -> float:
    by_steps = update / train.steps
    return max(by_steps, elapsed_s / train.max_seconds) if train.schedule_by == "seconds" else by_steps


def in_epochs(train: TrainSection) -> bool:
    """Is the length given in epochs: are there no steps?"""
    return train.steps in (MISSING, 0)


def with_length(train: TrainSection, epoch_of: Callable[[int], float]) -> TrainSection:
    """The section with ``steps`` and ``warmup_steps`` in updates, where they were given in epochs; steps win.

    ``epoch_of``: epochs done when an update starts.
    """
    per_epoch = 1.0 / epoch_of(1)
    changed: dict[str, Any] = {}
    if in_epochs(train):
        changed["steps"] = max(1, math.ceil(train.epochs * per_epoch - 1e-6))
        log.info("train: %g epochs are %d updates", train.epochs, changed["steps"])
    if train.warmup_epochs and not train.warmup_steps:
        changed["warmup_steps"] = round(train.warmup_epochs * per_epoch)
        log.info("train: the warm-up of %g epochs takes %d updates", train.warmup_epochs, changed["warmup_steps"])
    return dataclasses.replace(train, **changed) if changed else train


def check_section(train: TrainSection) -> None:
    """Refuse values that cannot run, naming the key."""
    optimizer, _ = optimizer_of(train), schedule_of(train)
    if in_epochs(train) and train.epochs <= 0:
        raise ConfigError("train.steps: missing mandatory value; give train.steps=... or train.epochs=...")
    if train.final_beta1 and not optimizer.beta1_may_move:
        raise ConfigError(
            f"train.final_beta1: {optimizer_name(train)} keeps its beta1; use train.optimizer=adamw or adam, or leave it 0"
        )
    if train.generate_every_steps and not train.generate_items:
        raise ConfigError("train.generate_every_steps: nothing is generated; set train.generate_items")
    if train.keep_best and not (train.eval_every_steps or train.generate_every_steps):
        raise ConfigError(
            "train.keep_best: there is one validation, at the end, so nothing to choose from; set train.eval_every_steps"
        )
    if train.schedule_by == "seconds" and train.max_seconds <= 0:
        raise ConfigError("train.schedule_by: seconds needs train.max_seconds > 0, the time the decay is spread over")
