"""The attention implementations `ttt` adds to transformers' own, through its public `AttentionInterface`.

One function serves the names ``auto`` and ``packed``.  It goes by the mask it is given: `Segments` (packed rows: dense
attention tile by tile), a `BlockMask` (FlexAttention), a tensor or nothing (sdpa, as in decoding).  Which mask a batch
gets is decided in `ttt.masks.materialize`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.errors import ConfigError
from ttt.masks.segments import Segments

NAMES = ("auto", "packed")
# Arguments by which some backbones change attention; computing without them would be silently wrong.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


def register() -> None:
    """Make `NAMES` known to transformers; doing it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for name in NAMES:
        AttentionInterface.register(name, attend)
        # Plain transformers code (`hf.generate`) makes its own masks: those of sdpa.
        AttentionMaskInterface.register(name, sdpa_mask)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, dropout: float = 0.0,
    scaling: float | None = None, segments: Segments | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """``query`` [B, H, Tq, d], ``key``/``value`` [B, Hkv, T, d] -> [B, Tq, H, d], as transformers calls it."""
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ConfigError(
                f"model.attention: this backbone's attention has {name!r}, which packed attention cannot compute; "
                "use model.attention=eager"
            )
    if segments is not None:
        return packed_attention(query, key, value, segments, dropout, scaling), None
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        from transformers.integrations.flex_attention import flex_attention_forward

        out, _ = flex_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return out, None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout: float = 0.0, scaling: float | None = None
) -> Tensor:
    """``query`` [1, H, N, d], ``key``/``value`` [1, Hkv, N, d] of one packed row -> [1, N, H, d]."""
    grouped = query.shape[1] != key.shape[1]
    found = []
    parts = (x.split(segments.sizes, 2) for x in (query, key, value))
    for q, k, v, tiles in zip(*parts, segments.groups, strict=True):
        for part, tile in zip(q.split([t.queries for t in tiles], 2), tiles, strict=True):
            if isinstance(tile.keys, Tensor):
                k_used, v_used = k.index_select(2, tile.keys), v.index_select(2, tile.keys)
            else:
                k_used, v_used = k[:, :, tile.keys], v[:, :, tile.keys]
            bias = None if tile.bias is None else tile.bias.to(query.dtype)  # autocast computes in another type
            out = F.scaled_dot_product_attention(
                part, k_used, v_used, attn_mask=bias, dropout_p=dropout, scale=scaling, enable_gqa=grouped
            )
            found.append(out.transpose(1, 2))
    return torch.cat(found, 1)
