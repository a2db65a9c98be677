"""Weights of the masked tokens' cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.interfaces import LossWeighting, NoiseSchedule
from ttt.registry.families import WEIGHTING


@WEIGHTING.register("inverse_p")
@dataclass(frozen=True)
class InverseP(LossWeighting):
    """1 / p with p the masking probability after the floor: the official TtT and LLaDA weight (TtT spec, section 6)."""

    def weight(self, t: Tensor, p: Tensor, schedule: NoiseSchedule) -> Tensor:
        """1 / p."""
        return 1 / p


@WEIGHTING.register("elbo")
@dataclass(frozen=True)
class Elbo(LossWeighting):
    """Weight of the continuous-time bound, -alpha'(t) / (1 - alpha(t)) (MDLM, arXiv 2406.07524); 1/t for linear."""

    floor: float = 1.0e-3

    def weight(self, t: Tensor, p: Tensor, schedule: NoiseSchedule) -> Tensor:
        """-alpha'(t) / max(1 - alpha(t), floor)."""
        return -schedule.dalpha(t) / (1 - schedule.alpha(t)).clamp(min=self.floor)


@WEIGHTING.register("uniform")
@dataclass(frozen=True)
class Uniform(LossWeighting):
    """1 for every masked token: no bound, but the lowest variance (MaskGIT)."""

    def weight(self, t: Tensor, p: Tensor, schedule: NoiseSchedule) -> Tensor:
        """1."""
        return torch.ones_like(p)


@WEIGHTING.register("clipped")
@dataclass(frozen=True)
class Clipped(LossWeighting):
    """min(1 / p, maximum): the official weight without its rare, huge values."""

    maximum: float = 10.0

    def __post_init__(self) -> None:
        if self.maximum <= 0:
            raise ValueError(f"maximum must be > 0, got {self.maximum}")

    def weight(self, t: Tensor, p: Tensor, schedule: NoiseSchedule) -> Tensor:
        """min(1 / p, maximum)."""
        return (1 / p).clamp(max=self.maximum)
