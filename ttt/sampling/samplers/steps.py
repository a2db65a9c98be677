"""Samplers as coroutines: they say which logits they want next and are sent them, so that whoever runs several of them
can answer all their wishes with one network call.

A sampler's ``steps(request)`` yields a list of `Call` and receives the list of their logits; between calls it yields
finished `Block`s.  `drive` runs one alone, `together` makes one of several.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Call:
    """Logits wanted f32 [R, p, ids] of the rows ``rows`` i64 [R] with the tokens ``tails`` i64 [R, m] behind their context.

    ``places`` i64 [R, p]: which columns of the tails, ascending.  ``last``: how many last columns hold all places.
    ``unconditional``: a guidance mode; everything but the ``last`` columns is then replaced by mask tokens, as that mode says.
    ``kind``: what the call is counted as, "ar" or "diffusion".  ``joined``: models of frames read settled frames as prompt.
    """

    rows: Tensor
    tails: Tensor
    places: Tensor
    last: int
    unconditional: str = ""
    kind: str = "diffusion"
    joined: bool = False


@dataclass(frozen=True)
class Block:
    """A settled block of one row: its ids (end token included, nothing after it) and whether the span is over."""

    row: int
    ids: Tensor
    ended: bool


# Yields lists of calls and blocks, is sent a list of logits for each list of calls, returns what its kind returns.
Steps = Generator[Any, Any, Any]


def drive(steps: Steps, predict: Callable[..., Tensor]) -> Iterator[Block]:
    """Run a sampler's steps with a function that answers call by call (`ttt.sampling.samplers.request.Predict`)."""
    answer: list[Tensor] | None = None
    while True:
        try:
            item = steps.send(answer)
        except StopIteration:
            return
        if isinstance(item, Block):
            answer = None
            yield item
            continue
        answer = []
        for call in item:
            guided = (call.unconditional,) if call.unconditional else ()
            logits = predict(call.rows, call.tails, call.last, *guided)
            at = call.places - (call.tails.shape[1] - call.last)
            answer.append(logits.gather(1, at[..., None].to(logits.device).expand(-1, -1, logits.shape[-1])))


def together(parts: Sequence[Steps]) -> Steps:
    """Several steps as one: what they want at the same time is asked at the same time.

    A part may return further parts, which take its place.
    """
    running: list[tuple[Steps, list[Tensor] | None]] = [(part, None) for part in parts]
    while running:
        wishes: list[tuple[Steps, list[Call]]] = []
        while running:
            part, answer = running.pop(0)
            try:
                item = part.send(answer)
            except StopIteration as end:
                running[:0] = [(more, None) for more in end.value or ()]
                continue
            if isinstance(item, Block):
                yield item
                running.insert(0, (part, None))
            else:
                wishes.append((part, item))
        if not wishes:
            return
        answers = yield [call for _, calls in wishes for call in calls]
        for part, calls in wishes:
            running.append((part, answers[: len(calls)]))
            answers = answers[len(calls) :]


def steps_of(sampler: Any, request: Any) -> Steps:
    """A sampler's steps; those of one that overrides only ``span`` yield blocks and let its own calls block everything."""
    kinds = type(sampler).__mro__

    def first(name: str) -> int:
        return next((i for i, kind in enumerate(kinds) if name in vars(kind)), len(kinds))

    return sampler.steps(request) if first("steps") <= first("span") else sampler.span(request)
