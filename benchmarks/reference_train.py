"""A training step as plain scripts of the field write it: the other side of the ratios of `ttt bench train`.

Every row padded to one length, a dense mask [B, 1, T, T], logits at every position, cross-entropy over all of them, labels of
-100 where nothing is learned.  Only torch and the Hugging Face model; nothing of `ttt`.  The objective is Text-to-Talk's:
next-token loss on the answer's text, absorbing diffusion on its audio, means per sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100


@dataclass(frozen=True)
class Rows:
    """``ids``, ``labels`` i64 [B, T] (-100: no loss), ``attention_mask`` bool [B, T], ``prompt_lengths`` i64 [B]."""

    ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    prompt_lengths: Tensor


def pad(documents: list[tuple[list[int], int]], length: int, pad_id: int) -> Rows:
    """(ids, prompt length) of each document -> rows padded on the right to ``length``; the prompt carries no loss."""
    ids = torch.full((len(documents), length), pad_id)
    labels = torch.full((len(documents), length), IGNORE)
    seen = torch.zeros((len(documents), length), dtype=torch.bool)
    for row, (document, prompt) in enumerate(documents):
        n = len(document)
        ids[row, :n] = torch.tensor(document)
        labels[row, prompt:n] = ids[row, prompt:n]
        seen[row, :n] = True
    return Rows(ids, labels, seen, torch.tensor([prompt for _, prompt in documents]))


def hybrid_mask(ids: Tensor, attention_mask: Tensor, audio_start: int) -> Tensor:
    """bool [B, 1, T, T]: causal, and both ways inside one run of audio tokens."""
    audio = ids >= audio_start
    run = torch.cumsum(~audio, 1)
    t = ids.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril()
    same = (run[:, :, None] == run[:, None, :]) & audio[:, :, None] & audio[:, None, :]
    return ((causal | same) & attention_mask[:, None, :])[:, None]


def loss(model: nn.Module, rows: Rows, times: Tensor, uniform: Tensor, mask_id: int, audio_start: int) -> Tensor:
    """The loss of one batch for given draws: ``times`` f32 [B], ``uniform`` f32 [B, T]."""
    audio = rows.ids >= audio_start
    eps = 1e-3
    p = (1 - eps) * times + eps  # [B]
    learned = rows.labels != IGNORE
    after = torch.arange(rows.ids.shape[1], device=rows.ids.device)[None] >= rows.prompt_lengths[:, None]
    maskable = audio & after & rows.attention_mask
    masked = maskable & (uniform < p[:, None])
    noisy = torch.where(masked, mask_id, rows.ids)
    logits = model(
        input_ids=noisy,
        attention_mask=hybrid_mask(noisy, rows.attention_mask, audio_start),
        position_ids=torch.arange(noisy.shape[1], device=noisy.device).expand_as(noisy),
        use_cache=False,
    ).logits.float()  # fmt: skip  [B, T, V]
    vocab = logits.shape[-1]
    text_labels = torch.where(learned & ~audio, rows.labels, IGNORE)
    shifted = F.cross_entropy(
        logits[:, :-1].reshape(-1, vocab), text_labels[:, 1:].reshape(-1), ignore_index=IGNORE, reduction="none"
    ).view(len(noisy), -1)  # fmt: skip
    text_loss = (shifted.sum(1) / (text_labels[:, 1:] != IGNORE).sum(1).clamp(min=1)).mean()
    audio_labels = torch.where(masked & learned, rows.labels, IGNORE)
    own = F.cross_entropy(
        logits.reshape(-1, vocab), audio_labels.reshape(-1), ignore_index=IGNORE, reduction="none"
    ).view(len(noisy), -1)  # fmt: skip
    audio_loss = ((own / p[:, None]).sum(1) / maskable.sum(1).clamp(min=1)).mean()
    return text_loss + audio_loss


def step(model: nn.Module, rows: Rows, times: Tensor, uniform: Tensor, mask_id: int, audio_start: int) -> float:
    """Forward and backward; gradients are cleared first.  -> the loss."""
    model.zero_grad(set_to_none=True)
    value = loss(model, rows, times, uniform, mask_id, audio_start)
    value.backward()
    return float(value.detach())
