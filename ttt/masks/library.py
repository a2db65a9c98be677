"""Attention rules.  ``allow(layout)`` gives one predicate (b, h, q, k) -> bool that serves every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ttt.interfaces import MaskRule
from ttt.registry.families import MASK
from ttt.types import Kind, Layout

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.interfaces import MaskMod


def _same_document(layout: Layout) -> MaskMod:
    """Keys that exist: visible, and of the query's own document."""
    doc, visible = layout.doc, layout.visible
    return lambda b, h, q, k: (doc[b, q] == doc[b, k]) & visible[b, k]


def _visible_prefix(layout: Layout) -> Tensor:
    return layout.visible.long().sum(1)


@MASK.register("causal")
@dataclass(frozen=True)
class Causal(MaskRule):
    """Every position looks at itself and everything before it: the pure autoregressive baseline."""

    def allow(self, layout: Layout) -> MaskMod:
        """k <= q, same document."""
        exists = _same_document(layout)
        return lambda b, h, q, k: (k <= q) & exists(b, h, q, k)

    def frozen_prefix(self, layout: Layout, closed: Tensor) -> Tensor:
        """Everything: nothing ever looks ahead."""
        return _visible_prefix(layout)


@MASK.register("full")
@dataclass(frozen=True)
class Full(MaskRule):
    """Every position looks at its whole document: masked diffusion over everything (LLaDA, pure NAR baseline)."""

    def allow(self, layout: Layout) -> MaskMod:
        """Same document."""
        return _same_document(layout)


@MASK.register("hybrid")
@dataclass(frozen=True)
class Hybrid(MaskRule):
    """TtT's mask: causal, and inside one maximal run of audio tokens bidirectional (spec of TtT, section 4).

    ``bidirectional_prompt_audio``: whether the user's audio runs are bidirectional too (the official code) or plain
    causal context (the paper's wording).
    """

    bidirectional_prompt_audio: bool = True

    def allow(self, layout: Layout) -> MaskMod:
        """(k <= q) or (q, k audio of one run), same document."""
        exists = _same_document(layout)
        kind, span, prompt = layout.kind, layout.span, layout.prompt
        both = kind == Kind.AUDIO
        if not self.bidirectional_prompt_audio:
            both = both & ~prompt

        def predicate(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            one_run = both[b, q] & both[b, k] & (span[b, q] == span[b, k])
            return ((k <= q) | one_run) & exists(b, h, q, k)

        return predicate

    def frozen_prefix(self, layout: Layout, closed: Tensor) -> Tensor:
        """Everything before a trailing audio run; everything once the run is closed."""
        length = _visible_prefix(layout)
        last = (length - 1).clamp(min=0)[:, None]
        run = (layout.kind == Kind.AUDIO) & (layout.span == layout.span.gather(1, last))
        run &= (layout.kind.gather(1, last) == Kind.AUDIO) & layout.visible
        open_run = torch.where(closed | (length == 0), 0, run.long().sum(1))
        return length - open_run
