"""Constraints: which range of ids the code at a place of an audio span comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ttt.interfaces import Constraint
from ttt.registry.families import CONSTRAINT

Codebooks = Sequence[tuple[int, int]]


@CONSTRAINT.register("none")
@dataclass(frozen=True)
class Unconstrained(Constraint):
    """Any code at any place; the loss is a softmax over all ids."""

    restricts: ClassVar[bool] = False

    def ranges(self, codebooks: Codebooks) -> tuple[tuple[int, int], ...]:
        """One, from the first code to the last."""
        return ((int(codebooks[0][0]), int(codebooks[-1][1])),)

    def range_at(self, places: Tensor, codebooks: Codebooks) -> Tensor:
        """All alike."""
        return torch.zeros_like(places)

    def may_end(self, places: Tensor, codebooks: Codebooks) -> Tensor:
        """Everywhere."""
        return torch.ones_like(places, dtype=torch.bool)

    def period(self, codebooks: Codebooks) -> int:
        """1."""
        return 1


@CONSTRAINT.register("frame")
@dataclass(frozen=True)
class FramePosition(Constraint):
    """The code at place k belongs to position k mod Q of its frame, and a span ends between frames (LLaDA-TTS).

    Q and the ids of each position come from the vocabulary: 7 for SNAC at its three rates, 4 for a residual quantiser of
    four codebooks, 1 for one codebook, where it only keeps the softmax to the codes.

    >>> FramePosition().range_at(torch.arange(5), [(10, 14), (14, 18)]).tolist()
    [0, 1, 0, 1, 0]
    """

    def ranges(self, codebooks: Codebooks) -> tuple[tuple[int, int], ...]:
        """One per position of a frame."""
        return tuple((int(a), int(b)) for a, b in codebooks)

    def range_at(self, places: Tensor, codebooks: Codebooks) -> Tensor:
        """k mod Q."""
        return places % len(codebooks)

    def may_end(self, places: Tensor, codebooks: Codebooks) -> Tensor:
        """Where a frame would begin."""
        return places % len(codebooks) == 0

    def period(self, codebooks: Codebooks) -> int:
        """Q."""
        return len(codebooks)
