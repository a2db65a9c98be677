"""Samplers as coroutines, so that several of them, and rows that write text, share one network call.

``sampler.steps(request)`` is a generator.  It yields a list of `LogitsRequest` and is sent the list of their logits;
between these it yields finished `Block`s.  Whoever runs several such generators answers all their requests with one
network call.  `drive` runs one generator alone, `run_together` makes one generator of several.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ttt.types import LogitsRequest

# Logits of each request, all of them by one network call (`ttt.sampling.decoder.session.Session.run`).
Run = Callable[[Sequence[LogitsRequest]], Sequence[Tensor]]


@dataclass(frozen=True)
class Block:
    """Tokens of one row that are final: ids i64 [m] (end token included, nothing after it).  ``ended``: the span is over."""

    row: int
    ids: Tensor
    ended: bool


# Yields lists of logits requests and blocks, is sent a list of logits for each list of requests.
Steps = Generator[Any, Any, Any]


def drive(steps: Steps, run: Run) -> Iterator[Block]:
    """Run a sampler's steps alone: every list of requests is one call of ``run``."""
    logits: Sequence[Tensor] | None = None
    while True:
        try:
            item = steps.send(logits)
        except StopIteration:
            return
        logits = None
        if isinstance(item, Block):
            yield item
        else:
            logits = run(item)


def run_together(parts: Sequence[Steps]) -> Steps:
    """Several generators of steps as one: what they request at the same time is requested in one list.

    A generator may return further generators, which take its place.
    """
    running: list[tuple[Steps, Sequence[Tensor] | None]] = [(part, None) for part in parts]
    while running:
        waiting: list[tuple[Steps, list[LogitsRequest]]] = []
        while running:
            part, logits = running.pop(0)
            try:
                item = part.send(logits)
            except StopIteration as end:
                running[:0] = [(more, None) for more in end.value or ()]
                continue
            if isinstance(item, Block):
                yield item
                running.insert(0, (part, None))
            else:
                waiting.append((part, item))
        if not waiting:
            return
        answers = yield [request for _, requests in waiting for request in requests]
        for part, requests in waiting:
            running.append((part, answers[: len(requests)]))
            answers = answers[len(requests) :]


def run_each(predict: Callable[..., Tensor]) -> Run:
    """A `Run` by a function ``predict(rows, tails, window, guidance)`` -> logits f32 [R, window, V] of the last columns.

    For samplers without a session, on a table of logits say; one call of ``predict`` for each request.
    """

    def run(requests: Sequence[LogitsRequest]) -> list[Tensor]:
        answers = []
        for request in requests:
            logits = predict(request.rows, request.tails, request.window, request.guidance)
            at = (request.places - (request.tails.shape[1] - request.window)).to(logits.device)
            answers.append(logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1])))
        return answers

    return run


def steps_of(sampler: Any, request: Any) -> Steps:
    """``sampler.steps(request)``; of a sampler that overrides ``span`` alone, ``span``, whose network calls are its own."""
    classes = type(sampler).__mro__

    def depth(name: str) -> int:
        return next((i for i, cls in enumerate(classes) if name in vars(cls)), len(classes))

    return sampler.steps(request) if depth("steps") <= depth("span") else sampler.span(request)
