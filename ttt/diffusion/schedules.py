"""Noise schedules of absorbing diffusion: the share alpha(t) of tokens that are still clean at time t."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.interfaces import NoiseSchedule
from ttt.registry import PositiveFloat, Share, ShareBelow1
from ttt.registry.families import NOISE


@NOISE.register("linear")
@dataclass(frozen=True)
class Linear(NoiseSchedule):
    """alpha(t) = (1 - eps) (1 - t): the masking probability is the time (TtT, LLaDA, MDLM).

    With ``eps`` it runs from eps to 1, as LLaDA's p = (1 - eps) t + eps; ``min_mask_prob`` of an objective does the same
    for any schedule, so set only one of them.

    >>> Linear().alpha(torch.tensor([0.25]))
    tensor([0.7500])
    """

    eps: ShareBelow1 = 0.0

    @property
    def ends(self) -> tuple[float, float]:
        """(1 - eps, 0)."""
        return 1 - self.eps, 0.0

    def alpha(self, t: Tensor) -> Tensor:
        """(1 - eps) (1 - t)."""
        return (1 - self.eps) * (1 - t)

    def dalpha(self, t: Tensor) -> Tensor:
        """-(1 - eps)."""
        return torch.full_like(t, self.eps - 1)


@NOISE.register("log_linear")
@dataclass(frozen=True)
class LogLinear(NoiseSchedule):
    """Total noise sigma(t) = -log(1 - (1 - eps) t), so alpha = exp(-sigma) = 1 - (1 - eps) t (SEDD, arXiv 2310.16834; MDLM).

    ``eps`` keeps sigma finite at t = 1, where the share eps stays clean.
    """

    eps: ShareBelow1 = 1.0e-3

    @property
    def ends(self) -> tuple[float, float]:
        """(1, eps)."""
        return 1.0, self.eps

    def alpha(self, t: Tensor) -> Tensor:
        """1 - (1 - eps) t."""
        return 1 - (1 - self.eps) * t

    def dalpha(self, t: Tensor) -> Tensor:
        """-(1 - eps)."""
        return torch.full_like(t, self.eps - 1)


@NOISE.register("clipped_uniform")
@dataclass(frozen=True)
class ClippedUniform(NoiseSchedule):
    """Masking probability uniform on [beta, omega]: no almost clean and no almost fully masked blocks (BD3-LM, arXiv 2503.09573).

    Gradients have less variance for short blocks; the loss is then the part of the bound between beta and omega.
    """

    beta: Share = 0.3
    omega: Share = 0.8

    def __post_init__(self) -> None:
        if self.beta >= self.omega:
            raise ValueError(f"need beta < omega, got beta={self.beta}, omega={self.omega}")

    @property
    def ends(self) -> tuple[float, float]:
        """(1 - beta, 1 - omega)."""
        return 1 - self.beta, 1 - self.omega

    def alpha(self, t: Tensor) -> Tensor:
        """1 - beta - (omega - beta) t."""
        return 1 - self.beta - (self.omega - self.beta) * t

    def dalpha(self, t: Tensor) -> Tensor:
        """-(omega - beta)."""
        return torch.full_like(t, self.beta - self.omega)


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

    power: PositiveFloat = 2.0

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t**power."""
        return 1 - t**self.power

    def dalpha(self, t: Tensor) -> Tensor:
        """-power t**(power - 1)."""
        return -self.power * t ** (self.power - 1)
