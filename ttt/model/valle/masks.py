"""Attention masks of the AR decoder: frames of prompt and target as a mask rule knows positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt.errors import ConfigError
from ttt.interfaces import MaskRule
from ttt.registry import name_of
from ttt.types import Kind, Layout

AHEAD = ("prompt", "nothing")  # rules under which a target frame sees nothing behind it


def check_rule(rule: MaskRule) -> None:
    """Raise `ConfigError` for a mask under which the AR decoder could see what it is to predict."""
    if rule.looks_ahead not in AHEAD:
        name = name_of(rule)
        raise ConfigError(
            f"objective.mask: {name!r} lets answers look ahead, and the first codebook is written from left to right; choose "
            "prefix or causal"
        )


def frame_layout(visible: Tensor, prompt: int) -> Layout:
    """Frames as a mask rule knows positions: ``visible`` bool [B, n], the first ``prompt`` of them the prompt."""
    zeros = torch.zeros(visible.shape, dtype=torch.long, device=visible.device)
    at = torch.arange(visible.shape[1], device=visible.device).expand_as(zeros)
    return Layout(
        kind=zeros.to(torch.uint8) + int(Kind.AUDIO), run_id=zeros, doc=zeros, position=at, prompt=at < prompt,
        visible=visible, stream=zeros,
    )  # fmt: skip
