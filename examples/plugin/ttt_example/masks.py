"""A mask that forgets: the prompt and the last tokens, nothing between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ttt.interfaces import MaskRule
from ttt.registry import component
from ttt.registry.families import MASK


@MASK.register("recent")
@dataclass(frozen=True)
class Recent(MaskRule):
    """What ``within`` allows, but of an answer's past only the last ``width`` positions; the prompt is never forgotten."""

    within: Any = component("mask", "hybrid")
    width: int = 64

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be >= 1, got {self.width}")

    @property
    def block_length(self) -> int:
        """That of ``within``."""
        return self.within.block_length

    @property
    def text_sees_future(self) -> bool:
        """That of ``within``: forgetting the past changes nothing about the future."""
        return self.within.text_sees_future

    @property
    def looks_ahead(self) -> str:
        """That of ``within``."""
        return self.within.looks_ahead

    def allow(self, layout):
        """``within`` and (k in the prompt or q - k < width); positions count inside the document."""
        inner, prompt, position = self.within.allow(layout), layout.prompt, layout.position
        return lambda b, h, q, k: inner(b, h, q, k) & (prompt[b, k] | (position[b, q] - position[b, k] < self.width))

    def frozen_prefix(self, layout, closed):
        """That of ``within``: who never sees later positions still never does."""
        return self.within.frozen_prefix(layout, closed)
