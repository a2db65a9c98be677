"""The state of a decoder at work: of each row, and of each sampler that fills some of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from ttt.interfaces import SpanSampler
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import Block, Steps, steps_of
from ttt.types import CallKind, LogitsRequest


@dataclass
class DecoderRow:
    """The state of a prompt that is being answered."""

    number: int  # of the prompt
    slot: int  # its row in the session
    gen: Generator
    mode: str  # text | audio (waits for a sampler) | filling (a sampler is at work) | done
    last_span: bool = False  # the open span is the answer's last one
    in_span: bool = False  # inside a span that is written token by token (ar sampler)
    span_codes: int = 0  # codes written into that span
    text_tokens_owed: int = 0  # text tokens to be written before <|im_end|> is allowed
    num_written: int = 0  # new tokens
    last_token: int = -1  # the last one written token by token; -1: none yet
    known: Sequence[int] = ()  # the answer as far as it is given (in-filling)


class SamplerRun:
    """A sampler at work on some rows: what it requests next, and the blocks it hands out."""

    def __init__(self, rows: Sequence[DecoderRow]) -> None:
        self.rows = rows
        self.requests: list[LogitsRequest] = []
        self.unended = set(range(len(rows)))  # rows whose span (or answer) has not come to its end
        self._by_slot = {row.slot: row for row in rows}
        self._steps: Steps | None = None

    def start(self, sampler: SpanSampler, request: SpanRequest) -> None:
        """Set the sampler to work; `advance` then brings its first requests."""
        self._steps = steps_of(sampler, request)

    def members(self, requests: Sequence[LogitsRequest], kind: CallKind | None = None) -> list[DecoderRow]:
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
