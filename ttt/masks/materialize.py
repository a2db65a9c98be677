"""A rule becomes what one attention implementation takes.

sdpa: dense bool.  eager: additive floats (a bool would be *added* to the scores without an error).  flex_attention: a
`BlockMask` (which the others refuse).  One place decides, keyed by the model's own attention implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt.errors import ConfigError
from ttt.interfaces import MaskRule
from ttt.types import Layout

IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")


def dense(rule: MaskRule, layout: Layout, queries: Tensor | None = None) -> Tensor:
    """The rule as bool [B, Tq, T]; ``queries`` i64 [B, Tq] asks for some query columns only (default: all)."""
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
    """Mask for ``implementation``: bool or float [B, 1, Tq, T], or a `BlockMask`.

    A query without any allowed key (padding) is let look at itself: what it computes is never read, and softmax over
    nothing would be NaN.  Raises `ConfigError` for implementations that take no custom mask.
    """
    if implementation == "flex_attention" and queries is None:
        from torch.nn.attention.flex_attention import create_block_mask

        b_size, t_size = layout.shape
        return create_block_mask(rule.allow(layout), b_size, None, t_size, t_size, device=str(layout.kind.device))
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"model.attention: {implementation!r} cannot take a custom mask; use {', '.join(IMPLEMENTATIONS)}"
        )
    allowed = dense(rule, layout, queries)
    return carry(allowed, implementation, dtype, queries)


def carry(allowed: Tensor, implementation: str, dtype: torch.dtype, queries: Tensor | None = None) -> Tensor:
    """Bool [B, Tq, T] -> [B, 1, Tq, T] as sdpa (bool) or eager (additive) takes it; empty rows see themselves."""
    at = torch.arange(allowed.shape[1], device=allowed.device)[None] if queries is None else queries
    keys = torch.arange(allowed.shape[2], device=allowed.device)
    itself = at[:, :, None] == keys[None, None, :]
    allowed = (allowed | (itself & ~allowed.any(-1, keepdim=True)))[:, None]
    if implementation == "eager":
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
    return allowed
