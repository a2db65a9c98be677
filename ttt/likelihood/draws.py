"""Which tokens of a set are masked: draws of the bound's expectation, and its mean and variance from them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ttt.errors import ConfigError
from ttt.registry import NonNegativeFloat, PositiveInt, checked

if TYPE_CHECKING:
    from torch import Generator

Estimator = Literal["uniform", "spread", "official", "exact"]
EXACT_LIMIT = 12  # 2^n - 1 copies


@checked
@dataclass(frozen=True)
class Draws:
    """How sets are masked.

    ``estimator``: ``uniform`` draws k ~ U{1..n} for every copy; ``spread`` draws one k per ``group`` copies and spreads
    theirs evenly over 1..n (LLaDA; every single k stays uniform, so it is unbiased); ``official`` does the same with the
    reference's rounding of halves to even, which is not quite uniform for some n; ``exact`` takes all 2^n - 1 masks.
    ``antithetic``: copies in pairs that mask k from one end and n + 1 - k from the other end of one random order.
    ``cfg_scale``: guidance, logits = u + (scale + 1) (c - u), u with everything but the set's own tokens masked.
    """

    draws: PositiveInt = 16
    estimator: Estimator = "uniform"
    group: PositiveInt = 8
    antithetic: bool = False
    cfg_scale: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.antithetic and (self.estimator in ("official", "exact") or self.draws % 2):
            raise ConfigError("likelihood: antithetic pairs need an even number of draws and 'uniform' or 'spread'")
        if self.estimator in ("spread", "official") and (self.draws % self.group or self.antithetic and self.group % 2):
            raise ConfigError(f"likelihood: {self.draws} draws do not divide into whole groups of {self.group}")


@dataclass(frozen=True)
class Patterns:
    """Masked copies of one set: ``masked`` bool [K, n]; ``weight`` f64 [K], sums to 1; ``group`` i64 [K]: copies of
    different groups are independent."""

    masked: np.ndarray
    weight: np.ndarray
    group: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Masked tokens of each copy, i64 [K]."""
        return self.masked.sum(1)


def spread_counts(n: int, copies: int, first: int, official: bool = False) -> np.ndarray:
    """LLaDA's evenly spread counts: ``copies`` numbers over 1..n from ``first`` on, modulo n.

    ``official``: halves are rounded to even after adding ``first``, as the reference program does.

    >>> spread_counts(8, 4, 3).tolist(), spread_counts(3, 2, 2).tolist(), spread_counts(3, 2, 2, official=True).tolist()
    ([3, 5, 7, 1], [2, 1], [2, 1])
    >>> [sorted(int(spread_counts(3, 2, k, o)[1]) for k in (1, 2, 3)) for o in (False, True)]
    [[1, 2, 3], [1, 1, 2]]
    """
    if official:
        return (np.round(np.linspace(first, first + (copies - 1) * (n / copies), copies)).astype(np.int64) - 1) % n + 1
    steps = np.floor(np.arange(copies) * n / copies + 0.5).astype(np.int64)
    return (first - 1 + steps) % n + 1


def patterns(n: int, draws: Draws, gen: Generator) -> Patterns:
    """The masked copies of a set of ``n`` tokens.  One token needs one copy: there is nothing to draw."""
    import torch

    if n == 1:
        return Patterns(np.ones((1, 1), dtype=bool), np.ones(1), np.zeros(1, dtype=np.int64))
    if draws.estimator == "exact":
        return every_pattern(n)
    pairs = 2 if draws.antithetic else 1
    base, together = draws.draws // pairs, max(1, draws.group // pairs)
    if draws.estimator == "uniform":
        together = 1
        counts = torch.randint(1, n + 1, (base,), generator=gen).numpy()
    else:
        firsts = torch.randint(1, n + 1, (base // together,), generator=gen).tolist()
        official = draws.estimator == "official"
        counts = np.concatenate([spread_counts(n, together, first, official) for first in firsts])
    order = torch.rand((base, n), generator=gen).argsort(1).numpy()  # [base, n]: rank of every token in a random order
    group = np.arange(base) // together
    masked = order < counts[:, None]
    if draws.antithetic:
        masked = np.concatenate([masked, n - 1 - order < (n + 1 - counts)[:, None]])
        group = np.concatenate([group, group])
    return Patterns(masked, np.full(len(masked), 1 / len(masked)), group)


def every_pattern(n: int) -> Patterns:
    """All non-empty masks of ``n`` tokens with their probabilities 1 / (n C(n, k)): the expectation itself."""
    if n > EXACT_LIMIT:
        raise ConfigError(
            f"likelihood: estimator 'exact' needs 2^n masks; a set here has {n} tokens, the limit is {EXACT_LIMIT}"
        )
    masked = np.array(list(itertools.product((False, True), repeat=n))[1:])
    weight = np.array([1 / (n * math.comb(n, k)) for k in masked.sum(1)])
    return Patterns(masked, weight, np.zeros(len(masked), dtype=np.int64))


def estimate(values: np.ndarray, found: Patterns) -> tuple[np.ndarray, np.ndarray]:
    """(mean, its variance over independent groups) of values f64 [K, m] -> f64 [m] each; all masks: variance 0."""
    mean = found.weight @ values
    if len(found.masked) == 1 and found.masked.shape[1] == 1 or np.ptp(found.weight) > 0:
        return mean, np.zeros_like(mean)
    groups = [values[found.group == g].mean(0) for g in np.unique(found.group)]
    if len(groups) < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.var(groups, axis=0, ddof=1) / len(groups)
