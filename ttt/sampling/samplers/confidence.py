"""Block samplers that commit a varying number of tokens a call: all candidates that the model is confident of."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttt.registry import NonNegativeFloat, component, name_of
from ttt.registry.families import SAMPLER
from ttt.sampling.samplers.blocks import DenoisingStep, RemaskSampler, top_scored


@dataclass(frozen=True)
class ConfidenceSampler(RemaskSampler):
    """Commits every candidate that is certain enough, at least the best one.

    With ``end_guard`` an end token is committed only if everything before it is, in the same step at the latest.
    """

    end_guard: bool = True

    @abstractmethod
    def sure(self, step: DenoisingStep) -> Tensor:
        """bool [L, w]: open places whose candidates are certain enough to be written together."""

    def most_calls(self, open_: int) -> int:
        """One per open place: each call commits at least one."""
        return open_

    def commit(self, step: DenoisingStep) -> Tensor:
        """All that are certain enough; the best one in any case."""
        sure = self.sure(step)
        if not self.end_guard or not len(step.ends):
            return sure | top_scored(step.score, 1)
        positions = torch.arange(sure.shape[1], device=sure.device)
        without_ends = sure & ~step.is_end
        reachable = positions <= step.first(step.open & ~without_ends)
        return (sure & (~step.is_end | reachable)) | top_scored(step.guarded(), 1)

    @property
    def _rule(self) -> Any:
        return self.remask if isinstance(self.remask, str) else name_of(self.remask)


@SAMPLER.register("threshold")
@dataclass(frozen=True)
class Threshold(ConfidenceSampler):
    """Confidence-aware parallel decoding of Fast-dLLM (arXiv 2505.22618).

    Commits all open positions with score >= ``threshold``; or, if ``factor`` > 0, the n most confident ones with the
    largest n for which (n + 1)(1 - c_n) < factor, c_n being the n-th highest confidence; at least one.  With ``remask:
    entropy`` the threshold is the negative of an entropy in nats.
    """

    threshold: float = 0.9
    factor: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._rule == "low_confidence" and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1] for confidences, got {self.threshold}")
        if self.factor > 0 and self._rule != "low_confidence":
            raise ValueError(f"factor needs probabilities: remask must be low_confidence, got {self._rule!r}")

    def sure(self, step: DenoisingStep) -> Tensor:
        """Those above the threshold, or those of the factor rule."""
        if self.factor <= 0:
            return step.open & (step.score >= self.threshold)
        ordered, index = step.score.sort(1, descending=True)
        n = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        # (n + 1)(1 - c_n) grows with n, so those that pass are the first of the order.
        return torch.zeros_like(step.open).scatter(1, index, (n + 1) * (1 - ordered) < self.factor) & step.open


@SAMPLER.register("entropy_bound")
@dataclass(frozen=True)
class EntropyBound(ConfidenceSampler):
    """Entropy-bounded parallel decoding, the EB-Sampler (arXiv 2505.24857).

    Places are ordered by the entropy H of their distributions, lowest first; the first n are committed, with the largest n
    for which H_1 + ... + H_n - max(H_1, ..., H_n) <= ``gamma`` nats.  The left side bounds the mutual information that is
    lost when these tokens are written at once.
    """

    remask: Any = component("remask", "entropy")
    gamma: NonNegativeFloat = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._rule != "entropy":
            raise ValueError(f"the bound is one of entropies: remask must be entropy, got {self._rule!r}")

    def sure(self, step: DenoisingStep) -> Tensor:
        """The first places of the order whose entropies, without the greatest, sum to at most ``gamma``."""
        entropy, index = (-step.score).sort(1)  # inf where nothing is open
        # In this order the greatest is the last, so what counts is the sum of those before.
        given_up = entropy.cumsum(1) - entropy
        within = (given_up <= self.gamma) & entropy.isfinite()  # inf - inf is no number, and not within
        return torch.zeros_like(step.open).scatter(1, index, within) & step.open
