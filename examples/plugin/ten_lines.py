"""The same without a project: one file, given with --plugins or listed under `plugins:` in a recipe."""
from dataclasses import dataclass

import torch

from ttt.interfaces import LossWeighting
from ttt.registry.families import WEIGHTING


@WEIGHTING.register("late")
@dataclass(frozen=True)
class Late(LossWeighting):
    """p ** power: what is masked among much noise counts more."""
    power: float = 1.0

    def weight(self, t, p, schedule):
        return torch.pow(p, self.power)
