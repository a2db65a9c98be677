"""A trace as pictures: after every network call, what stands where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ttt.sampling.trace.record import TraceRecord

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

    Positions that a sampler fills later in the same block are masks from the block's first call on.  (A trace knows what
    was predicted, so masks that nobody predicted, and the masks of later blocks, are not shown.)
    """
    cells: dict[int, Cell] = {}
    fresh: set[int] = set()  # positions that look otherwise a call later
    final = 0
    steps = list(zip(record.call, record.kind, record.position, record.token, record.confidence, strict=True))
    canvases = _canvases(record)
    at = 0
    while at < len(steps):
        call = steps[at][0]
        for p in fresh & cells.keys():
            cells[p] = _later(cells[p])
        fresh = set()
        if at and steps[at - 1][1] == "x":
            cells = {p: c for p, c in cells.items() if p < final}
        width = 0
        given: dict[int, int] = {}
        while at < len(steps) and steps[at][0] == call:
            _, kind, position, token, confidence = steps[at]
            if kind in "sx":
                # What is dropped stays in the picture of the call that wrote it, unless something is written over it.
                if kind == "x" and at + 1 < len(steps) and steps[at + 1][0] == call:
                    cells = {p: c for p, c in cells.items() if p < position}
                    width, given = 0, {}
                final = position
            else:
                state = {"t": "text", "a": "audio", "c": "committed", "r": "remasked", "g": "given"}[kind]
                stood = kind == "g" and cells.get(position, MASK).state == "given"
                cells[position] = Cell(state, token, confidence, new=not stood)
                fresh.add(position)
                width, given = max(width, canvases[at][0]), {**given, **canvases[at][1]}
                if kind in "ta":
                    final = position + 1
            at += 1
        size = max([width, *(p + 1 for p in cells)])
        for p in range(size):
            if p not in cells:
                cells[p] = Cell("given", given[p], new=True) if p in given else MASK
                fresh.add(p)
        yield Frame(call, tuple(cells[p] for p in range(size)), final)
    if steps:
        rest = tuple(_later(c) for p, c in sorted(cells.items()) if p < len(record.ids))
        if len(rest) != len(cells):
            yield Frame(steps[-1][0], rest, len(record.ids))


def _later(cell: Cell) -> Cell:
    """What a cell is a call later: not new any more, or a mask again."""
    return MASK if cell.state in ("mask", "remasked") else Cell(cell.state, cell.token, cell.confidence)


def _canvases(record: TraceRecord) -> list[tuple[int, dict[int, int]]]:
    """For each step: one past the last position on the canvas then, and what stood there from the block's start (forced ends).

    A sampler that masks again has predicted all of its canvas, so its canvas is what it has touched; else a block's is
    all that is written before the block is settled.
    """
    out: list[tuple[int, dict[int, int]]] = [(0, {})] * len(record.kind)
    start = 0
    for at, kind in enumerate(record.kind):
        if kind in "ta":
            out[at], start = (record.position[at] + 1, {}), at + 1
        elif kind in "sx" or at + 1 == len(out):
            block = range(start, at + 1)
            ends = [record.position[i] + (record.kind[i] not in "sx") for i in block]
            predicted = {record.position[i] for i in block if record.kind[i] in "cr"}
            given = {
                record.position[i]: record.token[i]
                for i in block
                if record.kind[i] == "g" and record.position[i] not in predicted
            }
            grows = any(record.kind[i] == "r" for i in block)
            reach = 0 if grows else max(ends)
            for i, end in zip(block, ends, strict=True):
                reach = max(reach, end)
                out[i] = (reach, given)
            start = at + 1
    return out
