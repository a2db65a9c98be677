"""k-means, and additive tables that predict a frame's remainder from the codes of its neighbours.

Letters: ``F`` frames, ``C`` codes, ``E`` dimensions in which codes are compared, ``D`` offsets of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre: f32 [F, E], f32 [C, E] -> i64 [F]."""
    half = centres.square().sum(1) / 2
    return torch.cat([(half - part @ centres.T).argmin(1) for part in vectors.split(8192)])


def kmeans(vectors: Tensor, count: int, iterations: int, gen: torch.Generator) -> Tensor:
    """Lloyd's k-means from a k-means++ start on a sample: f32 [F, E] -> f32 [C, E].

    A code that no vector uses moves to a random one of the vectors with the largest error.
    """
    sample = vectors[torch.randperm(len(vectors), generator=gen)[: max(8 * count, 4096)]]
    distance = torch.full((len(sample),), float("inf"))
    chosen = [int(torch.randint(len(sample), (1,), generator=gen))]
    for _ in range(count - 1):
        distance = torch.minimum(distance, (sample - sample[chosen[-1]]).square().sum(1))
        weight = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weight, 1, generator=gen)))
    centres = sample[chosen].clone()
    for _ in range(iterations):
        ids = nearest(vectors, centres)
        size = torch.bincount(ids, minlength=count)
        total = torch.zeros_like(centres).index_add_(0, ids, vectors)
        dead = (size == 0).nonzero()[:, 0]
        error = (vectors - centres[ids]).square().sum(1)
        centres = total / size.clamp(min=1)[:, None]
        if len(dead):
            worst = error.topk(min(len(error), 4 * len(dead))).indices
            pick = torch.randperm(len(worst), generator=gen)[: len(dead)]
            centres[dead[: len(pick)]] = vectors[worst[pick]]
    return centres


def kmeans_in_batches(batches: Iterable[Tensor], count: int, iterations: int, gen: torch.Generator) -> Tensor:
    """Mini-batch k-means (Sculley 2010): Lloyd's on the first batch, then each centre follows the mean of all its vectors.

    Batches f32 [F, E] -> f32 [C, E]; the first must hold at least ``count`` vectors.  Only one batch is in memory at a time.
    """
    centres = seen = torch.empty(0)
    for vectors in batches:
        if not len(centres):
            centres = kmeans(vectors, count, iterations, gen)
            seen = torch.bincount(nearest(vectors, centres), minlength=count)
            continue
        ids = nearest(vectors, centres)
        size = torch.bincount(ids, minlength=count)
        seen = seen + size
        total = torch.zeros_like(centres).index_add_(0, ids, vectors)
        centres = centres + (total - size[:, None] * centres) / seen.clamp(min=1)[:, None]
    return centres


def look_up(tables: Tensor, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sum over d of tables[d, ids[t + d]] inside each utterance: f32 [D, C, E], i64 [F] -> f32 [F, E]."""
    context = len(tables) // 2
    out = tables[context][ids]
    for d, at, inside in _neighbours(lengths, context):
        out = out + tables[d + context][ids[at]] * inside[:, None].to(out)
    return out


def fit_neighbour_tables(
    rest: Tensor, ids: Tensor, lengths: Sequence[int], count: int, context: int
) -> tuple[Tensor, Tensor]:
    """Additive tables f32 [2 * context + 1, C, E] fitted to ``rest`` f32 [F, E], and the residual that they leave.

    Alternating least squares with shrinkage (ten virtual zeros per entry), three rounds.
    """
    tables = torch.zeros(2 * context + 1, count, rest.shape[1])
    everywhere = torch.ones(len(ids), dtype=torch.bool)
    places: list[Any] = [*_neighbours(lengths, context), (0, torch.arange(len(ids)), everywhere)] if context else []
    left = rest.clone()
    for _ in range(3):
        for d, at, inside in places:
            code, old = ids[at][inside], tables[d + context]
            target = left[inside] + old[code]
            size = torch.bincount(code, minlength=count)[:, None]
            new = torch.zeros_like(old).index_add_(0, code, target) / (size + 10.0)
            left[inside] = target - new[code]
            tables[d + context] = new
    return tables, left


def _neighbours(lengths: Sequence[int], context: int) -> list[tuple[int, Tensor, Tensor]]:
    """For each offset d != 0: where the neighbour stands, and whether it is of the same utterance."""
    total = sum(lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))
    out = []
    for d in range(-context, context + 1):
        if d:
            at = (torch.arange(total) + d).clamp(0, max(total - 1, 0))
            out.append((d, at, (owner[at] == owner) & (at == torch.arange(total) + d)))
    return out
