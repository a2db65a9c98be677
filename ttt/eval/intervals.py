"""Bootstrap intervals from sufficient statistics; the statistics of a resample are a weighted sum of rows.

Letters: ``n`` items, ``k`` statistics, ``R`` resamples, ``s`` seeds (repetitions of a run on the same items).
Every function is deterministic: it draws from a generator made of ``seed`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ttt.errors import DataError
from ttt.rng import derive_seed
from ttt.types import Value

Total = Callable[[np.ndarray], float]
_CHUNK = 2_000_000  # weights held in memory at a time


def bootstrap(statistics: np.ndarray, total: Total, resamples: int = 1000, seed: int = 1, level: float = 0.95) -> Value:
    """Percentile bootstrap over items.  ``statistics`` f64 [n, k], ``total``: [k] -> score.

    Value of all items and the (1 - level) / 2 and (1 + level) / 2 quantiles over ``resamples`` draws of n items with
    replacement.  When all items agree the interval has width 0: it says nothing about items unlike those seen.

    >>> bootstrap(np.array([[1.0, 1.0]] * 3 + [[0.0, 1.0]] * 3), lambda s: s[0] / s[1]).value
    0.5
    """
    rows = _checked(statistics)
    scores = resampled(rows, total, resamples, seed)
    return _value(float(total(rows.sum(0))), scores, level, len(rows))


def resampled(statistics: np.ndarray, total: Total, resamples: int, seed: int) -> np.ndarray:
    """Scores of the resamples f64 [R]."""
    rows = _checked(statistics)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    return _scores(np.concatenate([w @ rows for w in _weights(rng, len(rows), resamples)]), total)


def bootstrap_two_level(
    statistics: np.ndarray, total: Total, resamples: int = 1000, seed: int = 1, level: float = 0.95
) -> Value:
    """Interval over repetitions *and* items.  ``statistics`` f64 [s, n, k]: the same n items under s seeds.

    Seeds and items are drawn independently and crossed (the pigeonhole bootstrap): a resample's statistics are
    sum over seeds i and items j of u_i v_j x_ij with multinomial counts u, v.  It errs towards wide intervals.  With
    few seeds the seed's part is itself poorly known; s = 1 falls back to the items alone.
    """
    if statistics.ndim != 3:
        raise DataError(f"bootstrap_two_level: expected statistics [seeds, items, k], got {list(statistics.shape)}")
    s, n, k = statistics.shape
    rows = _checked(statistics.reshape(s * n, k)).reshape(s, n, k)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    parts = []
    for items in _weights(rng, n, resamples):
        seeds = rng.multinomial(s, np.full(s, 1 / s), size=len(items)).astype(np.float64)
        parts.append(np.einsum("rs,rsk->rk", seeds, np.einsum("rn,snk->rsk", items, rows)))
    return _value(float(total(rows.sum((0, 1)))), _scores(np.concatenate(parts), total), level, n)


def paired_p_value(a: np.ndarray, b: np.ndarray, total: Total, resamples: int = 1000, seed: int = 1) -> float:
    """Two-sided p-value that two systems' scores differ on the same items; ``a``, ``b`` f64 [n, k], row by row.

    Both are resampled with the same items.  With d the difference and d* its resamples:
    p = (1 + #{|d* - d| >= |d|}) / (1 + R), so 1 / (R + 1) is the smallest value it can show.
    """
    if a.shape != b.shape:
        raise DataError(f"paired_p_value: both systems need the same items, got {list(a.shape)} and {list(b.shape)}")
    d = float(total(_checked(a).sum(0))) - float(total(_checked(b).sum(0)))
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    scores_a, scores_b = [], []
    for w in _weights(rng, len(a), resamples):
        scores_a.append(_scores(w @ a, total))
        scores_b.append(_scores(w @ b, total))
    away = np.abs(np.concatenate(scores_a) - np.concatenate(scores_b) - d)
    return float((1 + np.sum(away >= abs(d) - 1e-12)) / (1 + resamples))


def _weights(rng: np.random.Generator, n: int, resamples: int) -> Iterator[np.ndarray]:
    """Multinomial counts f64 [r, n] of the resamples, a few at a time."""
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start)).astype(np.float64)


def _scores(sums: np.ndarray, total: Total) -> np.ndarray:
    return np.array([total(row) for row in sums], dtype=np.float64)


def _value(value: float, scores: np.ndarray, level: float, n: int) -> Value:
    known = scores[np.isfinite(scores)]  # a resample may lack what is divided by
    if not len(known):
        return Value(value, float("nan"), float("nan"), n)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Value(value, float(low), float(high), n)


def _checked(statistics: np.ndarray) -> np.ndarray:
    rows = np.asarray(statistics, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise DataError(f"bootstrap: expected statistics [items > 0, k], got {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise DataError(
            f"bootstrap: item {int(np.argwhere(~np.isfinite(rows))[0, 0])} has statistics that are not finite"
        )
    return rows
