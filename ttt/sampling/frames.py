"""A trace as pictures: after every network call, what stands where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ttt.sampling.trace import TraceRecord

# Kinds of cells; "remasked" stands for one frame, then the position is a mask again.
STATES = ("mask", "text", "audio", "committed", "remasked", "given")


@dataclass(frozen=True)
class Cell:
    """One position.  ``state``: one of `STATES`; ``token`` -1 for masks; ``new``: written in this call."""

    state: str
    token: int = -1
    confidence: float | None = None
    new: bool = False


MASK = Cell("mask")


@dataclass(frozen=True)
class Frame:
    """The answer after network call ``call``: one cell per position.  ``final``: how many of them are settled."""

    call: int
    cells: tuple[Cell, ...]
    final: int


def frames(record: TraceRecord) -> Iterator[Frame]:
    """One frame per network call, and a last one that shows what is left of the answer if that differs.

    Positions that a sampler fills later in the same block are shown as masks from the block's first call on.  (A trace
    knows positions that were written, so masks that a block never filled are not shown.)
    """
    cells: dict[int, Cell] = {}
    final = 0
    steps = list(zip(record.call, record.kind, record.position, record.token, record.confidence, strict=True))
    reach = _reaches(record)
    at = 0
    while at < len(steps):
        call = steps[at][0]
        # What was new or taken back a call ago is settled into place or masked again.
        cells = {p: MASK if c.state == "remasked" else Cell(c.state, c.token, c.confidence) for p, c in cells.items()}
        if at and steps[at - 1][1] == "x":
            cells = {p: c for p, c in cells.items() if p < final}
        width = 0
        while at < len(steps) and steps[at][0] == call:
            _, kind, position, token, confidence = steps[at]
            if kind in "sx":
                # What is dropped stays in the picture of the call that wrote it, unless something is written over it.
                if kind == "x" and at + 1 < len(steps) and steps[at + 1][0] == call:
                    cells = {p: c for p, c in cells.items() if p < position}
                    width = 0
                final = position
            else:
                state = {"t": "text", "a": "audio", "c": "committed", "r": "remasked", "g": "given"}[kind]
                cells[position] = Cell(state, token, confidence, new=True)
                width = max(width, reach[at])
                if kind in "ta":
                    final = position + 1
            at += 1
        size = max([width, *(p + 1 for p in cells)])
        for p in range(size):
            cells.setdefault(p, MASK)
        yield Frame(call, tuple(cells[p] for p in range(size)), final)
    if steps:
        rest = tuple(Cell(c.state, c.token, c.confidence) for p, c in sorted(cells.items()) if p < len(record.ids))
        if len(rest) != len(cells):
            yield Frame(steps[-1][0], rest, len(record.ids))


def _reaches(record: TraceRecord) -> list[int]:
    """For each step, the end of the block it belongs to: one past the last position written before the block is settled."""
    out = [0] * len(record.kind)
    reach = 0
    for at in reversed(range(len(out))):
        kind, position = record.kind[at], record.position[at]
        if kind in "sx":
            reach = position
        elif kind in "ta":
            reach = 0
            out[at] = position + 1
            continue
        else:
            reach = max(reach, position + 1)
        out[at] = reach
    return out
