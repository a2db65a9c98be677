"""The key-value cache of decoding, and the attention that reads it: rows of any length, without padding.

A decoding call packs the new tokens of all its rows into one sequence [1, N], so that linear layers spend nothing on
padding; only attention is done row by row, each row's queries against that row's own keys.  `PackedCall` says which
tokens belong to which row.  It reaches the attention of every layer as a keyword argument of the backbone, which all
models of transformers' attention interface hand down (Qwen2, Qwen3 and Llama are tested).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

ROWS = "ttt_rows"  # name of the attention implementation registered below


class SlotCache:
    """Keys and values [slots, heads, capacity, width] of every layer.

    Columns are preallocated.  Which of them are settled is for the caller to know: a call writes its new columns behind
    a row's start and whatever stood there is gone, so dropping tentative keys costs nothing.
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


@dataclass
class PackedCall:
    """One network call on new tokens of several rows, packed without padding: N tokens, those of the first row first.

    All lists have one entry for each row.  ``ids`` i64 [count]: its tokens; ``starts``: the position of the first of them.
    ``slots``: the cache's row, which holds the keys before that position; None: nothing is kept, and the start is 0.
    ``wanted_of`` i64 [n]: which of its tokens, ascending from 0, must have their last hidden state.
    ``masks`` bool [count, start + count + behind]: which keys each token sees; None: all.  ``behind``: positions after the
    new tokens whose keys the cache holds from an earlier call.

    ``stage`` and ``given`` are for a last layer that is run for wanted tokens alone (`ttt.model.last_layer`): stage
    ``keys`` ends it at its attention by `KeysKnown`; after that the query is that of the wanted tokens, and ``given`` are the
    keys and values of all tokens.
    """

    cache: SlotCache
    ids: list[Tensor] = field(default_factory=list)
    slots: list[int | None] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    wanted_of: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    stage: str = ""
    given: tuple[Tensor, Tensor] | None = None

    def add(self, ids: Tensor, slot: int | None, start: int, wanted: Tensor, mask: Tensor | None = None, behind: int = 0) -> None:
        """One more row; see the class."""
        self.cache.reserve(start + len(ids) + behind)
        self.behind.append(behind)
        self.ids.append(ids)
        self.slots.append(slot)
        self.starts.append(start)
        self.wanted_of.append(wanted)
        self.masks.append(mask)

    @property
    def input_ids(self) -> Tensor:
        """All tokens, i64 [N] (or [N, K], `ttt.types.ModelInputs`), on the CPU."""
        return torch.cat(self.ids)

    @property
    def position_ids(self) -> Tensor:
        """Their positions, i64 [N], on the CPU."""
        return torch.cat([torch.arange(start, start + len(ids)) for start, ids in zip(self.starts, self.ids, strict=True)])

    @cached_property
    def wanted(self) -> Tensor:
        """Numbers of the wanted tokens among all N, i64 [n]."""
        offsets = accumulate((len(ids) for ids in self.ids), initial=0)
        return torch.cat([at + wanted for at, wanted in zip(offsets, self.wanted_of, strict=False)])


class KeysKnown(Exception):
    """An attention that was asked for its keys and values only has been given them."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = key, value


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, scaling: float | None = None,
    packed: PackedCall | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of a packed call: query [1, H, N, d], key and value [1, G, N, d] -> [1, N, H, d]."""
    if packed is None:
        raise TypeError(f"{type(module).__name__} does not hand keyword arguments down to its attention")
    if packed.stage == "keys":
        raise KeysKnown(key, value)
    narrow = packed.given is not None
    if packed.given is not None:
        key, value = packed.given
    # Layers of one kind share the function; only the layer's number tells their caches apart.
    return attend_rows(module.layer_idx, query, key, value, packed, scaling, narrow).transpose(1, 2), None


def attend_rows(
    layer: int, query: Tensor, key: Tensor, value: Tensor, call: PackedCall, scaling: float | None, narrow: bool = False
) -> Tensor:
    """Each row's queries [1, H, N, d] against its own keys, old and new ones [1, G, N, d] -> [1, H, N, d].

    ``narrow``: queries of the wanted tokens only.
    """
    keys, values = call.cache.layer(layer, key)
    grouped = query.shape[1] != key.shape[1]
    out, at, query_at = [], 0, 0
    for ids, slot, start, wanted, mask, behind in zip(
        call.ids, call.slots, call.starts, call.wanted_of, call.masks, call.behind, strict=True
    ):
        count = len(ids)
        stop = start + count
        k, v = key[:, :, at : at + count], value[:, :, at : at + count]
        at += count
        if narrow:
            count, mask = len(wanted), None if mask is None else mask[wanted]
        if slot is not None:
            keys[slot, :, start:stop] = k[0]
            values[slot, :, start:stop] = v[0]
            k, v = (held[slot : slot + 1, :, : stop + behind] for held in (keys, values))
        q = query[:, :, query_at : query_at + count]
        query_at += count
        out.append(
            torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped)
        )
    return out[0] if len(out) == 1 else torch.cat(out, 2)


AttentionInterface.register(ROWS, attend)


def _grown(x: Tensor, capacity: int) -> Tensor:
    out = x.new_zeros((*x.shape[:2], capacity, x.shape[3]))
    out[:, :, : x.shape[2]] = x
    return out
