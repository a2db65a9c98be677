"""Several ids at one position of the network (`ttt.interfaces.CodePattern.together`).

Sequences stay flat everywhere else: one id after the other.  Just before the network ids that stand together are put side by
side, [B, T] -> [B, S, K].  Letters: ``S`` positions of the network, ``K`` most ids of a position.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from ttt.types import Layout


def embedded(table: nn.Module, ids: Tensor) -> Tensor:
    """Embeddings [..., D] of ids [..., K]: the mean over those that are there (-1: none)."""
    there = (ids >= 0)[..., None]
    rows = table(ids.clamp(min=0)) * there
    return rows.sum(-2) / there.sum(-2).clamp(min=1)


def number(joined: Tensor) -> tuple[Tensor, Tensor]:
    """(the network's position i64 [..., T] of each id, its place i64 [..., T] among the ids there); bool [..., T].

    >>> number(torch.tensor([False, False, True, True, False]))
    (tensor([0, 1, 1, 1, 2]), tensor([0, 0, 1, 2, 0]))
    """
    at = torch.arange(joined.shape[-1], device=joined.device)
    first = torch.where(joined, -1, at).cummax(-1).values
    return (~joined).cumsum(-1) - 1, at - first


def side_by_side(ids: Tensor, joined: Tensor, columns: int = 0) -> Tensor:
    """Ids i64 [T] -> [S, K], -1 where a position has fewer; ``columns``: K (0: as few as hold them)."""
    position, place = number(joined)
    out = ids.new_full((int(position[-1]) + 1 if len(ids) else 0, columns or int(place.max()) + 1), -1)
    out[position, place] = ids
    return out


def fold(ids: Tensor, position_ids: Tensor, layout: Layout, joined: Tensor) -> tuple[Tensor, Tensor, Layout, Tensor]:
    """A batch as the network sees it: (ids [B, S, K], positions [B, S], layout [B, S], number of each id's position [B, T]).

    ``position_ids`` count ids from the beginning of each document; in the result they count positions.
    """
    step, place = number(joined)
    row = torch.arange(len(ids))[:, None].expand_as(ids)
    shape = (len(ids), int(step.max()) + 1)
    out = ids.new_full((*shape, int(place.max()) + 1), -1)
    out[row, step, place] = ids
    begin = torch.arange(ids.shape[1]) - position_ids  # of the document
    before = step - step.gather(1, begin.clamp(min=0))

    def first(values: Tensor, fill: int) -> Tensor:
        folded = values.new_full(shape, fill)
        folded[row[~joined], step[~joined]] = values[~joined]
        return folded

    narrow = {f.name: first(getattr(layout, f.name), -1 if f.name == "doc" else 0) for f in fields(layout)}
    narrow["position"] = first(before, 0)
    out[out.amax(-1) < 0, 0] = 0  # behind the last position of a row: padding
    return out, narrow["position"], Layout(**narrow), step
