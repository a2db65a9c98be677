"""Attention rules: ``allow(layout)`` returns one predicate (b, h, q, k) -> bool, used by every attention implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ttt.interfaces import MaskRule
from ttt.registry import PositiveInt, component
from ttt.registry.families import MASK
from ttt.types import Kind, Layout

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.interfaces import MaskMod


def _same_document(layout: Layout) -> MaskMod:
    """Keys that are visible and in the query's document."""
    doc, visible = layout.doc, layout.visible
    return lambda b, h, q, k: (doc[b, q] == doc[b, k]) & visible[b, k]


def _visible_prefix(layout: Layout) -> Tensor:
    return layout.visible.long().sum(1)


@MASK.register("causal")
@dataclass(frozen=True)
class Causal(MaskRule):
    """Every position attends to itself and everything before it: the autoregressive baseline."""

    looks_ahead = "nothing"

    def allow(self, layout: Layout) -> MaskMod:
        """k <= q, same document."""
        exists = _same_document(layout)
        return lambda b, h, q, k: (k <= q) & exists(b, h, q, k)

    def frozen_prefix(self, layout: Layout, closed: Tensor) -> Tensor:
        """Everything: no position attends to later ones."""
        return _visible_prefix(layout)


@MASK.register("full")
@dataclass(frozen=True)
class Full(MaskRule):
    """Every position attends to its whole document: masked diffusion over everything (LLaDA, NAR baseline)."""

    text_sees_future = True
    looks_ahead = "document"

    def allow(self, layout: Layout) -> MaskMod:
        """Same document."""
        return _same_document(layout)


@MASK.register("prefix")
@dataclass(frozen=True)
class Prefix(MaskRule):
    """The prompt is bidirectional, everything after it causal: a prefix language model (arXiv 1910.10683).

    In a dialogue every contiguous part of the prompt (a user turn) attends to itself and to what came before it, never to a
    later turn.  Without a prompt this is ``causal``.
    """

    text_sees_future = True
    looks_ahead = "prompt"

    def allow(self, layout: Layout) -> MaskMod:
        """(k <= q) or (q, k of one contiguous part of the prompt), same document."""
        exists = _same_document(layout)
        prompt = layout.prompt
        part = torch.cumsum((~prompt).long(), 1)  # equal for two prompt positions iff no answer lies between them

        def predicate(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            same_part = prompt[b, q] & prompt[b, k] & (part[b, q] == part[b, k])
            return ((k <= q) | same_part) & exists(b, h, q, k)

        return predicate

    def frozen_prefix(self, layout: Layout, closed: Tensor) -> Tensor:
        """Everything: appended tokens never belong to the prompt."""
        return _visible_prefix(layout)


@MASK.register("hybrid")
@dataclass(frozen=True)
class Hybrid(MaskRule):
    """TtT's mask (arXiv 2509.20072): causal, and bidirectional inside every maximal run of audio tokens.

    ``bidirectional_prompt_audio``: whether audio runs of the user are bidirectional too (the official code) or causal (the
    paper's text).
    """

    bidirectional_prompt_audio: bool = True

    @property
    def looks_ahead(self) -> str:  # type: ignore[override]
        """``runs``, or ``answer_runs`` when audio of the user is causal."""
        return "runs" if self.bidirectional_prompt_audio else "answer_runs"

    def allow(self, layout: Layout) -> MaskMod:
        """(k <= q) or (q, k audio of one run), same document."""
        exists = _same_document(layout)
        kind, span, prompt = layout.kind, layout.run_id, layout.prompt
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
        run = (layout.kind == Kind.AUDIO) & (layout.run_id == layout.run_id.gather(1, last))
        run &= (layout.kind.gather(1, last) == Kind.AUDIO) & layout.visible
        open_run = torch.where(closed | (length == 0), 0, run.long().sum(1))
        return length - open_run


@MASK.register("block_causal")
@dataclass(frozen=True)
class BlockCausal(MaskRule):
    """Causal text; audio runs of an answer in blocks of ``block_length``: bidirectional inside a block, causal between blocks.

    Finished blocks do not attend to later ones, so block-wise decoding can cache their keys (block diffusion, arXiv
    2503.09573).  Audio of the user is complete from the start and stays bidirectional, as in ``hybrid``.
    """

    block_length: PositiveInt = 26
    looks_ahead = "blocks"

    def allow(self, layout: Layout) -> MaskMod:
        """(k <= q) or (q, k audio of one run and, in an answer, of one block), same document."""
        exists = _same_document(layout)
        span, prompt = layout.run_id, layout.prompt
        both = layout.kind == Kind.AUDIO
        block = torch.where(prompt, 0, run_offsets(layout) // self.block_length)

        def predicate(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            one_block = both[b, q] & both[b, k] & (span[b, q] == span[b, k]) & (block[b, q] == block[b, k])
            return ((k <= q) | one_block) & exists(b, h, q, k)

        return predicate

    def frozen_prefix(self, layout: Layout, closed: Tensor) -> Tensor:
        """Everything before the open block of a trailing audio run; everything once the run is closed."""
        length = _visible_prefix(layout)
        last = (length - 1).clamp(min=0)[:, None]
        in_run = ((layout.kind.gather(1, last) == Kind.AUDIO) & layout.visible.gather(1, last))[:, 0]
        offset = run_offsets(layout).gather(1, last)[:, 0]
        of_prompt = layout.prompt.gather(1, last)[:, 0]
        open_block = torch.where(of_prompt, offset + 1, (offset + 1) % self.block_length)
        return length - torch.where(closed | ~in_run | (length == 0), 0, open_block)


@MASK.register("dual_stream")
@dataclass(frozen=True)
class DualStream(MaskRule):
    """A clean sample followed by a noisy copy of its answer audio (`Layout.stream` 1); layout of arXiv 2503.09573.

    Clean positions follow ``clean`` and do not attend to the copy.  A noisy position attends to the copy of its own span (of
    its own block, if ``clean`` has blocks) and to the clean positions before it.  Without a copy, as in decoding, this is
    ``clean``.
    """

    clean: Any = component("mask", "block_causal")

    @property
    def block_length(self) -> int:  # type: ignore[override]
        """That of ``clean``."""
        return self.clean.block_length

    @property
    def text_sees_future(self) -> bool:  # type: ignore[override]
        """That of ``clean``."""
        return self.clean.text_sees_future

    @property
    def looks_ahead(self) -> str:  # type: ignore[override]
        """That of ``clean``, for the clean sample."""
        return self.clean.looks_ahead

    def allow(self, layout: Layout) -> MaskMod:
        """One rule for each combination of the streams of q and k."""
        exists = _same_document(layout)
        clean = self.clean.allow(layout)
        noisy, span, position = layout.stream == 1, layout.run_id, layout.position
        if not bool(noisy.any()):
            return clean
        offset = run_offsets(layout)
        block = offset // self.block_length if self.block_length else torch.zeros_like(offset)
        begin = position - (offset - block * self.block_length)  # position in the document at which the block of q starts

        def predicate(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            own = noisy[b, k] & (span[b, q] == span[b, k]) & (block[b, q] == block[b, k])
            history = ~noisy[b, k] & (position[b, k] < begin[b, q])
            return torch.where(
                noisy[b, q], (own | history) & exists(b, h, q, k), ~noisy[b, k] & clean(b, h, q, k)
            )

        return predicate

    def frozen_prefix(self, layout: Layout, closed: Tensor) -> Tensor:
        """That of ``clean``: decoding has no copy."""
        return self.clean.frozen_prefix(layout, closed)


def run_offsets(layout: Layout) -> Tensor:
    """i64 [B, T]: number of positions of the same audio run (and stream) before each audio position; 0 elsewhere."""
    audio = layout.kind == Kind.AUDIO
    same = torch.zeros_like(audio)
    same[:, 1:] = audio[:, 1:] & audio[:, :-1]
    for x in (layout.run_id, layout.doc, layout.stream):
        same[:, 1:] &= x[:, 1:] == x[:, :-1]
    columns = torch.arange(audio.shape[1], device=audio.device).expand(audio.shape)
    begin = torch.where(same, 0, columns).cummax(1).values
    return torch.where(audio, columns - begin, 0)
