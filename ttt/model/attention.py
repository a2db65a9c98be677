"""What the heads look at: attention probabilities of every layer, through the public switch of Hugging Face models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ttt.errors import ConfigError
from ttt.masks.materialize import materialize
from ttt.types import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.model.lm import SpeechTextLM

_LIVE = 4  # copies of one layer's map that eager attention holds at once: scores, mask added, softmax, cast


def maps_bytes(model: SpeechTextLM, positions: int) -> int:
    """Bytes that the maps of one row of ``positions`` tokens take: (layers + a few) x heads x T^2 floats."""
    config = model.hf.config
    return 4 * (config.num_hidden_layers + _LIVE) * config.num_attention_heads * positions * positions


@torch.no_grad()
def attention_maps(model: SpeechTextLM, plan: Plan) -> list[Tensor]:
    """Attention probabilities of a plan of one row: per layer f32 [H, T, T] on the CPU, rows (queries) sum to 1.

    Only ``eager`` attention computes them as such; raises `ConfigError` for a model loaded with another one, and for a
    backbone that returns none.
    """
    if model.attention != "eager":
        raise ConfigError(f"attention maps need model.attention=eager; this model runs {model.attention!r}")
    if plan.input_ids.shape[0] != 1:
        raise ValueError(f"one row at a time, got {plan.input_ids.shape[0]}")
    device = model.device
    out = model.hf.get_decoder()(
        input_ids=plan.input_ids.to(device), position_ids=plan.position_ids.to(device),
        attention_mask=materialize(plan.mask, plan.layout.to(device), "eager", model.dtype),
        use_cache=False, output_attentions=True,
    )  # fmt: skip
    maps = getattr(out, "attentions", None)
    if not maps or any(m is None for m in maps):
        raise ConfigError(f"the backbone {type(model.hf).__name__} gives no attention probabilities")
    return [m[0].float().cpu() for m in maps]
