"""What a language model makes of one row of ids as it stands: logits and attention probabilities as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ttt.data.batches.rows import collate
from ttt.errors import ConfigError, DataError
from ttt.interfaces import MaskRule
from ttt.masks.materialize import materialize
from ttt.types import Kind, ModelInputs, Plan, TokenStream, audio_runs


def row_logits(model: Any, mask: MaskRule, ids: np.ndarray, attentions: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """(logits f32 [T, V], attention probabilities f32 [L, H, T, T] or None) of a row of ids i64 [T], all of it prompt.

    Raises `DataError` for ids that the model does not have, `ConfigError` for a model with several ids at a position.
    """
    vocab = model.tokenizer.vocab
    if vocab.codes_together > 1:
        raise ConfigError(f"logits: {vocab.codes_together} codes stand at a position of this model; rows of single ids do not fit")
    bad = ids[(ids < 0) | (ids >= model.num_ids)]
    if not len(ids) or len(bad):
        what = f"id {bad[0]}" if len(bad) else "no id"
        raise DataError(f"logits: {what} in the row; this model has ids 0 to {model.num_ids - 1}")
    kind = np.where(vocab.is_audio(ids), int(Kind.AUDIO), int(Kind.TEXT)).astype(np.uint8)
    nothing = np.zeros(len(ids), dtype=bool)
    stream = TokenStream("row", ids, kind, audio_runs(kind), nothing, nothing)
    batch = collate([[stream]], len(ids), vocab.pad_id, vocab.mask_id, vocab.code_space)
    plan = Plan(batch.ids, batch.position, batch.layout(), mask, {})
    allowed = materialize(mask, plan.layout.to(model.device), model.attention, model.dtype)
    with torch.no_grad():
        select = torch.arange(len(ids), device=model.device)
        logits = model(ModelInputs(plan.input_ids.to(model.device), plan.position_ids.to(model.device), allowed, select))
    maps = np.stack([layer.numpy() for layer in model.attention_maps(plan)]) if attentions else None
    return logits.float().cpu().numpy(), maps
