"""A running average of the weights (``train.ema``): smoother than the latest ones, and often better to decode with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of the trainable parameters, in float32.

    After update n: average = d * average + (1 - d) * weights with d = min(``decay``, (1 + n) / (10 + n)).  The second
    value lets the average follow early training instead of the random start; it is a function of n, so nothing but the
    average has to be stored.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._averages = [p.detach().to(torch.float32, copy=True) for p in self._parameters]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Count the weights after ``updates`` updates in."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(self._averages, [p.detach().float() for p in self._parameters], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the averages are the model's parameters: to compute with, to save, and to read into."""
        weights = [p.data for p in self._parameters]
        try:
            for parameter, average in zip(self._parameters, self._averages, strict=True):
                parameter.data = average
            yield
        finally:
            for parameter, weight in zip(self._parameters, weights, strict=True):
                parameter.data = weight

    def state_bytes(self) -> int:
        """Its share of a checkpoint."""
        return sum(a.numel() * a.element_size() for a in self._averages)
