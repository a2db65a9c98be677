"""Masking rates: how the times of the noise schedule depend on the progress of training.

With the linear schedule and a smallest masking probability eps the masking probability is p = (1 - eps) t + eps (LLaDA,
arXiv 2502.09992).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ttt.interfaces import MaskingRate
from ttt.registry import NonNegativeFloat, PositiveShare, Share
from ttt.registry.families import RATE


@RATE.register("random")
@dataclass(frozen=True)
class RandomRate(MaskingRate):
    """Uniform times throughout training, as the likelihood bound requires (LLaDA, MDLM, TtT)."""

    def times(self, t: Tensor, progress: float, gen: Generator) -> Tensor:
        """As drawn."""
        return t


@RATE.register("progress")
@dataclass(frozen=True)
class ProgressRate(MaskingRate):
    """One time for all documents that rises with training: t = start + (stop - start) progress (LLaDA-TTS, "linear").

    Early updates mask almost nothing, late ones almost everything.  The loss is no bound, and with 1 / p weights the first
    updates are large.
    """

    start: Share = 0.0
    stop: Share = 1.0

    def times(self, t: Tensor, progress: float, gen: Generator) -> Tensor:
        """start + (stop - start) progress."""
        return torch.full_like(t, self.start + (self.stop - self.start) * progress)


@RATE.register("curriculum")
@dataclass(frozen=True)
class CurriculumRate(MaskingRate):
    """From uniform times to a clipped normal: t = (1 - g) U + g clip(N(mean, spread), 0, 1), g = min(progress / target, 1).

    LLaDA-TTS's curriculum.  U and N are drawn for each document.
    """

    target: PositiveShare = 0.7
    mean: float = 0.3
    spread: NonNegativeFloat = 0.5

    def times(self, t: Tensor, progress: float, gen: Generator) -> Tensor:
        """The mixture for this progress."""
        g = min(progress / self.target, 1.0)
        normal = torch.randn(len(t), generator=gen) * self.spread + self.mean
        return (1 - g) * t + g * normal.clamp(0, 1)
