"""Keys and values of tokens that are settled, and the attention that reads them: rows of any length, without padding.

A decoding call packs the new tokens of all its rows into one sequence [1, N], so that every linear layer does exactly the
work there is; only attention is done row by row, each row's queries against that row's own keys.  `RowCall` says whose
tokens are whose.  It reaches the attention of every layer as a keyword argument of the backbone, which all models of
transformers' attention interface hand down (Qwen2, Qwen3 and Llama are tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

ROWS = "ttt_rows"  # name of the attention implementation registered below


@dataclass(frozen=True)
class Segment:
    """One row's tokens in a call: ``count`` of them at positions ``start`` to ``start + count - 1``.

    ``wanted`` i64 [n]: which of them, ascending from 0, must have their last hidden state.  ``slot``: the cache's row, which
    holds the keys before ``start``; None: nothing is kept, and ``start`` is 0.
    ``mask`` bool [count, start + count]: which keys each token sees; None: all.
    """

    slot: int | None
    start: int
    count: int
    wanted: Tensor
    mask: Tensor | None = None

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + self.count


class SlotCache:
    """Keys and values [slots, heads, capacity, width] of every layer.

    Columns are preallocated.  Which of them are settled is for the caller to know: a call writes its new columns behind
    ``Segment.start`` and whatever stood there is gone, so dropping tentative keys costs nothing.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, max(1, capacity)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer; ``like`` [1, heads, N, width] says how wide they are and where."""
        if number not in self._keys:
            shape = (self.slots, like.shape[1], self.capacity, like.shape[3])
            # Zeros, not empty: a masked column must not hold NaN, since 0 * NaN is NaN.
            self._keys[number], self._values[number] = like.new_zeros(shape), like.new_zeros(shape)
        elif self._keys[number].shape[2] < self.capacity:
            self._keys[number] = _grown(self._keys[number], self.capacity)
            self._values[number] = _grown(self._values[number], self.capacity)
        return self._keys[number], self._values[number]

    def reserve(self, columns: int) -> None:
        """Make room for ``columns`` positions a row."""
        while self.capacity < columns:
            self.capacity *= 2


@dataclass(frozen=True)
class RowCall:
    """What attention has to know about one packed call: the rows' segments, in the order of their tokens.

    ``stage``, of a layer that is run for wanted tokens alone (`ttt.model.last_layer`): ``keys`` ends it at its attention by
    `KeysKnown`; ``queries``: the query is that of the wanted tokens, the keys and values of all tokens are ``given``.
    """

    cache: SlotCache
    segments: Sequence[Segment]
    stage: str = ""
    given: tuple[Tensor, Tensor] | None = None

    @cached_property
    def wanted(self) -> Tensor:
        """Numbers of the wanted tokens among all of the call, i64 [n]."""
        starts = accumulate((s.count for s in self.segments), initial=0)
        return torch.cat([at + s.wanted for at, s in zip(starts, self.segments, strict=False)])


class KeysKnown(Exception):
    """An attention that was asked for its keys and values only has been given them."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = key, value


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, scaling: float | None = None,
    rows: RowCall | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of a packed call: query [1, H, N, d], key and value [1, G, N, d] -> [1, N, H, d]."""
    if rows is None:
        raise TypeError(f"{type(module).__name__} does not hand keyword arguments down to its attention")
    if rows.stage == "keys":
        raise KeysKnown(key, value)
    if rows.given is not None:
        key, value = rows.given
    # Layers of one kind share the function; only the layer's number tells their caches apart.
    keys, values = rows.cache.layer(module.layer_idx, key)
    grouped = query.shape[1] != key.shape[1]
    out, at, asked = [], 0, 0
    for s in rows.segments:
        new = slice(at, at + s.count)
        k, v = key[:, :, new], value[:, :, new]
        q, mask = query[:, :, new], s.mask
        if rows.stage == "queries":
            q = query[:, :, asked : asked + len(s.wanted)]
            mask = None if mask is None else mask[s.wanted]
            asked += len(s.wanted)
        if s.slot is not None:
            keys[s.slot, :, s.start : s.stop] = k[0]
            values[s.slot, :, s.start : s.stop] = v[0]
            k, v = keys[s.slot : s.slot + 1, :, : s.stop], values[s.slot : s.slot + 1, :, : s.stop]
        out.append(
            torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped)
        )
        at += s.count
    whole = out[0] if len(out) == 1 else torch.cat(out, 2)
    return whole.transpose(1, 2), None


AttentionInterface.register(ROWS, attend)


def _grown(x: Tensor, capacity: int) -> Tensor:
    out = x.new_zeros((*x.shape[:2], capacity, x.shape[3]))
    out[:, :, : x.shape[2]] = x
    return out
