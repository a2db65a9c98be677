"""Applying strategies to one example, and the room that must be kept for what they add.

There are two kinds of strategies on token streams.  Some vary an example for training (span truncation, random
lengths).  The others (`Strategy.shapes_canvas`) are part of the task, for example filling an answer up to the canvas
that decoding starts from.  Validation applies only these, with the same draws every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ttt.interfaces import Strategy
from ttt.rng import derive_seed
from ttt.types import TokenStream


def shaping(strategies: Sequence[Strategy]) -> tuple[Strategy, ...]:
    """The strategies that shape the canvas: those that validation applies."""
    return tuple(s for s in strategies if s.shapes_canvas)


def growths(strategies: Sequence[Strategy], streams: Iterable[TokenStream], n: int) -> np.ndarray:
    """By how many tokens each of ``n`` examples may grow at most, i64 [n].

    If a strategy can lengthen examples, all examples are read once.
    """
    growing = [s for s in strategies if type(s).growth is not Strategy.growth]
    if not growing:
        return np.zeros(n, dtype=np.int64)
    return np.fromiter((sum(g.growth(s) for g in growing) for s in streams), np.int64, n)


def shaped(
    stream: TokenStream, strategies: Sequence[Strategy], longest: int, seed: int, name: str, *numbers: int
) -> TokenStream:
    """The example after all strategies, in their order; each draws from (``seed``, ``name``, ``numbers``, its place).

    Strategies add tokens up to a length of ``longest`` (`Strategy.limited`); an example that is longer does not grow.
    """
    for place, strategy in enumerate(strategies):
        room = max(0, longest - len(stream))
        if strategy.growth(stream) > room:
            strategy = strategy.limited(stream, room)
        stream = strategy.on_stream(stream, np.random.default_rng(derive_seed(seed, name, *numbers, place)))
    return stream
