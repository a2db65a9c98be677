"""Transformer blocks of both decoders: packed attention, ReLU feed-forward, norms that a stage may steer, a key cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.types import Voices

# Keys and values [B, H, n, d] of one layer.
KeyValue = tuple[Tensor, Tensor]
# Cosines and sines [T, d] or [B, 1, T, d] of every position's angles.
Turns = tuple[Tensor, Tensor]


class AdaptiveNorm(nn.Module):
    """w * LN(x) + b with (w, b) a linear function of the stage's vector [D] (VALL-E, arXiv 2301.02111, section 4.2.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 2 * dim)
        with torch.no_grad():  # begins as a plain norm, up to what the stage adds
            self.project.bias[:dim] = 1.0
            self.project.bias[dim:] = 0.0

    def forward(self, x: Tensor, stage: Tensor) -> Tensor:
        """[B, T, D] -> the same shape."""
        w, b = self.project(stage).chunk(2, -1)
        return w * self.norm(x) + b


def _normed(norm: nn.Module, x: Tensor, stage: Tensor | None) -> Tensor:
    return norm(x) if stage is None else norm(x, stage)


class Block(nn.Module):
    """Self-attention and a feed-forward of four times the width, with dropout as in `nn.TransformerEncoderLayer`."""

    def __init__(self, dim: int, heads: int, dropout: float, norm_first: bool, adaptive: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.norm_first = heads, dropout, norm_first
        self.attention_in = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.attention_in.weight)
        for linear in (self.attention_in, self.attention_out):
            nn.init.zeros_(linear.bias)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2 = (AdaptiveNorm(dim) if adaptive else nn.LayerNorm(dim) for _ in range(2))

    def forward(
        self, x: Tensor, mask: Tensor | None, stage: Tensor | None, past: KeyValue | None, turns: Turns | None = None
    ) -> tuple[Tensor, KeyValue]:
        """``x`` [B, T, D], ``mask`` bool [B, 1, T, n + T] (None: everything) -> ([B, T, D], keys and values of ``x``).

        ``turns``: queries and keys are turned by their positions; the keys returned are turned ones.
        """
        if self.norm_first:
            made, new = self._attend(_normed(self.norm1, x, stage), mask, past, turns)
            x = x + made
            return x + self._feed(_normed(self.norm2, x, stage)), new
        made, new = self._attend(x, mask, past, turns)
        x = _normed(self.norm1, x + made, stage)
        return _normed(self.norm2, x + self._feed(x), stage), new

    def _attend(
        self, x: Tensor, mask: Tensor | None, past: KeyValue | None, turns: Turns | None
    ) -> tuple[Tensor, KeyValue]:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attention_in(x).chunk(3, -1))
        if turns is not None:
            q, k = turned(q, turns), turned(k, turns)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
        drop = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, dropout_p=drop)
        return self._drop(self.attention_out(out.transpose(1, 2).flatten(2))), (k, v)

    def _feed(self, x: Tensor) -> Tensor:
        return self._drop(self.down(self._drop(F.relu(self.up(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Stack(nn.Module):
    """Blocks, and a final norm if norms come first.

    ``adaptive``: every norm is steered by a stage's vector.  ``rotary_base``: rotary positions of that base; 0: none.
    """

    def __init__(
        self, layers: int, dim: int, heads: int, dropout: float, norm_first: bool, adaptive: bool,
        rotary_base: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.head_dim, self.rotary_base = dim // heads, rotary_base
        self.blocks = nn.ModuleList(Block(dim, heads, dropout, norm_first, adaptive) for _ in range(layers))
        self.norm = (AdaptiveNorm(dim) if adaptive else nn.LayerNorm(dim)) if norm_first else None

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None = None, stage: Tensor | None = None,
        past: Sequence[KeyValue] = (),
    ) -> tuple[Tensor, list[KeyValue]]:  # fmt: skip
        """Hidden states [B, T, D] of ``x`` [B, T, D] at ``positions`` i64 [T] or [B, T] (read by rotary ones alone).

        Also keys and values of ``x`` by layer; ``past``: those of what stands before it.
        """
        new: list[KeyValue] = []
        turns = rotations(positions, self.head_dim, self.rotary_base, x.dtype) if self.rotary_base else None
        for number, block in enumerate(self.blocks):
            x, made = block(x, mask, stage, past[number] if past else None, turns)
            new.append(made)
        return (x if self.norm is None else _normed(self.norm, x, stage)), new


def rotations(positions: Tensor, dim: int, base: float, dtype: torch.dtype) -> Turns:
    """Cosines and sines of rotary positions (RoFormer, arXiv 2104.09864, equation 34).

    ``positions`` i64 [T] -> [T, dim]; [B, T] -> [B, 1, T, dim].
    """
    rates = base ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim)
    angles = positions[..., None].float() * rates
    angles = torch.cat([angles, angles], -1)
    if positions.dim() == 2:
        angles = angles[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Tensor, turns: Turns) -> Tensor:
    """Heads ``x`` [B, H, T, d], each pair (i, i + d/2) turned by its position's angle."""
    first, second = x.chunk(2, -1)
    return x * turns[0] + torch.cat([-second, first], -1) * turns[1]


class SinePositions(nn.Module):
    """Adds alpha * (sin on even, cos on odd channels, base 10000), then dropout; alpha is trained or stays 1."""

    def __init__(self, dim: int, dropout: float, trained: bool) -> None:
        super().__init__()
        self.dim, self.dropout = dim, dropout
        if trained:
            self.alpha = nn.Parameter(torch.ones(1))
        else:
            self.register_buffer("alpha", torch.ones(1), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x`` [B, T, D], ``positions`` i64 [T] or [B, T]."""
        # Not a buffer: one would be rounded with the weights, and bfloat16 rates are wrong by radians after 500 frames.
        rates = 10000.0 ** (-torch.arange(0, self.dim, 2, dtype=torch.float32, device=x.device) / self.dim)
        angles = positions[..., None].float() * rates
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)  # sin, cos, sin, cos, ...
        return F.dropout(x + self.alpha * waves.to(x.dtype), self.dropout, self.training)


class Unplaced(nn.Module):
    """Dropout alone, where attention knows the positions."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x`` [B, T, D] -> the same shape."""
        return F.dropout(x, self.dropout, self.training)


class VoiceInput(nn.Module):
    """Adds who speaks to a decoder's inputs: a linear map of the vector [E], or a learned vector where nobody is told.

    The second is what classifier-free guidance (arXiv 2207.12598) calls the unconditional model.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(size, dim, bias=False)
        nn.init.normal_(self.project.weight)  # vectors of length 1 become as large as embeddings
        self.null = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, voices: Voices) -> Tensor:
        """``x`` [B, T, D] -> the same shape."""
        told = self.project(voices.vectors.to(x.dtype))
        return x + torch.where(voices.given[:, None], told, self.null)[:, None]


class Prenet(nn.Sequential):
    """Per frame D -> 256 -> 256 -> D with ReLU and dropout 0.25 after the first two."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.Linear(dim, 256), nn.ReLU(), nn.Dropout(0.25), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.25),
            nn.Linear(256, dim),
        )  # fmt: skip
