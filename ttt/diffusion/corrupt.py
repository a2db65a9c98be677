"""Absorbing noise on the maskable positions: time, masking probability, which tokens become the mask token.

p = (1 - floor) (1 - alpha(t)) + floor; a maskable position is masked when its own uniform number u < p
(spec of TtT, section 5.1; LLaDA).  One t per document.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ttt.interfaces import NoiseSchedule
from ttt.types import Kind, PackedBatch


@dataclass(frozen=True)
class Noised:
    """``input_ids`` i64 [B, T]; ``masked`` bool [B, T]; ``t``, ``p`` f32 [n_docs]; ``maskable`` bool [B, T]."""

    input_ids: Tensor
    masked: Tensor
    maskable: Tensor
    t: Tensor
    p: Tensor


def draw(batch: PackedBatch, gen: Generator) -> tuple[Tensor, Tensor]:
    """(t f32 [n_docs], u f32 [B, T]), uniform on [0, 1), on the CPU."""
    t = torch.rand(batch.n_docs, generator=gen)
    return t, torch.rand(tuple(batch.ids.shape), generator=gen)


def corrupt(
    batch: PackedBatch, maskable: Tensor, t: Tensor, u: Tensor, schedule: NoiseSchedule, floor: float
) -> Noised:
    """Noise ``batch`` with given draws (pure function)."""
    p = (1 - floor) * (1 - schedule.alpha(t)) + floor
    masked = (u < per_position(p, batch.doc)) & maskable
    return Noised(torch.where(masked, batch.mask_id, batch.ids), masked, maskable, t, p)


def per_position(values: Tensor, doc: Tensor) -> Tensor:
    """Per-document values [n_docs] -> [B, T]; padding (doc -1) gets 0."""
    return torch.where(doc >= 0, values[doc.clamp(min=0)], values.new_zeros(()))


def per_document(values: Tensor, doc: Tensor, n_docs: int) -> Tensor:
    """Sum of per-position values [B, T] over each document -> [n_docs]."""
    inside = doc >= 0
    return values.new_zeros(n_docs).index_add_(0, doc[inside], values[inside])


def span_starts(batch: PackedBatch) -> Tensor:
    """bool [B, T]: audio positions that are first in their document's row or follow a text token."""
    audio = batch.kind == Kind.AUDIO
    before = torch.zeros_like(audio)
    before[:, 1:] = audio[:, :-1] & (batch.doc[:, 1:] == batch.doc[:, :-1])
    return audio & ~before
