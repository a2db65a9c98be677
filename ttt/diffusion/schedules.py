"""Noise schedules of absorbing diffusion: the share alpha(t) of tokens that are still clean at time t."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.interfaces import NoiseSchedule
from ttt.registry.families import NOISE


@NOISE.register("linear")
@dataclass(frozen=True)
class Linear(NoiseSchedule):
    """alpha(t) = 1 - t: the masking probability is the time (TtT, LLaDA, MDLM).

    >>> Linear().alpha(torch.tensor([0.25]))
    tensor([0.7500])
    """

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def dalpha(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)


@NOISE.register("cosine")
@dataclass(frozen=True)
class Cosine(NoiseSchedule):
    """alpha(t) = 1 - cos(pi/2 (1 - t)): more time at high noise (MaskGIT, arXiv 2202.04200)."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - cos(pi/2 (1 - t))."""
        return 1 - torch.cos(math.pi / 2 * (1 - t))

    def dalpha(self, t: Tensor) -> Tensor:
        """-pi/2 sin(pi/2 (1 - t))."""
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))


@NOISE.register("polynomial")
@dataclass(frozen=True)
class Polynomial(NoiseSchedule):
    """alpha(t) = 1 - t**power; power 1 is linear, larger powers spend more time at low noise."""

    power: float = 2.0

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"power must be > 0, got {self.power}")

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t**power."""
        return 1 - t**self.power

    def dalpha(self, t: Tensor) -> Tensor:
        """-power t**(power - 1)."""
        return -self.power * t ** (self.power - 1)
