"""The learning-rate schedules one can name in ``train.schedule``: factors of ``train.lr`` by update, epoch or share of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ttt.interfaces import LrSchedule, ScheduleState
from ttt.registry import NonNegativeFloat, PositiveFloat, PositiveInt
from ttt.registry.families import LR_SCHEDULE


@LR_SCHEDULE.register("cosine")
@dataclass(frozen=True)
class Cosine(LrSchedule):
    """Half a cosine, from 1 to the floor ``train.min_lr_ratio``."""

    def decay(self, at: ScheduleState) -> float:
        """(1 + cos(pi x)) / 2."""
        return 0.5 * (1.0 + math.cos(math.pi * at.decayed))


@LR_SCHEDULE.register("linear")
@dataclass(frozen=True)
class Linear(LrSchedule):
    """A straight line, from 1 to the floor ``train.min_lr_ratio``."""

    def decay(self, at: ScheduleState) -> float:
        """1 - x."""
        return 1.0 - at.decayed


@LR_SCHEDULE.register("constant")
@dataclass(frozen=True)
class Constant(LrSchedule):
    """No decay after the warm-up."""

    def decay(self, at: ScheduleState) -> float:
        """1."""
        return 1.0


@LR_SCHEDULE.register("eden")
@dataclass(frozen=True)
class Eden(LrSchedule):
    """Falls with updates b and with epochs done e: ((b² + B²) / B²)^(-1/4) · ((e² + E²) / E²)^(-1/4) (icefall).

    It knows no end of the run.  The warm-up goes from a half to 1 over ``train.warmup_steps`` updates.
    """

    lr_batches: PositiveFloat = 5000.0  # B: updates after which it begins to fall
    lr_epochs: NonNegativeFloat = 4.0  # E: epochs after which it begins to fall; 0: by updates alone

    def warmup(self, at: ScheduleState) -> float:
        """0.5 at update 0."""
        return 0.5 + 0.5 * at.update / at.warmup_steps if at.update < at.warmup_steps else 1.0

    def decay(self, at: ScheduleState) -> float:
        """Of whole epochs and of updates done."""
        by_updates = ((at.update / self.lr_batches) ** 2 + 1.0) ** -0.25
        by_epochs = ((at.epoch / self.lr_epochs) ** 2 + 1.0) ** -0.25 if self.lr_epochs else 1.0
        return by_updates * by_epochs


@LR_SCHEDULE.register("noam")
@dataclass(frozen=True)
class Noam(LrSchedule):
    """width^(-1/2) · min(n^(-1/2), n · W^(-3/2)) for update n = 1, 2, ... and W = ``train.warmup_steps`` (Vaswani et al. 2017).

    ``train.lr`` is a factor here (5 is usual), not the peak.
    """

    width: PositiveInt = 512  # of the model; only the product with train.lr counts

    def warmup(self, at: ScheduleState) -> float:
        """Part of `decay`."""
        return 1.0

    def decay(self, at: ScheduleState) -> float:
        """Rises over the warm-up, then falls with the root of n."""
        n, warmup = at.update + 1, max(1, at.warmup_steps)
        return self.width**-0.5 * min(n**-0.5, n * warmup**-1.5)
