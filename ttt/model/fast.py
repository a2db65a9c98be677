"""Faster decoding on a CPU: the layers of Qwen2, Qwen3 and Llama with fused operations.

A layer of transformers launches about eighty small operations.  For a block of a few dozen tokens they take half as much
time as the matrix products.  Here query, key and value are one product, and so are gate and up projection.  Rotary
positions are applied to queries and keys together.  The last layer computes the tokens whose logits are needed, and no
others.  Results equal those of transformers up to rounding.  Weights are stored as `ttt.packed_weights` says.
Other backbones, number types and devices run through their own modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttt.model.cache import PackedCall, attend_rows
from ttt.model.joined import embedded
from ttt.packed_weights import Packed, packable

CLASSES = ("Qwen2Model", "Qwen3Model", "LlamaModel")


def fast(decoder: nn.Module) -> FastDecoder | None:
    """The quick form of a backbone without its head; None if it is of another class, adapted, compiled, or not float32 on a CPU."""
    if type(decoder).__name__ not in CLASSES or decoder.config.hidden_act != "silu":  # type: ignore[union-attr]
        return None
    linears = [m for name, m in decoder.named_modules() if name.endswith("_proj")]
    if any(type(m) is not nn.Linear or not packable(m) for m in linears):
        return None
    return FastDecoder(decoder)


class FastDecoder:
    """See the module.  Holds a copy of all projection matrices."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        last = len(decoder.layers) - 1
        self.layers = [_Layer(layer, n == last) for n, layer in enumerate(decoder.layers)]

    @property
    def fresh(self) -> bool:
        """Are the copies still those of the backbone's weights?"""
        return all(layer.fresh for layer in self.layers)

    def __call__(self, call: PackedCall) -> Tensor:
        """Last hidden states [n, D] of the wanted tokens of a packed call.  Only while `fresh`."""
        ids, table = call.input_ids, self.decoder.embed_tokens
        x = table(ids) if ids.dim() == 1 else embedded(table, ids)
        cos, sin = self.decoder.rotary_emb(x[None], call.position_ids[None])  # [1, N, d] each
        half = cos.shape[-1] // 2
        # rotate_half(q) * sin = roll(q, d / 2) * sin with the first half's sign turned.
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        cos, sin = cos[0, :, None], sin[0, :, None]
        for number, layer in enumerate(self.layers):
            x = layer(number, x, cos, sin, call)
        return _norm(x, self.decoder.norm)


class _Layer:
    """One layer.  The last one (``narrow``) asks for keys and values of all tokens and for everything else of the wanted ones."""

    def __init__(self, layer: Any, narrow: bool) -> None:
        a, m = layer.self_attn, layer.mlp
        self.attention, self.before, self.behind = a, layer.input_layernorm, layer.post_attention_layernorm
        self.width = a.head_dim
        self.heads, self.groups = a.q_proj.out_features // self.width, a.k_proj.out_features // self.width
        self.narrow = narrow
        if narrow:
            self.query, self.key_value = Packed(a.q_proj), Packed((a.k_proj, a.v_proj))
            used = [self.query, self.key_value]
        else:
            self.all = Packed((a.q_proj, a.k_proj, a.v_proj))
            used = [self.all]
        self.out, self.gate_up, self.down = Packed(a.o_proj), Packed((m.gate_proj, m.up_proj)), Packed(m.down_proj)
        self.packs: Sequence[Packed] = (*used, self.out, self.gate_up, self.down)

    @property
    def fresh(self) -> bool:
        return all(p.fresh for p in self.packs)

    def __call__(self, number: int, x: Tensor, cos: Tensor, sin: Tensor, call: PackedCall) -> Tensor:
        h, d, n = _norm(x, self.before), self.width, len(x)
        wanted = self.narrow and len(call.wanted) < n
        if self.narrow:
            key, value = self.key_value.multiply(h).view(n, 2, self.groups, d).unbind(1)
            key = self._placed(key, cos, sin, "k_norm")
            if wanted:
                x, h, cos, sin = x[call.wanted], h[call.wanted], cos[call.wanted], sin[call.wanted]
            query = self._placed(self.query.multiply(h).view(len(h), self.heads, d), cos, sin, "q_norm")
        else:
            both, value = self.all.multiply(h).view(n, -1, d).split((self.heads + self.groups, self.groups), 1)
            if hasattr(self.attention, "q_norm"):
                query, key = both.split((self.heads, self.groups), 1)
                both = torch.cat([_norm(query, self.attention.q_norm), _norm(key, self.attention.k_norm)], 1)
            query, key = self._placed(both, cos, sin).split((self.heads, self.groups), 1)
        query, key, value = (t.transpose(0, 1)[None] for t in (query, key, value))
        seen = attend_rows(number, query, key, value, call, self.attention.scaling, wanted)  # [1, H, n, d]
        x = x + self.out.multiply(seen[0].transpose(0, 1).reshape(len(x), -1))
        gate, up = self.gate_up.multiply(_norm(x, self.behind)).chunk(2, -1)
        return x + self.down.multiply(nn.functional.silu(gate).mul_(up))

    def _placed(self, x: Tensor, cos: Tensor, sin: Tensor, norm: str = "") -> Tensor:
        """Heads [N, h, d] with their positions applied, after the norm if the model has one."""
        if norm and hasattr(self.attention, norm):
            x = _norm(x, getattr(self.attention, norm))
        return torch.addcmul(x * cos, x.roll(self.width // 2, -1), sin)


def _norm(x: Tensor, norm: Any) -> Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
