"""What noise schedules, loss weightings and masking rates owe."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ttt.check import world
from ttt.check.core import Broken, need, prop
from ttt.interfaces import LossWeighting, MaskingRate, NoiseSchedule
from ttt.registry.families import NOISE

FLOOR = 1.0e-3  # the objectives' default


def _times(n: int = 401) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64)


@prop("noise", "shape", "alpha and dalpha keep the shape and the type of t")
def _shape(schedule: NoiseSchedule) -> None:
    for dtype in (torch.float32, torch.float64):
        t = torch.linspace(0.1, 0.9, 6, dtype=dtype).view(2, 3)
        for name, value in (("alpha", schedule.alpha(t)), ("dalpha", schedule.dalpha(t))):
            need(
                value.shape == t.shape and value.dtype == dtype,
                f"{name} of {dtype} {list(t.shape)} is {value.dtype} {list(value.shape)}",
            )


@prop("noise", "ends", "alpha(0) and alpha(1) are what `ends` says, both in [0, 1]")
def _ends(schedule: NoiseSchedule) -> None:
    ends = tuple(schedule.ends)
    need(all(0 <= e <= 1 for e in ends) and ends[0] > ends[1], f"ends are {ends}: they must fall inside [0, 1]")
    for at, promised in zip((0.0, 1.0), ends, strict=True):
        value = float(schedule.alpha(torch.tensor([at], dtype=torch.float64))[0])
        need(abs(value - promised) <= 1e-6, f"alpha({at:g}) = {value:.8g}, ends says {promised:.8g}")


@prop("noise", "monotone", "alpha never rises")
def _monotone(schedule: NoiseSchedule) -> None:
    t = _times()
    alpha = schedule.alpha(t)
    for i in (~torch.isfinite(alpha)).nonzero().flatten().tolist()[:1]:
        raise Broken(f"alpha({float(t[i]):.4g}) is not a finite number")
    for i in (alpha.diff() > 1e-12).nonzero().flatten().tolist()[:1]:
        a, b = (f"alpha({float(t[j]):.4g}) = {float(alpha[j]):.6g}" for j in (i, i + 1))
        raise Broken(f"{a} < {b}")


@prop("noise", "slope", "dalpha is the derivative of alpha (compared with finite differences)")
def _slope(schedule: NoiseSchedule) -> None:
    step = 1e-5
    t = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)
    slope, given = (schedule.alpha(t + step) - schedule.alpha(t - step)) / (2 * step), schedule.dalpha(t)
    wrong = ((given - slope).abs() > 1e-5 * (1 + slope.abs())) | ~torch.isfinite(given)
    for i in wrong.nonzero().flatten().tolist()[:1]:
        raise Broken(f"at t = {float(t[i]):.4g} dalpha says {float(given[i]):.6g}, the slope of alpha is {float(slope[i]):.6g}")


def _weights(weighting: LossWeighting) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, t, p, weight) under every registered schedule."""
    for name in NOISE.names():
        schedule = NOISE.build(name, "noise")
        t = torch.linspace(1e-4, 1 - 1e-4, 201)
        p = (1 - FLOOR) * (1 - schedule.alpha(t)) + FLOOR
        yield name, t, p, weighting.weight(t, p, schedule)


def _none(wrong: Tensor, name: str, t: Tensor, p: Tensor, weight: Tensor) -> None:
    """Raise `Broken` for the first True of ``wrong``."""
    for i in wrong.nonzero().flatten().tolist()[:1]:
        raise Broken(f"schedule {name}: weight is {float(weight[i]):.4g} at t = {float(t[i]):.4g}, p = {float(p[i]):.4g}")


@prop("weighting", "shape", "one weight per time")
def _weight_shape(weighting: LossWeighting) -> None:
    for name, t, _, weight in _weights(weighting):
        need(weight.shape == t.shape, f"schedule {name}: weights are {list(weight.shape)} for times {list(t.shape)}")


@prop("weighting", "finite", "weights are finite numbers under every registered schedule")
def _weight_finite(weighting: LossWeighting) -> None:
    for name, t, p, weight in _weights(weighting):
        _none(~torch.isfinite(weight), name, t, p, weight)


@prop("weighting", "positive", "no weight is negative, some weight is not 0")
def _weight_positive(weighting: LossWeighting) -> None:
    for name, t, p, weight in _weights(weighting):
        _none(weight < 0, name, t, p, weight)
        need((weight != 0).any(), f"schedule {name}: every weight is 0")


# ---------------------------------------------------------------------------------------------- masking rates


def _rates(rate: MaskingRate, seed: int = 0) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(progress, uniform times, what the rate makes of them)."""
    for progress in (0.0, 0.3, 0.7, 1.0):
        t = torch.rand(500, generator=world.gen(seed))
        yield progress, t, rate.times(t.clone(), progress, world.gen(seed + 1))


@prop("rate", "times", "times lie in [0, 1], one per document, at any progress")
def _rate_times(rate: MaskingRate) -> None:
    for progress, t, out in _rates(rate):
        need(out.shape == t.shape and out.dtype == t.dtype, f"progress {progress}: {out.dtype} {list(out.shape)}")
        need(bool((out >= 0).all() and (out <= 1).all()), f"progress {progress}: times {float(out.min())} to {float(out.max())}")


@prop("rate", "seed", "the same progress and generator give the same times, and the times handed over stay as they are")
def _rate_seed(rate: MaskingRate) -> None:
    for (progress, _, one), (_, _, two) in zip(_rates(rate), _rates(rate), strict=True):
        need(torch.equal(one, two), f"progress {progress}: two calls with one seed differ")
    t = torch.rand(50, generator=world.gen())
    kept = t.clone()
    rate.times(t, 0.5, world.gen())
    need(torch.equal(t, kept), "it wrote into the times it was handed")
