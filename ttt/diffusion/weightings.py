"""Weights of the masked tokens' cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ttt.interfaces import LossWeighting, NoiseSchedule
from ttt.registry import PositiveFloat, Share
from ttt.registry.families import WEIGHTING


@WEIGHTING.register("inverse_p")
@dataclass(frozen=True)
class InverseP(LossWeighting):
    """1 / p with p the masking probability: the weight of TtT (arXiv 2509.20072) and LLaDA (arXiv 2502.09992).

    The likelihood bound for schedules that are linear in t; with others, noise levels are weighted by how often the schedule
    draws them.
    """

    def weight(self, t: Tensor, p: Tensor, schedule: NoiseSchedule) -> Tensor:
        """1 / p."""
        return 1 / p


@WEIGHTING.register("elbo")
@dataclass(frozen=True)
class Elbo(LossWeighting):
    """Weight of the continuous-time bound, -alpha'(t) / p (MDLM, arXiv 2406.07524): the same loss under every schedule.

    p is the probability with which tokens were masked: 1 - alpha(t), raised by the objective's ``min_mask_prob``.
    ``min_prob`` bounds p from below where the objective has none.  The expected loss is the integral of the cross-entropy over
    the masking probability, whatever the schedule; the weight is 1 / t for ``linear``.
    """

    renamed_fields: ClassVar = {"floor": "min_prob"}

    min_prob: Share = 1.0e-3

    def weight(self, t: Tensor, p: Tensor, schedule: NoiseSchedule) -> Tensor:
        """-alpha'(t) / max(p, min_prob)."""
        return -schedule.dalpha(t) / p.clamp(min=self.min_prob)


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
    """min(1 / p, maximum): the weight `inverse_p` without its rare, huge values."""

    maximum: PositiveFloat = 10.0

    def weight(self, t: Tensor, p: Tensor, schedule: NoiseSchedule) -> Tensor:
        """min(1 / p, maximum)."""
        return (1 / p).clamp(max=self.maximum)
