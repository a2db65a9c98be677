"""A mask as small dense tiles over rows without padding, for attention without a kernel that skips masked blocks.

A batch [B, T] becomes one row of its N real positions, document after document.  Documents do not attend to each other
(`ttt.interfaces.MaskRule`), so attention is computed per document; a long document is split into tiles of `TILE` queries,
each with only those keys that some query of the tile attends to: half of a causal document is never computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.errors import DataError
from ttt.interfaces import MaskRule
from ttt.types import Layout

# Queries per tile: few skip more of the mask, many give larger matrix products; no difference from 64 to 256 on a CPU.
TILE = 128
# Keys with gaps are copied together when the gaps are at least this share of the range they span.
SPARSE = 0.25


@dataclass(frozen=True)
class Tile:
    """Queries of a group with the keys they attend to.

    ``queries``: their number; they follow those of the previous tile.  ``keys``: a slice of the group, or key positions i64 [K];
    ``bias`` [1, 1, q, K]: 0 where allowed, -inf elsewhere; None: all are allowed.
    """

    queries: int
    keys: slice | Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Segments:
    """The mask of a batch [B, T] for packed attention.

    ``order`` i64 [N]: flat positions (row * T + column) of the real tokens, by document; ``place`` i64 [B * T]: index of a
    flat position in that order, -1 for padding; ``groups``: tiles of one document (or of several short ones), in that order.
    """

    shape: tuple[int, int]
    order: Tensor
    place: Tensor
    groups: tuple[tuple[Tile, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Positions of each group."""
        return [sum(tile.queries for tile in group) for group in self.groups]

    @property
    def cells(self) -> int:
        """(query, key) pairs that are computed; dense attention computes B * T * T."""
        return sum(
            t.queries * (len(t.keys) if isinstance(t.keys, Tensor) else t.keys.stop - t.keys.start)
            for group in self.groups
            for t in group
        )

    def pack(self, values: Tensor) -> Tensor:
        """[B, T, ...] -> [1, N, ...]."""
        return values.flatten(0, 1)[self.order][None]

    def unpack(self, values: Tensor) -> Tensor:
        """[1, N, ...] -> [B, T, ...]; padding gets zeros."""
        rows, columns = self.shape
        wide = values.new_zeros((rows * columns, *values.shape[2:]))
        return wide.index_copy(0, self.order, values[0]).unflatten(0, (rows, columns))

    def places(self, select: Tensor) -> Tensor:
        """Flat positions of the batch -> positions in the packed row.  Raises `DataError` for padding."""
        at = self.place[select]
        if bool((at < 0).any()):
            bad = int(select[at < 0][0])
            raise DataError(
                f"plan: row {bad // self.shape[1]}, column {bad % self.shape[1]} is padding and has no logits; "
                "an objective may only read visible positions of a document"
            )
        return at


def segments(rule: MaskRule, layout: Layout, dtype: torch.dtype, tile: int = TILE) -> Segments:
    """The rule's mask over the real positions of ``layout``; ``dtype``: that of the additive biases.

    Real: visible and part of a document.  A query without any allowed key attends to itself, as in `materialize`.
    """
    rows, columns = layout.shape
    doc = layout.doc.flatten()
    real = (layout.visible.flatten() & (doc >= 0)).nonzero().flatten()
    # Sorted by document, in the order in which documents begin, so that a noisy copy follows its document.  Document numbers
    # are unique in a batch; rows that hold one document each, all numbered 0, are allowed too.
    key = doc[real] + (real // columns) * (int(doc.max()) + 1 if len(doc) else 1)
    order = real[torch.argsort(key, stable=True)]
    place = torch.full_like(doc, -1)
    place[order] = torch.arange(len(order), device=order.device)
    key = key.sort(stable=True).values
    lengths = torch.unique_consecutive(key, return_counts=True)[1].tolist()
    allow = rule.allow(layout)
    groups = []
    at = 0
    for length in _grouped(lengths, tile):
        members = order[at : at + length]
        groups.append(tuple(_tiles(allow, members, columns, dtype, tile)))
        at += length
    return Segments((rows, columns), order, place, tuple(groups))


def _grouped(lengths: list[int], tile: int) -> Iterator[int]:
    """Neighbouring documents that fit into one tile share it: one more call costs more than the masked cells."""
    size = 0
    for length in lengths:
        if size and size + length > tile:
            yield size
            size = 0
        size += length
    if size:
        yield size


def _tiles(allow, members: Tensor, columns: int, dtype: torch.dtype, tile: int) -> Iterator[Tile]:
    row, column = members // columns, members % columns  # [L]
    zero = torch.zeros((), dtype=torch.long, device=members.device)
    one_row = bool((row == row[0]).all())
    for start in range(0, len(members), tile):
        at = slice(start, min(start + tile, len(members)))
        q_row, q = row[at, None], column[at, None]
        allowed = allow(row[0] if one_row else q_row, zero, q, column[None, :]).expand(len(q), len(members))
        if not one_row:  # the predicate knows the query's row only
            allowed = allowed & (q_row == row[None, :])
        itself = torch.arange(at.start, at.stop, device=members.device)[:, None] == torch.arange(
            len(members), device=members.device
        )
        allowed = allowed | (itself & ~allowed.any(1, keepdim=True))  # a softmax over no key would be NaN
        used = allowed.any(0).nonzero().flatten()
        first, last = int(used[0]), int(used[-1]) + 1
        keys: slice | Tensor = slice(first, last)
        if len(used) <= (1 - SPARSE) * (last - first):
            keys = used
        allowed = allowed[:, keys]
        bias = None
        if not bool(allowed.all()):
            bias = torch.zeros(allowed.shape, dtype=dtype, device=members.device).masked_fill_(~allowed, -torch.inf)[
                None, None
            ]
        yield Tile(len(q), keys, bias)
