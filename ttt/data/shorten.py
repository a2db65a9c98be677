"""Examples that are longer than a row: cut at the border of a frame of codes, where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ttt.data.streams import Streams, digest_of
from ttt.types import TokenStream


class Shortened(Streams):
    """A source some of whose examples end early: ``cuts`` number -> (segment, codes that are kept)."""

    def __init__(self, source: Streams, cuts: Mapping[int, tuple[int, int]]) -> None:
        self.source, self.cuts = source, dict(cuts)
        self.lengths = source.lengths.copy()
        for number, (segment, kept) in self.cuts.items():
            self.lengths[number] = len(source[number].truncate(segment, kept))
        told = ",".join(f"{i}:{s}:{k}" for i, (s, k) in sorted(self.cuts.items()))
        self.digest = digest_of(source.digest, told) if self.cuts else source.digest

    def stream(self, index: int) -> TokenStream:
        """The example of this number, cut if it is one of those."""
        found = self.source.stream(index)
        return found.truncate(*self.cuts[index]) if index in self.cuts else found

    def uid(self, index: int) -> str:
        """Name of the example of this number."""
        return self.source.uid(index)

    def epoch(self, number: int) -> np.ndarray | None:
        """Examples of an epoch, as the source has them."""
        return self.source.epoch(number)


def frame_cut(stream: TokenStream, longest: int, frame: int) -> tuple[int, int] | None:
    """(segment, codes kept) with which a stream fits into ``longest`` tokens; None when no cut of whole frames does.

    The longest audio segment that carries loss is cut; what follows it in its turn falls away (`TokenStream.truncate`).
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
