"""A row of the decoder, and a sampler at work on some rows: the bridge from samplers' calls to the session's asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ttt.interfaces import SpanSampler
from ttt.sampling.decoder.session import Ask
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import Block, Call, Steps, steps_of


@dataclass
class Row:
    """A prompt in work: ``number`` among the prompts, ``slot`` in the session."""

    number: int
    slot: int
    gen: Generator
    mode: str  # text | audio (waits for its sampler) | filling | done
    last: bool = False  # the open span is the answer's last one
    open: bool = False  # inside a span that is written token by token (ar sampler)
    codes: int = 0  # codes written into the open span (ar sampler)
    text_tokens_owed: int = 0  # text tokens still owed before <|im_end|> is allowed
    new: int = 0
    token: int = -1  # the last one written token by token; -1: none yet
    settled: int = 0  # tokens of the open span (or answer) that are committed
    known: Sequence[int] = ()  # the answer as far as it is given (in-filling)


class Filling:
    """A sampler at work on some rows: what it wants next, and the blocks it hands out."""

    def __init__(self, rows: Sequence[Row], ids: slice | None) -> None:
        self.rows, self.ids = rows, ids
        self.calls: list[Call] = []
        self.unended = set(range(len(rows)))  # rows whose span (or answer) has not come to its end
        self._steps: Steps | None = None

    def start(self, sampler: SpanSampler, request: SpanRequest) -> None:
        """Set the sampler to work; `advance` then brings the first calls."""
        self._steps = steps_of(sampler, request)

    def asks(self) -> list[Ask]:
        """One for every row of every call; blocks that the session holds already are no part of the tail."""
        out = []
        for call in self.calls:
            for n, tail, places in zip(call.rows.tolist(), call.tails.cpu(), call.places.cpu(), strict=True):
                row = self.rows[n]
                at = row.settled
                out.append(Ask(row.slot, tail[at:], places - at, self.ids, call.unconditional, call.last, call.joined))
        return out

    def members(self, kind: str = "") -> list[Row]:
        """Rows that take part in the next network call (of one ``kind``)."""
        calls = [c for c in self.calls if not kind or c.kind == kind]
        return [self.rows[n] for n in sorted({n for c in calls for n in c.rows.tolist()})]

    def advance(self, answers: Sequence[Tensor] | None) -> Iterator[Block]:
        """Hand over the logits of `asks` and go on to the next calls (none: the sampler has finished)."""
        sent: list[Tensor] | None = None
        if answers is not None:
            sizes = [len(call.rows) for call in self.calls]
            parts = iter(answers)
            sent = [torch.stack([next(parts) for _ in range(n)]) for n in sizes]
        self.calls = []
        assert self._steps is not None, "not started"
        while True:
            try:
                item = self._steps.send(sent)
            except StopIteration:
                return
            if not isinstance(item, Block):
                self.calls = item
                return
            sent = None
            yield item
