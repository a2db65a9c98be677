"""What a decoder keeps in mind while it works: the state of each row, and each sampler that is at work on some rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from ttt.interfaces import SpanSampler
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import Block, Steps, steps_of
from ttt.types import CallKind, LogitsRequest


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
    known: Sequence[int] = ()  # the answer as far as it is given (in-filling)


class Filling:
    """A sampler at work on some rows: what it requests next, and the blocks it hands out."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.requests: list[LogitsRequest] = []
        self.unended = set(range(len(rows)))  # rows whose span (or answer) has not come to its end
        self._by_slot = {row.slot: row for row in rows}
        self._steps: Steps | None = None

    def start(self, sampler: SpanSampler, request: SpanRequest) -> None:
        """Set the sampler to work; `advance` then brings its first requests."""
        self._steps = steps_of(sampler, request)

    def members(self, requests: Sequence[LogitsRequest], kind: CallKind | None = None) -> list[Row]:
        """Rows that take part in a network call on ``requests`` (in those of one ``kind``)."""
        slots = {slot for r in requests if kind is None or r.kind == kind for slot in r.rows.tolist()}
        return [self._by_slot[slot] for slot in slots]

    def advance(self, logits: Sequence[Tensor] | None) -> Iterator[Block]:
        """Hand the sampler the logits of its `requests` and go on to the next ones (none: it has finished)."""
        self.requests = []
        assert self._steps is not None, "not started"
        while True:
            try:
                item = self._steps.send(logits)
            except StopIteration:
                return
            if not isinstance(item, Block):
                self.requests = item
                return
            logits = None
            yield item
