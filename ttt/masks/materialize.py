"""Mask rule -> the form that an attention implementation takes.

sdpa: dense bool.  eager: additive floats (a bool would be *added* to the scores without an error).  flex_attention: a
`BlockMask`.  packed: `Segments`, rows without padding.  auto: a `BlockMask` on CUDA, `Segments` elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt.errors import ConfigError
from ttt.interfaces import MaskRule
from ttt.masks.segments import segments
from ttt.types import Layout

IMPLEMENTATIONS = ("auto", "packed", "sdpa", "eager", "flex_attention")
BLOCK = 128  # side of a block in positions, as FlexAttention's kernels need it
_CHUNK_CELLS = 1 << 24  # cells of the dense mask in memory at a time while a block mask is made


def dense(rule: MaskRule, layout: Layout, queries: Tensor | None = None) -> Tensor:
    """The rule as bool [B, Tq, T]; ``queries`` i64 [B, Tq]: only these query positions (default: all)."""
    b_size, t_size = layout.shape
    device = layout.kind.device
    allow = rule.allow(layout)
    rows = torch.arange(b_size, device=device)[:, None, None]
    keys = torch.arange(t_size, device=device)[None, None, :]
    at = keys.transpose(1, 2) if queries is None else queries[:, :, None]
    return allow(rows, torch.zeros_like(rows), at, keys)


def materialize(
    rule: MaskRule, layout: Layout, implementation: str, dtype: torch.dtype, queries: Tensor | None = None
) -> Any:
    """Mask for ``implementation``: bool or float [B, 1, Tq, T], a `BlockMask`, or `Segments`.

    With ``queries`` (decoding) always a tensor.  A query without any allowed key (padding) attends to itself: its
    output is never read, and a softmax over no key would be NaN.  Raises `ConfigError` for implementations that take no
    custom mask.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"model.attention: {implementation!r} cannot take a custom mask; use {', '.join(IMPLEMENTATIONS)}"
        )
    if queries is None:
        on_cuda = layout.kind.device.type == "cuda"
        if implementation == "flex_attention" or (implementation == "auto" and on_cuda):
            return block_mask(rule, layout)
        if implementation in ("packed", "auto"):
            return segments(rule, layout, dtype)
    allowed = dense(rule, layout, queries)
    return carry(allowed, implementation, dtype, queries)


def block_mask(rule: MaskRule, layout: Layout) -> Any:
    """The rule as FlexAttention's `BlockMask`: which blocks of `BLOCK` x `BLOCK` are blocked, mixed or fully allowed.

    Built a few rows of blocks at a time, so that the dense mask never exists as a whole; nothing is compiled.
    """
    from torch.nn.attention.flex_attention import BlockMask

    b_size, t_size = layout.shape
    device = layout.kind.device
    allow = rule.allow(layout)
    blocks = -(-t_size // BLOCK)
    rows = torch.arange(b_size, device=device)[:, None, None]
    keys = torch.arange(t_size, device=device)[None, None, :]
    # Cells outside the mask count as blocked in `some` and are left out of `every`.
    some = torch.zeros((b_size, blocks, blocks), dtype=torch.bool, device=device)
    every = torch.zeros_like(some)
    step = max(1, _CHUNK_CELLS // (b_size * t_size * BLOCK))
    pad = blocks * BLOCK - t_size
    for first in range(0, blocks, step):
        at = torch.arange(first * BLOCK, min((first + step) * BLOCK, t_size), device=device)
        allowed = allow(rows, torch.zeros_like(rows), at[None, :, None], keys).expand(b_size, len(at), t_size)
        below = -len(at) % BLOCK

        def reduced(cells: Tensor, fill: bool, below: int = below) -> Tensor:
            padded = torch.nn.functional.pad(cells, (0, pad, 0, below), value=fill)
            tiled = padded.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))  # [B, q blocks, BLOCK, k blocks, BLOCK]
            return tiled.any(4).any(2) if not fill else tiled.all(4).all(2)

        block_rows = slice(first, first + -(-len(at) // BLOCK))
        some[:, block_rows], every[:, block_rows] = reduced(allowed, False), reduced(allowed, True)
    # Kernels skip the mask of fully allowed blocks; a block that reaches past the end of the rows must keep its mask.
    if pad:
        every[:, -1] = False
        every[:, :, -1] = False

    def listed(flags: Tensor) -> tuple[Tensor, Tensor]:
        flags = flags[:, None].to(torch.int32)  # [B, 1, q blocks, k blocks]
        return flags.sum(-1, dtype=torch.int32), flags.argsort(dim=-1, descending=True, stable=True).to(torch.int32)

    return BlockMask.from_kv_blocks(
        *listed(some & ~every), *listed(every), BLOCK_SIZE=BLOCK, mask_mod=allow, seq_lengths=(t_size, t_size)
    )


def carry(allowed: Tensor, implementation: str, dtype: torch.dtype, queries: Tensor | None = None) -> Tensor:
    """Bool [B, Tq, T] -> [B, 1, Tq, T] for sdpa (bool) or eager (additive); empty rows attend to themselves."""
    at = torch.arange(allowed.shape[1], device=allowed.device)[None] if queries is None else queries
    keys = torch.arange(allowed.shape[2], device=allowed.device)
    itself = at[:, :, None] == keys[None, None, :]
    allowed = (allowed | (itself & ~allowed.any(-1, keepdim=True)))[:, None]
    if implementation == "eager":
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
    return allowed
