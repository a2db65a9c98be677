"""Examples that are longer than a row: how many there are, what is lost, and how to cut them at whole frames.

Examples are never cut silently.  One that is longer than a row is left out, or cut (``data.long_rows``: at the end of a frame
of codes, or with the row), and counted; `context` says before training how much that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ttt.data.sources.streams import Streams, digest_of
from ttt.errors import ConfigError
from ttt.types import TokenStream


@dataclass(frozen=True)
class Context:
    """How many examples are longer than a context of ``tokens``, and what is lost of them."""

    tokens: int
    examples: int  # that are longer
    share: float  # of all examples
    dropped: float  # share of all tokens that is lost when the longer ones are left out
    cut: float  # share of all tokens that would lie behind the end of the context

    def line(self) -> str:
        """One line for a report.

        >>> Context(1024, 1, 0.25, 0.5, 0.125).line()
        '1 example (25.00 %) is longer than 1024 tokens: leaving it out loses 50.00 % of the tokens, a cut would lose 12.50 %'
        """
        if not self.examples:
            return f"no example is longer than {self.tokens} tokens"
        them, are = ("it", "example ({}) is") if self.examples == 1 else ("them", "examples ({}) are")
        return (
            f"{self.examples} {are.format(_percent(self.share))} longer than {self.tokens} tokens: leaving {them} out loses "
            f"{_percent(self.dropped)} of the tokens, a cut would lose {_percent(self.cut)}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def context(lengths: np.ndarray, tokens: int) -> Context:
    """Statistics of a context of ``tokens`` for examples of these lengths, i64 [n].

    >>> context(np.array([2, 2, 8]), 4)
    Context(tokens=4, examples=1, share=0.3333333333333333, dropped=0.6666666666666666, cut=0.3333333333333333)
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    longer = lengths[lengths > tokens]
    n, total = max(len(lengths), 1), max(int(lengths.sum()), 1)
    return Context(
        tokens, len(longer), len(longer) / n, int(longer.sum()) / total, int((longer - tokens).sum()) / total
    )


def check_context(lengths: np.ndarray, tokens: int, key: str = "data.row_tokens") -> Context:
    """`context`.  Raises `ConfigError` naming the setting when not even the shortest example fits."""
    if len(lengths) and int(np.min(lengths)) > tokens:
        raise ConfigError(
            f"{key}: {tokens} is shorter than the shortest of {len(lengths)} examples ({int(np.min(lengths))} tokens); "
            f"the longest has {int(np.max(lengths))} ('ttt data stats' shows all)"
        )
    return context(lengths, tokens)


class Shortened(Streams):
    """A source in which some examples are cut; ``cuts``: number of the example -> (segment to cut, codes kept of it)."""

    def __init__(self, source: Streams, cuts: Mapping[int, tuple[int, int]]) -> None:
        self.source, self.cuts = source, dict(cuts)
        self.lengths = source.lengths.copy()
        for number, (segment, kept) in self.cuts.items():
            self.lengths[number] = len(source[number].truncate(segment, kept))
        cuts_text = ",".join(f"{i}:{s}:{k}" for i, (s, k) in sorted(self.cuts.items()))
        self.digest = digest_of(source.digest, cuts_text) if self.cuts else source.digest

    def stream(self, index: int) -> TokenStream:
        """The example of this number, cut if ``cuts`` names it."""
        whole = self.source.stream(index)
        return whole.truncate(*self.cuts[index]) if index in self.cuts else whole

    def uid(self, index: int) -> str:
        """Name of the example of this number."""
        return self.source.uid(index)

    def epoch(self, number: int) -> np.ndarray | None:
        """Examples of an epoch, as the source has them."""
        return self.source.epoch(number)


def frame_cut(stream: TokenStream, longest: int, frame: int) -> tuple[int, int] | None:
    """(segment, codes kept) so that a stream fits into ``longest`` tokens; None if no cut after a whole frame does.

    The longest audio segment that carries loss is cut; the rest of its turn is dropped (`TokenStream.truncate`).
    """
    targets = [(s.stop - s.start, n) for n, s in enumerate(stream.segments) if s.target]
    if not targets:
        return None
    _, number = max(targets)
    segment = stream.segments[number]
    room = longest - (len(stream) - segment.turn_stop) - segment.start
    kept = min(room, segment.stop - segment.start) // frame * frame
    return (number, kept) if kept >= frame else None


def shortened(streams: Streams, longest: int, frame: int) -> Shortened:
    """The same source with every example that is too long, and can be, cut to whole frames of ``frame`` codes."""
    cuts = {}
    for number in np.flatnonzero(streams.lengths > longest).tolist():
        cut = frame_cut(streams[number], longest, frame)
        if cut is not None:
            cuts[number] = cut
    return Shortened(streams, cuts)
