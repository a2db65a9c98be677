"""Samplers that fill audio spans, or whole answers, block by block from mask tokens (masked diffusion decoding).

They request logits and never see a model, so a table of logits is enough to test them.  `BlockSampler` does what all of
them share: blocks, guidance, restriction to allowed ids, the forced end token, cutting at the end.  A sampler adds two
methods: ``rank`` scores the candidates of a denoising step, ``commit`` chooses which of them are written.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ttt.errors import ConfigError
from ttt.interfaces import SpanSampler
from ttt.registry import NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveShare, component
from ttt.registry.families import SAMPLER
from ttt.sampling.samplers.logits import choose_audio, guide, transfer_counts
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import Block, Steps, drive, run_together
from ttt.types import Canvas, GuidanceMode, LogitsRequest

LATE = 1.0e6  # subtracted from a score (float64) so that everything else comes first


@dataclass(frozen=True)
class DenoisingStep:
    """One denoising step of a block of w places, on the L rows that still have open (masked) places.

    ``chosen`` i64 [L, w]: the candidate for each place.  ``score`` f64 [L, w]: what `BlockSampler.rank` gave, -inf where
    nothing is open.  ``open`` bool [L, w].  ``ends`` i64 [e]: all end tokens.  ``number``: steps of this block before this
    one.  ``open_at_start``: places that were open when the block began.
    """

    chosen: Tensor
    score: Tensor
    open: Tensor
    ends: Tensor
    number: int
    open_at_start: int

    @property
    def is_end(self) -> Tensor:
        """bool [L, w]: the candidate is an end token."""
        return torch.isin(self.chosen, self.ends)

    def first(self, where: Tensor) -> Tensor:
        """i64 [L, 1]: first True position of bool [L, w]; w if there is none."""
        positions = torch.arange(where.shape[1], device=where.device)
        return torch.where(where, positions, where.shape[1]).min(1, keepdim=True).values

    def guarded(self) -> Tensor:
        """Scores with end tokens ruled out (-inf) wherever something before them is still open."""
        positions = torch.arange(self.open.shape[1], device=self.open.device)
        return self.score.masked_fill(self.is_end & (positions > self.first(self.open)), -torch.inf)


def top_scored(score: Tensor, count: int) -> Tensor:
    """bool [L, w]: the ``count`` highest finite scores of each row."""
    index = score.topk(min(count, score.shape[1]), dim=1).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, index, True) & score.isfinite()


@dataclass(frozen=True)
class BlockSampler(SpanSampler):
    """Appends ``block_length`` mask tokens at a time and denoises them together, up to ``gen_length`` tokens in all.

    ``temperature``: of the candidates (0: the likeliest ids).  ``cfg_scale``: weight of classifier-free guidance, 0: off;
    ``cfg_mode``: what its unconditional pass hides (`ttt.types.GuidanceMode`).  ``drop_after_end``: once an end token is
    committed, later positions of the block are given up (strict mode only).  ``canvas``: ``span`` fills audio spans that
    text opened, ``answer`` writes the whole answer, text included, ``speech`` an answer that is one span.
    ``whole_canvas``: the mask tokens of all later blocks are visible from the start (as in LLaDA), else only the block's.
    """

    block_length: PositiveInt = 26
    gen_length: PositiveInt = 2600
    temperature: NonNegativeFloat = 0.0
    cfg_scale: NonNegativeFloat = 0.0
    cfg_mode: GuidanceMode = "mask_all"
    drop_after_end: bool = True
    canvas: Canvas = "span"
    whole_canvas: bool = False

    @property
    def fills_holes(self) -> bool:  # type: ignore[override]
        """Whole answers may be known in part; all of their canvas is then visible."""
        return self.canvas == "answer"

    def __post_init__(self) -> None:
        if self.gen_length % self.block_length:
            raise ValueError(f"gen_length {self.gen_length} must be a multiple of block_length {self.block_length}")

    @abstractmethod
    def most_calls(self, open_: int) -> int:
        """Most network calls that a block with ``open_`` open places takes."""

    @abstractmethod
    def rank(
        self, request: SpanRequest, logits: Tensor, chosen: Tensor, state: Any, gens: Sequence[Generator]
    ) -> Tensor:
        """Scores [L, p] of the candidates ``chosen`` i64 [L, p] at the p open places of each row; the highest come first.

        ``logits`` f32 [L, p, columns]; candidates are columns of it (ids less ``request.first``); ``state``: see `begin`.
        """

    @abstractmethod
    def commit(self, step: DenoisingStep) -> Tensor:
        """bool [L, w]: which open positions are written in this step."""

    def begin(self, gens: Sequence[Generator], width: int, device: Any) -> Tensor | None:
        """Numbers that are drawn once for a block, [R, w]; `rank` gets those of the open places, [L, p].  None: no such."""
        return None

    def span(self, request: SpanRequest) -> Iterator[Block]:
        """Fill one span per row, block by block; rows whose span ended drop out."""
        yield from drive(self.steps(request), request.run)

    def steps(self, request: SpanRequest) -> Steps:
        """`span` as a coroutine (`ttt.sampling.samplers.steps`)."""
        none_written = torch.empty((request.rows, 0), dtype=torch.long, device=request.device)
        yield from run_together(self._groups(request, list(range(request.rows)), none_written))

    def _groups(self, request: SpanRequest, rows: Sequence[int], done: Tensor) -> list[Steps]:
        """The next blocks of ``rows``, which have written ``done`` i64 [R, n]; rows with blocks of one shape go together."""
        groups: dict[tuple[int, bool, int, int], list[int]] = {}
        for i, row in enumerate(rows):
            left = request.total(row, self.gen_length) - done.shape[1]
            width = min(self.block_length, left)
            last = request.forced(row) is not None and width >= left
            # Each row with holes has its own open places, and works alone.
            alone, whole = (row, True) if request.given(row) else (-1, self.whole_canvas)
            groups.setdefault((width, last, left - width if whole else 0, alone), []).append(i)
        return [
            self._block(request, [rows[i] for i in members], done[members], width, last, ahead)
            for (width, last, ahead, _), members in sorted(groups.items())
        ]

    def _block(self, request: SpanRequest, rows: list[int], done: Tensor, width: int, last: bool, ahead: int) -> Steps:
        index = torch.tensor(rows, device=request.device)
        canvas = yield from self._denoise(request, index, done, width, last, ahead)
        going = []
        for i, row in enumerate(rows):
            ids, ended = request.cut(row, canvas[i])
            if not ended and done.shape[1] + len(ids) < request.total(row, self.gen_length):
                going.append(i)
            yield Block(row, ids, ended)
        return self._groups(request, [rows[i] for i in going], torch.cat([done, canvas], 1)[going])

    def _denoise(self, request: SpanRequest, rows: Tensor, before: Tensor, width: int, last: bool, ahead: int) -> Steps:
        mask_id, device = request.mask_id, request.device
        canvas = torch.full((len(rows), width), mask_id, dtype=torch.long, device=device)  # [R, w]
        future = torch.full((len(rows), ahead), mask_id, dtype=torch.long, device=device)
        for i, row in enumerate(rows.tolist()):
            forced = request.forced(row)
            if forced is not None and last:
                canvas[i, -1] = forced
            elif forced is not None and ahead:
                future[i, -1] = forced
        start = before.shape[1]
        canvas = request.with_given(rows.tolist(), canvas, start)
        future = request.with_given(rows.tolist(), future, start + width)
        alive = torch.ones_like(canvas, dtype=torch.bool)
        gens = [request.gens[row] for row in rows.tolist()]
        ends = torch.tensor(sorted({e for row in rows.tolist() for e in request.end_ids[row]}), device=device)
        positions = torch.arange(width, device=device)
        state = self.begin(gens, width, device)
        open_at_start = int((canvas[0] == mask_id).sum())  # the same in every row
        number = 0
        while True:
            open_ = (canvas == mask_id) & alive
            # Without restriction a step may spend itself on writing a mask token, so only the schedule can end the block.
            if not bool(open_.any()) or (not request.strict and number >= self.most_calls(open_at_start)):
                return canvas
            live = open_.any(1).nonzero().flatten()  # rows that are complete take no part in further calls
            tails = torch.cat([before, canvas, future], 1)
            chosen, score = yield from self._candidates(
                request, rows, tails, open_, live, before.shape[1], gens, state
            )  # [L, w]
            commit = self.commit(DenoisingStep(chosen, score, open_[live], ends, number, open_at_start)) & open_[live]
            if request.strict and not bool(commit.any(1).all()):
                raise ConfigError("eval.sampler: no candidate has a finite score, so the block would never end")
            canvas = canvas.index_copy(0, live, torch.where(commit, chosen, canvas[live]))
            request.report(rows[live], before.shape[1], commit, chosen, score)
            if request.strict and self.drop_after_end and len(ends):
                first = torch.where(torch.isin(canvas, ends), positions, width).min(1, keepdim=True).values
                alive = positions <= first
            number += 1

    def _candidates(
        self, request: SpanRequest, rows: Tensor, tails: Tensor, open_: Tensor, live: Tensor, start: int,
        gens: Sequence[Generator], state: Tensor | None,
    ) -> Steps:  # fmt: skip
        """Candidates i64 [L, w] and their scores [L, w] (-inf where nothing is open) of the block at ``start`` of ``tails``."""
        device = request.device
        counts = open_[live].sum(1)
        # Rows with equally many open places are worked on together, so that no row's draws depend on its company.
        groups = [live[counts == n] for n in counts.unique().tolist()]
        places = [open_[g].nonzero()[:, 1].view(len(g), -1) for g in groups]
        answers = yield [
            wanted
            for g, p in zip(groups, places, strict=True)
            for wanted in self._requests(request, rows[g], tails[g], p + start, start, tails.shape[1] - start - open_.shape[1])
        ]
        parts = iter(answers)
        chosen = torch.full_like(open_, request.mask_id, dtype=torch.long)
        score = torch.full(open_.shape, -torch.inf, dtype=torch.float64, device=device)
        for g, at in zip(groups, places, strict=True):
            logits = next(parts)
            if self.cfg_scale > 0:
                logits = guide(logits, next(parts), self.cfg_scale)
            logits = self._allowed(request, rows[g], logits, at + start)
            gens_of_group = [gens[i] for i in g.tolist()]
            columns = choose_audio(logits, self.temperature, gens_of_group)  # [G, p]
            drawn = None if state is None else state[g].gather(1, at)
            rank = self.rank(request, logits, columns, drawn, gens_of_group)
            chosen[g[:, None], at] = columns.to(device) + request.first
            score[g[:, None], at] = rank.to(device, torch.float64)
        return chosen[live], score[live]

    def _requests(
        self, request: SpanRequest, rows: Tensor, tails: Tensor, places: Tensor, start: int, ahead: int
    ) -> list[LogitsRequest]:
        window = tails.shape[1] - start
        requests = [request.logits_request(rows, tails, places, window, ahead=ahead)]
        if self.cfg_scale > 0:
            # With a whole canvas only the prompt is hidden (LLaDA), else everything before the block (TtT).
            hidden_before = tails.shape[1] if self.whole_canvas else window
            requests.append(request.logits_request(rows, tails, places, hidden_before, self.cfg_mode))
        return requests

    def _allowed(self, request: SpanRequest, rows: Tensor, logits: Tensor, places: Tensor) -> Tensor:
        return request.restricted(rows, logits, places)


@dataclass(frozen=True)
class RemaskSampler(BlockSampler):
    """Block samplers whose candidates rank by the score of a remasking rule (`ttt.sampling.samplers.remask`).

    ``end_guard``: an end token is committed only when nothing before it stays open.  Two switches of LLaDA's official
    sampler (generate.py): ``logits_eos_inf`` never writes the token that fills answers up; ``confidence_eos_eot_inf``
    commits it and end tokens only where no other candidate is left.
    """

    remask: Any = component("remask", "low_confidence")
    end_guard: bool = False
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False

    def rank(
        self, request: SpanRequest, logits: Tensor, chosen: Tensor, state: Any, gens: Sequence[Generator]
    ) -> Tensor:
        """The rule's score; ends later if asked."""
        score = self.remask.score(logits, chosen, gens)
        if not self.confidence_eos_eot_inf:
            return score
        late = {e for ends in request.end_ids for e in ends} | ({request.pad_id} - {None})
        is_late = torch.isin(chosen + request.first, torch.tensor(sorted(late), device=chosen.device))
        return torch.where(is_late, score.double() - LATE, score.double())

    def _allowed(self, request: SpanRequest, rows: Tensor, logits: Tensor, places: Tensor) -> Tensor:
        if self.logits_eos_inf and request.pad_id is not None:
            logits[..., request.columns((request.pad_id,), logits.shape[-1])] = -torch.inf
        return super()._allowed(request, rows, logits, places)


@SAMPLER.register("blockwise")
@dataclass(frozen=True)
class Blockwise(RemaskSampler):
    """Block-wise diffusion decoding: a fixed number of steps a block, the best-scored candidates first.

    ``diffusion_steps`` is the total for a span of ``gen_length`` tokens, so a block gets
    ``diffusion_steps // (gen_length // block_length)`` steps; both divisions must be exact.  The sampler of TtT (arXiv
    2509.20072; inference_TtT.py); with ``canvas: answer`` and ``whole_canvas`` that of LLaDA (arXiv 2502.09992).
    """

    diffusion_steps: PositiveInt = 2600

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks = self.gen_length // self.block_length
        if self.diffusion_steps < blocks or self.diffusion_steps % blocks:
            raise ValueError(
                f"diffusion_steps {self.diffusion_steps} must be a multiple of gen_length // block_length = {blocks}"
            )

    @property
    def steps_per_block(self) -> int:
        """Denoising steps of one block."""
        return self.diffusion_steps // (self.gen_length // self.block_length)

    def most_calls(self, open_: int) -> int:
        """The steps of a block; ``open_`` where that is less, or where the end guard leaves quotas unused."""
        return open_ if self.end_guard else min(self.steps_per_block, open_)

    def commit(self, step: DenoisingStep) -> Tensor:
        """The step's quota, by score."""
        counts = transfer_counts(step.open_at_start, self.steps_per_block)
        # A guarded end may leave a quota unused; strict spans go on until nothing is open.
        count = counts[step.number] if step.number < len(counts) else 1
        return top_scored(step.guarded() if self.end_guard and len(step.ends) else step.score, count)


@SAMPLER.register("first_hitting")
@dataclass(frozen=True)
class FirstHitting(BlockSampler):
    """First-hitting sampler of absorbing diffusion: one position a call, at the time it is first unmasked.

    Exact in distribution to the continuous-time reverse process inside a block (arXiv 2409.02908; used by BD3-LM, arXiv
    2503.09573): the mask rates at which n positions are unmasked are n independent uniform numbers, largest first, so the
    largest of the m that are left follows t * U^(1/m).  Reported as score.  A block with n open places takes n calls.
    Exactness needs ``temperature`` 1 and ``drop_after_end`` off, the defaults here.
    """

    temperature: NonNegativeFloat = 1.0
    drop_after_end: bool = False

    def most_calls(self, open_: int) -> int:
        """Exactly one per open place, unless positions behind an end token are dropped."""
        return open_

    def begin(self, gens: Sequence[Generator], width: int, device: Any) -> Tensor:
        """The mask rate at which each position is unmasked, U(0, 1).  f64 [R, w]"""
        return torch.stack([torch.rand(width, generator=g, dtype=torch.float64) for g in gens]).to(device)

    def rank(
        self, request: SpanRequest, logits: Tensor, chosen: Tensor, state: Any, gens: Sequence[Generator]
    ) -> Tensor:
        """The times drawn when the block began."""
        return state

    def commit(self, step: DenoisingStep) -> Tensor:
        """The next one."""
        return top_scored(step.score, 1)


@SAMPLER.register("ar")
@dataclass(frozen=True)
class Autoregressive(SpanSampler):
    """Audio token by token like text, for models trained with the ``ar`` objective; greedy or with its own sampling."""

    autoregressive: ClassVar[bool] = True
    temperature: NonNegativeFloat = 0.0
    top_k: NonNegativeInt = 0
    top_p: PositiveShare = 1.0

    def span(self, request: SpanRequest) -> Iterator[Block]:
        """Never called: the decoder writes audio itself."""
        raise RuntimeError("the ar sampler fills no spans")
