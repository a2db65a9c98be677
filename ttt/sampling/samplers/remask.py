"""Remasking rules: the score by which the candidates of a denoising step are committed, highest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ttt.interfaces import RemaskRule
from ttt.registry.families import REMASK


@REMASK.register("low_confidence")
@dataclass(frozen=True)
class LowConfidence(RemaskRule):
    """Softmax probability of the candidate: the least certain stay masked (LLaDA, TtT)."""

    def score(self, logits: Tensor, chosen: Tensor, gens: Sequence[Generator]) -> Tensor:
        """softmax(logits)[chosen]."""
        return (logits.gather(-1, chosen[..., None])[..., 0] - logits.logsumexp(-1)).exp()


@REMASK.register("margin")
@dataclass(frozen=True)
class Margin(RemaskRule):
    """Probability of the best token minus that of the second: positions with one clear winner first (arXiv 2502.06768)."""

    def score(self, logits: Tensor, chosen: Tensor, gens: Sequence[Generator]) -> Tensor:
        """p_1 - p_2 of the distribution, whatever was chosen; in [0, 1]."""
        first, second = logits.topk(2).values.sub(logits.logsumexp(-1, keepdim=True)).exp().unbind(-1)
        return first - second


@REMASK.register("entropy")
@dataclass(frozen=True)
class Entropy(RemaskRule):
    """Negative entropy of the distribution in nats: the least spread out first."""

    def score(self, logits: Tensor, chosen: Tensor, gens: Sequence[Generator]) -> Tensor:
        """sum p log p, whatever was chosen; in [-log V, 0].  Tokens of probability 0 add nothing."""
        logp = logits.log_softmax(-1)
        return (logp.exp() * logp.masked_fill(logp == -torch.inf, 0)).sum(-1)


@REMASK.register("random")
@dataclass(frozen=True)
class Random(RemaskRule):
    """A uniform number per position: tokens are committed in random order."""

    def score(self, logits: Tensor, chosen: Tensor, gens: Sequence[Generator]) -> Tensor:
        """U(0, 1), from each row's own generator."""
        drawn = torch.stack([torch.rand(row.shape[0], generator=g) for row, g in zip(chosen, gens, strict=True)])
        return drawn.to(logits.device)


@REMASK.register("left_to_right")
@dataclass(frozen=True)
class LeftToRight(RemaskRule):
    """The first open position first: block-wise decoding in the order of speech."""

    def score(self, logits: Tensor, chosen: Tensor, gens: Sequence[Generator]) -> Tensor:
        """Falls from 1 towards 0 along the block."""
        at = torch.arange(chosen.shape[1], device=logits.device, dtype=torch.float32)
        return (1 - at / chosen.shape[1]).expand(chosen.shape)
