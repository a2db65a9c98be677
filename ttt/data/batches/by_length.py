"""Batches of rows with one document each: examples of similar length share a batch, within a budget of tokens.

A row of n tokens counts as n + n² / q of the budget (``quadratic`` q; 0: as n), because attention costs its square.  A
batch is closed when its longest row's count times its number of rows would exceed the budget (as lhotse's dynamic
bucketing does in seconds).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Rows = list[list[int]]  # rows of example numbers
POOL_BATCHES = 8


def counts(lengths: np.ndarray, quadratic: float) -> np.ndarray:
    """Cost of rows of ``lengths`` tokens against the budget, f64 [n].

    >>> counts(np.array([100, 200]), 100.0).tolist(), counts(np.array([100]), 0.0).tolist()
    ([200.0, 600.0], [100.0])
    """
    n = np.asarray(lengths, dtype=np.float64)
    return n + n * n / quadratic if quadratic else n


def pooled(order: Sequence[int], cost: np.ndarray, budget: float, pool: int) -> list[Rows]:
    """Batches of examples ``order``, sorted inside pools of ``pool`` examples, the longest first.

    ``cost`` f64 [all examples]: what a row of each counts.
    """
    batches: list[Rows] = []
    for at in range(0, len(order), pool):
        rows: Rows = []
        for index in sorted(order[at : at + pool], key=lambda i: -cost[i]):
            if rows and (len(rows) + 1) * cost[rows[0][0]] > budget:
                batches.append(rows)
                rows = []
            rows.append([index])
        batches.append(rows)
    return batches


def bucketed(order: Sequence[int], cost: np.ndarray, budget: float, buckets: int) -> list[Rows]:
    """Batches of examples ``order``, each from one of ``buckets`` buckets of like length (quantiles of these examples).

    Examples keep their order inside a bucket, so batches are closer to a random sample than sorted ones, with more
    padding.
    """
    mine = cost[np.asarray(order, dtype=np.int64)]
    edges = np.quantile(mine, np.arange(1, buckets) / buckets)
    number = np.searchsorted(edges, mine, side="right")
    batches: list[Rows] = []
    for bucket in range(buckets):
        rows: Rows = []
        longest = 0.0
        for place in np.flatnonzero(number == bucket).tolist():
            if rows and (len(rows) + 1) * max(longest, mine[place]) > budget:
                batches.append(rows)
                rows, longest = [], 0.0
            rows.append([int(order[place])])
            longest = max(longest, float(mine[place]))
        if rows:
            batches.append(rows)
    return batches


def one_a_row(order: list[int], cost: np.ndarray, budget: float, buckets: int) -> list[Rows]:
    """Batches of rows of one example each: from ``buckets`` buckets, or (0) from sorted pools of some batches.

    Pools keep the rows of a batch similar while batches still mix examples.
    """
    if buckets:
        return bucketed(order, cost, budget, buckets)
    pool = max(1, int(POOL_BATCHES * budget * len(cost) // int(cost.sum())))
    return pooled(order, cost, budget, pool)
