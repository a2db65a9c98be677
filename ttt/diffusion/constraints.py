"""Constraints: which range of ids is allowed at each position of an audio span."""

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
    """Any code at any position; the loss is a softmax over all ids."""

    restricts: ClassVar[bool] = False

    def ranges(self, codebooks: Codebooks) -> tuple[tuple[int, int], ...]:
        """One range, from the first code to the last."""
        return ((int(codebooks[0][0]), int(codebooks[-1][1])),)

    def range_at(self, places: Tensor, codebooks: Codebooks) -> Tensor:
        """0 everywhere."""
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
    """The code at position k of a span belongs to codebook k mod Q, and a span ends between frames (LLaDA-TTS).

    Q and the ids of each codebook come from the vocabulary: 7 for SNAC at its three rates, 4 for a residual quantiser of
    four codebooks, 1 for one codebook, where the constraint only restricts the softmax to codes.

    >>> FramePosition().range_at(torch.arange(5), [(10, 14), (14, 18)]).tolist()
    [0, 1, 0, 1, 0]
    """

    def ranges(self, codebooks: Codebooks) -> tuple[tuple[int, int], ...]:
        """One range per position of a frame."""
        return tuple((int(a), int(b)) for a, b in codebooks)

    def range_at(self, places: Tensor, codebooks: Codebooks) -> Tensor:
        """k mod Q."""
        return places % len(codebooks)

    def may_end(self, places: Tensor, codebooks: Codebooks) -> Tensor:
        """At the first position of a frame."""
        return places % len(codebooks) == 0

    def period(self, codebooks: Codebooks) -> int:
        """Q."""
        return len(codebooks)


def constraint_of(constraint: Constraint | None) -> Constraint:
    """The constraint for codes that stand together (`ttt.interfaces.CodePattern`): `FramePosition`, if it restricts nothing."""
    return constraint if constraint is not None and constraint.restricts else FramePosition()
