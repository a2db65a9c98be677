"""Keys and values of tokens that can no longer change, one length per row: the only file that knows HF's cache classes.

Columns are preallocated; a call writes its new keys behind each row's own length and hands out the filled part.  Keeping
them is a matter of raising the length, dropping them of leaving it: no copies, no concatenation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _SlotLayer(CacheLayerMixin):
    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, heads, _, width = key_states.shape
        shape = (len(self.owner.lengths), heads, self.owner.capacity, width)
        # Zeros, not empty: masked columns must not hold NaN, since 0 * NaN is NaN.
        self.keys = torch.zeros(shape, dtype=key_states.dtype, device=key_states.device)
        self.values = torch.zeros(shape, dtype=value_states.dtype, device=value_states.device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        owner, new = self.owner, key_states.shape[2]
        if self.keys.shape[2] < owner.capacity:
            self.keys, self.values = (_grow(x, owner.capacity) for x in (self.keys, self.values))
        starts, rows, end = owner.starts, owner.rows, owner.width
        if rows is None and owner.uniform is not None:
            at = owner.uniform
            self.keys[:, :, at : at + new] = key_states
            self.values[:, :, at : at + new] = value_states
            return self.keys[:, :, :end], self.values[:, :, :end]
        index = torch.arange(len(self.keys), device=self.keys.device) if rows is None else rows
        columns = starts[:, None] + torch.arange(new, device=starts.device)  # [R, new]
        self.keys[index[:, None], :, columns] = key_states.transpose(1, 2)
        self.values[index[:, None], :, columns] = value_states.transpose(1, 2)
        if rows is None:
            return self.keys[:, :, :end], self.values[:, :, :end]
        return self.keys[index, :, :end], self.values[index, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.width, 0

    def get_seq_length(self) -> int:
        return int(self.owner.lengths.max())

    def get_max_length(self) -> int:
        return -1


class SlotCache:
    """Per-row cache for ``rows`` sequences and ``layers`` layers.

    ``lengths`` i64 [rows]: settled columns.  `begin` prepares one network call; `keep` settles what it wrote.
    """

    def __init__(self, rows: int, layers: int, capacity: int, device: Any) -> None:
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.capacity = capacity
        self.hf = Cache(layers=[_SlotLayer(self) for _ in range(layers)])
        self.rows: Tensor | None = None
        self.starts = self.lengths
        self.uniform: int | None = 0
        self.width = 0

    def begin(self, rows: Tensor, new: int) -> Cache:
        """Prepare a call that writes ``new`` columns for the rows ``rows`` i64 [R]; returns HF's view of the cache."""
        everything = len(rows) == len(self.lengths) and bool(
            (rows == torch.arange(len(rows), device=rows.device)).all()
        )
        self.rows = None if everything else rows
        self.starts = self.lengths[rows]
        first, last = int(self.starts.min()), int(self.starts.max())
        self.uniform = first if first == last else None
        self.width = last + new
        while self.capacity < self.width:
            self.capacity *= 2
        return self.hf

    def keep(self, rows: Tensor, lengths: Tensor) -> None:
        """Settle: the first ``lengths`` i64 [R] columns of ``rows`` hold keys that will not change."""
        self.lengths[rows] = lengths


def _grow(x: Tensor, capacity: int) -> Tensor:
    out = x.new_zeros((*x.shape[:2], capacity, x.shape[3]))
    out[:, :, : x.shape[2]] = x
    return out
