"""What strategies make of one example, and how much room they may take for it.

Strategies of two kinds act on streams.  Some vary what training sees of an example (span truncation, random lengths); those
that say so (`Strategy.shapes_canvas`) belong to the task: an answer filled up to the canvas that decoding begins with is the
example, with or without training.  Validation applies the latter alone, with draws that are the same every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ttt.interfaces import Strategy
from ttt.rng import derive_seed
from ttt.types import TokenStream


def shaping(strategies: Sequence[Strategy]) -> tuple[Strategy, ...]:
    """Those that shape the canvas: what validation applies."""
    return tuple(s for s in strategies if s.shapes_canvas)


def growths(strategies: Sequence[Strategy], streams: Iterable[TokenStream], n: int) -> np.ndarray:
    """By how many tokens each of ``n`` examples may grow at most, i64 [n].

    Asks for the examples themselves where there is a strategy that lengthens: that reads all data once.
    """
    growing = [s for s in strategies if type(s).growth is not Strategy.growth]
    if not growing:
        return np.zeros(n, dtype=np.int64)
    return np.fromiter((sum(g.growth(s) for g in growing) for s in streams), np.int64, n)


def shaped(
    stream: TokenStream, strategies: Sequence[Strategy], longest: int, seed: int, name: str, *numbers: int
) -> TokenStream:
    """The example after all strategies, in their order; each draws from (``seed``, ``name``, ``numbers``, its place).

    What they add ends where the example has ``longest`` tokens (`Strategy.limited`); an example that is longer does not grow.
    """
    for place, strategy in enumerate(strategies):
        room = max(0, longest - len(stream))
        if strategy.growth(stream) > room:
            strategy = strategy.limited(stream, room)
        stream = strategy.on_stream(stream, np.random.default_rng(derive_seed(seed, name, *numbers, place)))
    return stream
