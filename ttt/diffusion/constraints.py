"""Constraints: which range of ids the code at a place of an audio span comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ttt.interfaces import Constraint
from ttt.registry.families import CONSTRAINT

Books = Sequence[tuple[int, int]]


@CONSTRAINT.register("none")
@dataclass(frozen=True)
class Unconstrained(Constraint):
    """Any code at any place; the loss is a softmax over all ids."""

    restricts: ClassVar[bool] = False

    def ranges(self, books: Books) -> tuple[tuple[int, int], ...]:
        """One, from the first code to the last."""
        return ((int(books[0][0]), int(books[-1][1])),)

    def range_at(self, places: Tensor, books: Books) -> Tensor:
        """All alike."""
        return torch.zeros_like(places)

    def may_end(self, places: Tensor, books: Books) -> Tensor:
        """Everywhere."""
        return torch.ones_like(places, dtype=torch.bool)

    def period(self, books: Books) -> int:
        """1."""
        return 1


@CONSTRAINT.register("frame")
@dataclass(frozen=True)
class FramePosition(Constraint):
    """The code at place k belongs to position k mod Q of its frame, and a span ends between frames (LLaDA-TTS).

    Q and the ids of each position come from the vocabulary: 7 for SNAC at its three rates, 4 for a residual quantiser of
    four books, 1 for one book, where it only keeps the softmax to the codes.

    >>> FramePosition().range_at(torch.arange(5), [(10, 14), (14, 18)]).tolist()
    [0, 1, 0, 1, 0]
    """

    def ranges(self, books: Books) -> tuple[tuple[int, int], ...]:
        """One per position of a frame."""
        return tuple((int(a), int(b)) for a, b in books)

    def range_at(self, places: Tensor, books: Books) -> Tensor:
        """k mod Q."""
        return places % len(books)

    def may_end(self, places: Tensor, books: Books) -> Tensor:
        """Where a frame would begin."""
        return places % len(books) == 0

    def period(self, books: Books) -> int:
        """Q."""
        return len(books)
