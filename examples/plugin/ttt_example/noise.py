"""A noise schedule that lingers at low and at high noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttt.interfaces import NoiseSchedule
from ttt.registry.families import NOISE


@NOISE.register("sigmoid")
@dataclass(frozen=True)
class Sigmoid(NoiseSchedule):
    """alpha(t): a sigmoid of slope ``steepness``, stretched so that it falls from 1 to 0 (after arXiv 2301.10972)."""

    steepness: float = 6.0

    def __post_init__(self) -> None:
        if self.steepness <= 0:
            raise ValueError(f"steepness must be > 0, got {self.steepness}")

    def alpha(self, t):
        """(s((1/2 - t) k) - s(-k/2)) / (s(k/2) - s(-k/2)) with s the sigmoid and k the steepness."""
        low, high = self._edges(t)
        return (torch.sigmoid((0.5 - t) * self.steepness) - low) / (high - low)

    def dalpha(self, t):
        """The derivative: -k s (1 - s) over the same width."""
        low, high = self._edges(t)
        s = torch.sigmoid((0.5 - t) * self.steepness)
        return -self.steepness * s * (1 - s) / (high - low)

    def _edges(self, t):
        half = t.new_tensor(self.steepness / 2)
        return torch.sigmoid(-half), torch.sigmoid(half)
