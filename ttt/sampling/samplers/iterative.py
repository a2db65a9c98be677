"""Iterative refinement: predict all masked positions, keep the highest-scored share, mask the rest again, repeat.

The three samplers of a public LLaDA re-implementation (github.com/anshkumar/LLaDA).  They differ in which positions are
refined together: all at once, a canvas that grows, or windows from left to right.  ``official`` reproduces what that
program does where it looks unintended; each class says what that is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttt.errors import ConfigError
from ttt.interfaces import SpanSampler
from ttt.registry import NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveShare, Share, component
from ttt.registry.families import SAMPLER
from ttt.sampling.samplers.logits import choose_each
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import Block, Steps, drive, run_together
from ttt.types import Canvas


def num_remasked(size: int, ratio: float) -> int:
    """How many of ``size`` refined positions are masked again: floor(size * ratio), the product in float32.

    >>> num_remasked(64, 0.8), num_remasked(10, 0.7)
    (51, 7)
    """
    return int(np.float32(size) * np.float32(ratio))


@dataclass(frozen=True)
class IterativeSampler(SpanSampler):
    """A refinement predicts a set of masked positions ``num_iterations`` times.

    After each prediction but the last, the share ``remasking_ratio`` with the lowest scores is masked again and is the set
    of the next prediction; the others are final within this refinement.  ``gen_length``: most new tokens.  Tokens are
    drawn with ``temperature`` (0: greedy), then ``top_k``, then nucleus ``top_p``.  ``canvas``: see
    `ttt.sampling.samplers.blocks.BlockSampler`.
    """

    gen_length: PositiveInt = 512
    num_iterations: PositiveInt = 10
    remasking_ratio: Share = 0.8
    remask: Any = component("remask", "low_confidence")
    temperature: NonNegativeFloat = 1.0
    top_k: NonNegativeInt = 50
    top_p: PositiveShare = 0.9
    canvas: Canvas = "span"
    official: bool = False

    @property
    def fills_holes(self) -> bool:  # type: ignore[override]
        """Whole answers may be known in part."""
        return self.canvas == "answer" and not self.official

    def most_calls(self, size: int) -> int:
        """Network calls of a refinement of ``size`` positions: it ends early when nothing is masked again."""
        calls = 0
        while size and calls < self.num_iterations:
            size, calls = num_remasked(size, self.remasking_ratio), calls + 1
        return calls

    @abstractmethod
    def fill(self, request: SpanRequest, rows: list[int], total: int) -> Steps:
        """Fill rows whose answers may have ``total`` tokens, the forced end token included."""

    def span(self, request: SpanRequest) -> Iterator[Block]:
        """Fill one span per row."""
        yield from drive(self.steps(request), request.run)

    def steps(self, request: SpanRequest) -> Steps:
        """`span` as a coroutine (`ttt.sampling.samplers.steps`); rows of one length are worked on together."""
        if self.official and request.strict:
            raise ConfigError(
                "eval.sampler.official: leaves masks or padding in answers; set eval.strict=false with it"
            )
        groups: dict[tuple[int, int], list[int]] = {}
        for row in range(request.rows):  # each row with holes has its own open places, and works alone
            alone = row if request.given(row) else -1
            groups.setdefault((request.total(row, self.gen_length), alone), []).append(row)
        yield from run_together([self.fill(request, rows, total) for (total, _), rows in sorted(groups.items())])

    def blank(self, request: SpanRequest, rows: list[int], length: int, total: int) -> Tensor:
        """Mask tokens i64 [R, length]; forced end tokens stand in place ``total`` - 1."""
        canvas = torch.full((len(rows), length), request.mask_id, dtype=torch.long, device=request.device)
        if length == total:
            for i, row in enumerate(rows):
                forced = request.forced(row)
                canvas[i, -1] = request.mask_id if forced is None else forced
        return request.with_given(rows, canvas)

    def refine(self, request: SpanRequest, rows: list[int], canvas: Tensor, window: Tensor) -> Steps:
        """The canvas i64 [R, L] with the positions ``window`` bool [R, L] (equally many in each row) predicted anew."""
        index = torch.tensor(rows, device=request.device)
        gens = [request.gens[row] for row in rows]
        at = torch.stack([w.nonzero().flatten() for w in window])  # [R, m]
        ahead = canvas.shape[1] - 1 - int(at.max()) if at.numel() else 0
        for iteration in range(self.num_iterations):
            if not at.shape[1]:
                break
            (logits,) = yield [request.logits_request(index, canvas, at, canvas.shape[1], ahead=ahead)]
            logits = request.restricted(index, logits, at)
            columns = choose_each(logits, self.temperature, self.top_k, self.top_p, gens)  # [R, m]
            score = self.remask.score(logits, columns, gens).to(request.device)
            chosen = columns.to(request.device) + request.first
            canvas = canvas.scatter(1, at, chosen)
            again = torch.zeros_like(chosen, dtype=torch.bool)
            if iteration + 1 < self.num_iterations:
                lowest = score.argsort(dim=1, stable=True)[:, : num_remasked(at.shape[1], self.remasking_ratio)]
                again = again.scatter(1, lowest, True)
            self._report(request, index, at, again, chosen, score)
            at = torch.stack([a[g] for a, g in zip(at, again, strict=True)])
            canvas = canvas.scatter(1, at, request.mask_id)
        return canvas

    def _report(
        self, request: SpanRequest, rows: Tensor, at: Tensor, again: Tensor, chosen: Tensor, score: Tensor
    ) -> None:
        for listener, which in ((request.on_commit, ~again), (request.on_remask, again)):
            if listener is not None:
                for i, row in enumerate(rows.tolist()):
                    if bool(which[i].any()):
                        listener(row, at[i][which[i]], chosen[i][which[i]], score[i][which[i]].float())

    def has_end(self, request: SpanRequest, row: int, ids: Tensor) -> bool:
        """Is an end token among ``ids``?"""
        return bool(torch.isin(ids, torch.tensor(list(request.end_ids[row]), device=ids.device)).any())

    def settled(self, request: SpanRequest, row: int, ids: Tensor) -> Block:
        """What is handed out: cut after the end token, or as it is when that is the official way."""
        return Block(row, ids, self.has_end(request, row, ids)) if self.official else Block(row, *request.cut(row, ids))


@SAMPLER.register("fixed_length")
@dataclass(frozen=True)
class FixedLength(IterativeSampler):
    """All ``gen_length`` positions are refined together.

    ``official``: an end token does not cut the answer.
    """

    def fill(self, request: SpanRequest, rows: list[int], total: int) -> Steps:
        """One refinement."""
        canvas = self.blank(request, rows, total, total)
        canvas = yield from self.refine(request, rows, canvas, canvas == request.mask_id)
        for row, ids in zip(rows, canvas, strict=True):
            yield self.settled(request, row, ids)


@SAMPLER.register("semi_ar_origin")
@dataclass(frozen=True)
class SemiArOrigin(IterativeSampler):
    """A canvas of ``initial_length`` masks grows by ``length_increment`` until a refinement writes an end token.

    Each refinement predicts everything after the prompt anew, what was decided before included (it is visible in the
    first prediction).  ``official``: the last extension keeps its masks, an ``initial_length`` >= ``gen_length`` is never
    refined, one row's end token stops all rows, and nothing is cut.
    """

    initial_length: PositiveInt = 32
    length_increment: PositiveInt = 16

    def fill(self, request: SpanRequest, rows: list[int], total: int) -> Steps:
        """Refine and extend; rows that have their end drop out.  An answer with holes is one canvas from the start."""
        holes = bool(request.given(rows[0]))
        canvas = self.blank(request, rows, total if holes else min(self.initial_length, total), total)
        fixed = canvas != request.mask_id if holes else torch.zeros_like(canvas, dtype=torch.bool)
        while not (self.official and canvas.shape[1] >= total):
            # A forced end token and what is known are never predicted anew.
            window = ~fixed if holes else torch.ones_like(canvas, dtype=torch.bool)
            if canvas.shape[1] == total:
                window[:, -1] = canvas[:, -1] == request.mask_id
            canvas = yield from self.refine(request, rows, canvas, window)
            ended = [self.has_end(request, row, ids) for row, ids in zip(rows, canvas, strict=True)]
            if canvas.shape[1] >= total or (any(ended) if self.official else all(ended)):
                break
            if not self.official:
                for row, ids in ((r, c) for r, c, e in zip(rows, canvas, ended, strict=True) if e):
                    yield self.settled(request, row, ids)
                canvas = canvas[torch.tensor([not e for e in ended], device=canvas.device)]
                rows = [row for row, e in zip(rows, ended, strict=True) if not e]
            canvas = self._extend(request, rows, canvas, total)
        for row, ids in zip(rows, canvas, strict=True):
            yield self.settled(request, row, ids)

    def _extend(self, request: SpanRequest, rows: list[int], canvas: Tensor, total: int) -> Tensor:
        length = min(canvas.shape[1] + self.length_increment, total)
        return torch.cat([canvas, self.blank(request, rows, length, total)[:, canvas.shape[1] :]], 1)


@SAMPLER.register("semi_ar_padding")
@dataclass(frozen=True)
class SemiArPadding(IterativeSampler):
    """A canvas of ``gen_length`` masks, refined in windows of ``initial_length`` from left to right up to the end token.

    ``official``: one row's end token stops all rows; what follows an end token becomes padding instead of being cut off.
    """

    initial_length: PositiveInt = 32

    def __post_init__(self) -> None:
        if self.official and self.canvas != "answer":
            raise ValueError("official fills answers up with padding, which spans cannot hold; it needs canvas: answer")

    def fill(self, request: SpanRequest, rows: list[int], total: int) -> Steps:
        """One block per window."""
        canvas = self.blank(request, rows, total, total)
        for start in range(0, total, self.initial_length):
            stop = min(start + self.initial_length, total)
            window = torch.zeros_like(canvas, dtype=torch.bool)
            window[:, start:stop] = canvas[:, start:stop] == request.mask_id
            canvas = yield from self.refine(request, rows, canvas, window)
            if self.official:
                ended = [self.has_end(request, row, ids[start:stop]) for row, ids in zip(rows, canvas, strict=True)]
                if any(ended):
                    break
                continue
            blocks = [self.settled(request, row, ids[start:stop]) for row, ids in zip(rows, canvas, strict=True)]
            yield from blocks
            going = [not block.ended for block in blocks]
            rows = [row for row, goes in zip(rows, going, strict=True) if goes]
            canvas = canvas[torch.tensor(going, device=canvas.device)]
            if not rows:
                return
        if self.official:
            for row, ids in zip(rows, canvas, strict=True):
                yield self.settled(request, row, self._padded(request, row, ids))

    def _padded(self, request: SpanRequest, row: int, ids: Tensor) -> Tensor:
        assert request.pad_id is not None, "a request for a whole answer names its padding"
        ends = torch.isin(ids, torch.tensor(list(request.end_ids[row]), device=ids.device)).nonzero().flatten()
        behind = torch.arange(len(ids), device=ids.device) > (int(ends[0]) if len(ends) else len(ids))
        return ids.masked_fill(behind, request.pad_id)
