"""A sampler that writes the surer half of a block with every call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttt.registry.families import SAMPLER
from ttt.sampling.samplers.blocks import RemaskSampler


@SAMPLER.register("halving")
@dataclass(frozen=True)
class Halving(RemaskSampler):
    """Each call commits the better half of what is still open: a block of n takes floor(log2 n) + 1 calls at most."""

    def most_calls(self, open_: int) -> int:
        """floor(log2 n) + 1."""
        return max(open_, 0).bit_length()

    def commit(self, step):
        """The best ceil(n / 2) of each row's n open places; counted per row, so that company changes nothing."""
        score = step.guarded() if self.end_guard else step.score
        place = torch.argsort(torch.argsort(score, dim=1, descending=True, stable=True), dim=1)
        half = (step.open.sum(1, keepdim=True) + 1) // 2
        return (place < half) & score.isfinite()
