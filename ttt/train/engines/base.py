"""The interface between the trainer and an engine, and the reading of weights that all engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ttt.errors import ConfigError
from ttt.model.folder import read_into
from ttt.train.average import WeightAverage
from ttt.train.engines.ranks import Ranks

T = TypeVar("T")


class Engine(ABC):
    """One optimiser and the ranks it is spread over.

    Of one update: `micro_batch` around each `compute` and `backward`, then `step` once.  Engines *average* gradients over
    ranks, so the caller multiplies its loss by ``world_size``.  ``lockstep``: weights or gradients are spread over the
    ranks, so that all ranks have to make the same forward and backward passes, and each uses every trainable parameter.
    ``average``: of the weights, where it is asked for; the caller updates it.
    """

    model: nn.Module
    device: torch.device
    ranks: Ranks
    lockstep: bool = False
    average: WeightAverage | None = None

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self.ranks.size

    def compute(self, work: Callable[[nn.Module], tuple[Tensor, T]]) -> tuple[Tensor, T]:
        """``work(model)`` in the number type to compute in: one forward pass -> (loss [] for `backward`, anything else)."""
        with self.autocast():
            return work(self.model)

    def evaluate(self, work: Callable[[nn.Module], T]) -> T:
        """``work(model)`` in the number type to compute in, where no gradient is wanted."""
        return self.compute(lambda model: (torch.zeros(()), work(model)))[1]

    def autocast(self) -> AbstractContextManager[Any]:
        """The number type to compute in."""
        return nullcontext()

    @property
    def loss_scale(self) -> float | None:
        """What losses are multiplied by before `backward`, so that gradients in float16 do not vanish; None: by nothing.

        Where `step` finds gradients that are not finite, it makes no update and lowers the scale.  Below 1 it is of no help.
        """
        return None

    @abstractmethod
    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Surrounds one forward and backward: ``last`` of the window or not."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` [] to this rank's."""

    @abstractmethod
    def step(self, lr: float, beta1: float | None = None) -> float:
        """Average gradients over ranks, clip, update, clear.  -> norm before clipping.

        ``beta1``: of this update, where it moves.  When the norm is not finite, nothing was updated.
        """

    def discard(self) -> None:
        """Drop the gradients that were added since the last `step`.  Raises `ConfigError` where an engine cannot."""
        raise ConfigError(f"train.engine: {type(self).__name__} cannot drop gradients; use train.engine=local")

    @abstractmethod
    def save(self, folder: Path) -> list[Path]:
        """Write the optimiser's state; called on every rank.  No pickle.  -> files that only this rank knows of."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what any engine's `save` wrote; called on every rank.  Raises `CheckpointError` when it is of another model."""

    @abstractmethod
    def state_bytes(self) -> int:
        """About how large a checkpoint is."""

    def save_model(self, folder: Path) -> None:
        """Write the weights; called on every rank."""
        if self.rank == 0:
            self.model.save(folder)  # type: ignore[operator]

    def load_model(self, folder: Path) -> None:
        """Read what `save_model` wrote; called on every rank."""
        with self.ranks.all_or_none():
            load_weights(self.model, folder)

    def whole_weights(self) -> AbstractContextManager[Any]:
        """Inside, ``model`` can be called on its own: every rank holds all weights.  Entered and left by all ranks."""
        return nullcontext()

    def sum_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum by name; a name that some ranks lack counts as 0 there.  Every rank gets the same answer."""
        return self.ranks.sum(values)

    def barrier(self) -> None:
        """Wait for every rank."""
        self.ranks.barrier()

    def close(self) -> None:
        """Leave the group of ranks."""
        self.ranks.close()


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy the safetensors of ``folder`` into ``model`` (into its ``hf``, if it has one), in place.

    Only weights tied to a stored one may be missing.  A model with a format of its own brings ``load_weights(folder)``.
    """
    load = getattr(model, "load_weights", None)
    if load is not None:
        load(folder)
        return
    read_into(getattr(model, "hf", model), folder)
