"""Noise schedules, loss weightings and masking rates that break one property each."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests.unit.check.faults import exactly, planted
from ttt.diffusion.rates import RandomRate
from ttt.diffusion.schedules import Linear
from ttt.diffusion.weightings import Uniform

FAULTS, fault = planted()


@fault("noise", "shape")
@dataclass(frozen=True)
class Flat(Linear):
    def alpha(self, t):
        return (1 - t).flatten()

    def dalpha(self, t):
        return -torch.ones_like(t).flatten()


@fault("noise", "ends")
@dataclass(frozen=True)
class NeverClean(Linear):
    """Does not say that it starts at 0.9."""

    def alpha(self, t):
        return 0.9 * (1 - t)

    def dalpha(self, t):
        return -0.9 * torch.ones_like(t)


@fault("noise", "monotone")
@dataclass(frozen=True)
class Wave(Linear):
    def alpha(self, t):
        return 1 - t + 0.3 * torch.sin(2 * torch.pi * t)

    def dalpha(self, t):
        return -1 + 0.6 * torch.pi * torch.cos(2 * torch.pi * t)


@fault("noise", "slope")
@dataclass(frozen=True)
class WrongSlope(Linear):
    def dalpha(self, t):
        return -1.01 * torch.ones_like(t)


@fault("weighting", "shape")
@dataclass(frozen=True)
class OneForAll(Uniform):
    def weight(self, t, p, schedule):
        return (1 / p).mean()


@fault("weighting", "finite")
@dataclass(frozen=True)
class Exploding(Uniform):
    def weight(self, t, p, schedule):
        return 1 / (t - t[100]).abs()


@fault("weighting", "positive")
@dataclass(frozen=True)
class Rewarding(Uniform):
    def weight(self, t, p, schedule):
        return 0.5 - t


@fault("rate", "times")
@dataclass(frozen=True)
class PastTheEnd(RandomRate):
    def times(self, t, progress, gen):
        return t * (1 + progress)


@fault("rate", "seed")
@dataclass(frozen=True)
class GlobalDraws(RandomRate):
    def times(self, t, progress, gen):
        return torch.rand_like(t)


@pytest.mark.parametrize("family, breaks, cls", FAULTS)
def test_exactly_the_right_property_names_the_fault(family, breaks, cls):
    exactly(family, breaks, cls)
