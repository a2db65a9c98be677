"""Absorbing noise on the maskable positions: times, masking probabilities, masked tokens.

p = (1 - min_mask_prob) (1 - alpha(t)) + min_mask_prob; a maskable position is masked when its own uniform number u < p
(TtT, arXiv 2509.20072; LLaDA, arXiv 2502.09992).  One t per *noise group*: a document, unless an objective says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from ttt.errors import ConfigError
from ttt.interfaces import NoiseSchedule
from ttt.types import Kind, PackedBatch

NO_MASK = (
    "data.tokenizer: this vocabulary has no mask token (data.form text_then_speech), so nothing can be noised; train with "
    "objective ar, or with a tokenizer of another form"
)


@dataclass(frozen=True)
class Noised:
    """A noised batch.

    ``input_ids`` i64 [B, T]; ``masked``, ``maskable`` bool [B, T]; ``t``, ``p`` f32 [n_groups]; ``group`` i64 [B, T]: the noise
    group of each position (-1: none).
    """

    input_ids: Tensor
    masked: Tensor
    maskable: Tensor
    t: Tensor
    p: Tensor
    group: Tensor


Times = Literal["independent", "stratified", "antithetic"]


def draw(batch: PackedBatch, gen: Generator, times: Times = "independent") -> tuple[Tensor, Tensor]:
    """(t f32 [n_docs], u f32 [B, T]), uniform on [0, 1), on the CPU."""
    t = draw_times(batch.n_docs, gen, times)
    return t, torch.rand(tuple(batch.ids.shape), generator=gen)


def draw_times(n: int, gen: Generator, times: Times = "independent") -> Tensor:
    """n times f32 [n], each uniform on [0, 1).

    ``stratified``: exactly one in each of the n intervals [i/n, (i+1)/n), in random order, which leaves every single
    time uniform and lowers the variance of their mean (the low-discrepancy sampler of MDLM, arXiv 2406.07524).
    ``antithetic``: neighbours are t and 1 - t (Kingma et al., arXiv 2107.00630, use it for diffusion models).
    """
    t = torch.rand(n, generator=gen)
    if times == "antithetic":
        t[1::2] = (1 - t[: n - n % 2 : 2]).clamp(max=1 - 1e-6)
    if times == "stratified" and n > 0:
        t = ((torch.randperm(n, generator=gen) + t) / n).clamp(max=1 - 1e-6)
    return t


def corrupt(
    batch: PackedBatch, maskable: Tensor, t: Tensor, u: Tensor, schedule: NoiseSchedule, min_mask_prob: float,
    group: Tensor | None = None,
) -> Noised:  # fmt: skip
    """Noise ``batch`` with given draws (a pure function); ``group`` i64 [B, T]: noise group of a position (default: document)."""
    if batch.mask_id < 0:
        raise ConfigError(NO_MASK)
    group = batch.doc if group is None else group
    p = (1 - min_mask_prob) * (1 - schedule.alpha(t)) + min_mask_prob
    masked = (u < per_position(p, group)) & maskable
    return Noised(torch.where(masked, batch.mask_id, batch.ids), masked, maskable, t, p, group)


def per_position(values: Tensor, doc: Tensor) -> Tensor:
    """Per-document (or per-group) values [n] -> [B, T]; padding (-1) gets 0."""
    if not len(values):
        return values.new_zeros(doc.shape)
    return torch.where(doc >= 0, values[doc.clamp(min=0)], values.new_zeros(()))


def per_document(values: Tensor, doc: Tensor, n_docs: int) -> Tensor:
    """Sum of per-position values [B, T] over each document -> [n_docs]."""
    inside = doc >= 0
    return values.new_zeros(n_docs).index_add_(0, doc[inside], values[inside])


def span_starts(batch: PackedBatch) -> Tensor:
    """bool [B, T]: audio positions that begin a document or follow a text token."""
    audio = batch.kind == Kind.AUDIO
    before = torch.zeros_like(audio)
    before[:, 1:] = audio[:, :-1] & (batch.doc[:, 1:] == batch.doc[:, :-1])
    return audio & ~before
