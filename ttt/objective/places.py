"""Positions inside audio spans of a batch: the place of every code, what a constraint allows there, which spans are complete."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.errors import DataError
from ttt.interfaces import Constraint
from ttt.types import CodeSpace, Columns, Kind, PackedBatch


def span_places(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """(place in its audio run, length of that run) of every position, i64 [B, T] each; -1 for text and padding.

    Computed from positions in the document, so that a copy (dual stream) has the place of its original.
    """
    audio, run, size = _runs(batch)
    at = batch.position[audio].long()
    first = at.new_full((size,), int(batch.position.max()) + 1).scatter_reduce(0, run, at, "amin")
    last = at.new_full((size,), -1).scatter_reduce(0, run, at, "amax")
    place, length = (torch.full(batch.doc.shape, -1, dtype=torch.long) for _ in range(2))
    place[audio] = at - first[run]
    length[audio] = last[run] - first[run] + 1
    return place, length


def _runs(batch: PackedBatch) -> tuple[Tensor, Tensor, int]:
    """(bool [B, T]: audio, number of the run of each of them i64 [n], how many numbers there are)."""
    audio = (batch.kind == Kind.AUDIO) & (batch.doc >= 0)
    runs = int(batch.run_id.max()) + 1
    return audio, (batch.doc * runs + batch.run_id)[audio].long(), batch.n_docs * runs


def space_of(batch: PackedBatch, who: str) -> CodeSpace:
    """The batch's `CodeSpace`.  Raises `DataError` where a batch was made without one."""
    if batch.space is None:
        raise DataError(f"{who} needs to know which ids are codes: give collate(..., space=vocab.code_space)")
    return batch.space


def inside(ids: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """bool [*]: ids that lie in any of the ranges [start, stop)."""
    member = torch.zeros_like(ids, dtype=torch.bool)
    for start, stop in ranges:
        member |= (ids >= start) & (ids < stop)
    return member


def whole_spans(batch: PackedBatch, first_only: bool = False, with_ends: bool = False) -> Tensor:
    """Codes of the answers' spans that have an end token, or end with their document; ``with_ends``: the end tokens too.

    bool [B, T].  ``first_only``: of the first span of each document alone, and of none of the document if that has no end, as
    LLaDA-TTS looks for the first start and the first end token of a row.
    """
    space = space_of(batch, "objective.noised")
    is_end = torch.isin(batch.ids, torch.tensor(space.ends, dtype=torch.long)) & batch.visible
    same = batch.doc[:, 1:] == batch.doc[:, :-1]
    closed = is_end.clone()
    closed[:, :-1] |= is_end[:, 1:] & same
    if not first_only:  # the loader may have cut a long document between frames
        closed[:, -1] |= batch.visible[:, -1]
        closed[:, :-1] |= ~same & batch.visible[:, :-1]
    audio, run, size = _runs(batch)
    good = torch.zeros(size, dtype=torch.long).scatter_reduce(0, run, closed[audio].long(), "amax").bool()
    answer_runs = torch.zeros(size, dtype=torch.long).scatter_reduce(
        0, run, batch.noisable[audio].long(), "amin", include_self=False
    )
    answer_runs = answer_runs.bool()
    if first_only:
        number = torch.arange(size)
        owner = number // (size // batch.n_docs)
        low = torch.full((batch.n_docs,), size).scatter_reduce(0, owner[answer_runs], number[answer_runs], "amin")
        answer_runs &= number == low[owner]
    spans = torch.zeros_like(audio)
    spans[audio] = (good & answer_runs)[run]
    codes = spans & inside(batch.ids, space.codebooks) & batch.visible
    if with_ends:
        # End tokens directly after a span, or after another end token (spans padded with theirs).
        last = spans.clone()
        for _ in range(batch.ids.shape[1]):
            more = last.clone()
            more[:, 1:] |= last[:, :-1] & is_end[:, 1:] & same
            if torch.equal(more, last):
                break
            last = more
        codes |= last & is_end
    return codes


@dataclass(frozen=True)
class ConstrainedTargets:
    """Targets under a constraint.  ``keep`` bool [n]: allowed at their position; ``placed`` bool [n]: inside a span (codes and
    end tokens); ``number`` i64 [n]: range of codes, else -1; ``columns``: of the kept targets."""

    keep: Tensor
    placed: Tensor
    number: Tensor
    columns: Columns


def constrained(batch: PackedBatch, constraint: Constraint, at: Tensor, with_ends: bool) -> ConstrainedTargets | None:
    """The targets at flat positions ``at`` i64 [n] under a constraint; None: it restricts nothing.

    The softmax of text runs over all ids.  ``with_ends``: end tokens are learned too, so they are in the softmax wherever they
    may be written: where a span may end, and after an end (spans padded with their end token).
    """
    if not constraint.restricts:
        return None
    space = space_of(batch, "objective.constraint")
    ranges = constraint.ranges(space.codebooks)
    where = span_places(batch)[0]
    is_end = torch.isin(batch.ids, torch.tensor(space.ends, dtype=torch.long))
    # End tokens that are text (LLaDA-TTS) still get the places after the last code.
    follows = is_end[:, 1:] & (batch.doc[:, 1:] == batch.doc[:, :-1])
    while bool((next_end := follows & (where[:, 1:] < 0) & (where[:, :-1] >= 0)).any()):
        where[:, 1:] = torch.where(next_end, where[:, :-1] + 1, where[:, 1:])
    place = where.flatten()[at]
    ids = batch.ids.flatten()[at]
    audio = place >= 0
    number = constraint.range_at(place.clamp(min=0), space.codebooks)
    after = torch.zeros_like(is_end)
    after[:, 1:] = is_end[:, :-1] & (batch.doc[:, 1:] == batch.doc[:, :-1])
    may_end = constraint.may_end(place.clamp(min=0), space.codebooks) | after.flatten()[at]
    may_end &= torch.tensor(with_ends)
    keep = ~audio | (is_end.flatten()[at] & may_end)
    for n, (start, stop) in enumerate(ranges):
        keep |= (number == n) & (ids >= start) & (ids < stop)
    ends = tuple((e, e + 1) for e in space.ends)
    sets = tuple(s for r in ranges for s in ((r,), (r, *ends)))
    index = torch.where(audio, 2 * number + may_end.long(), -1)
    return ConstrainedTargets(keep, audio, torch.where(audio & ~is_end.flatten()[at], number, -1), Columns(index[keep], sets))
