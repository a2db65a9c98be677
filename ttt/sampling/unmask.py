"""Samplers that fill audio spans.  They see a callable, never a model: a table of logits is enough to test them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from ttt.interfaces import SpanSampler
from ttt.registry import component
from ttt.registry.families import SAMPLER
from ttt.sampling.logits import choose_audio, guide, transfer_counts

CFG_MODES = ("mask_all", "mask_prompt_content")


class Predict(Protocol):
    """Logits f32 [R, last, V] of the last positions of ``tails`` i64 [R, m], for the rows ``rows`` i64 [R]."""

    def __call__(self, rows: Tensor, tails: Tensor, last: int, unconditional: str = "", /) -> Tensor:
        """``unconditional``: a guidance mode; the context is then replaced by mask tokens as that mode says."""
        ...


@dataclass(frozen=True)
class SpanRequest:
    """One span to fill in each of n rows.

    ``end_ids``: per row the tokens that end its span, in order of precedence.  ``allowed`` bool [n, V] or None: ids that
    may be written.  ``exact``: per row a fixed number of codes or None; ``limit``: per row the number of codes after which
    the end token is forced.  ``gens``: one generator per row, so that batching changes no draw.  ``strict`` False is the
    official behaviour: whole blocks, no forced end, nothing excluded but ``forbidden``.
    """

    predict: Predict
    mask_id: int
    end_ids: Sequence[Sequence[int]]
    allowed: Tensor | None
    exact: Sequence[int | None]
    limit: Sequence[int]
    gens: Sequence[Generator]
    forbidden: Sequence[int] = ()
    strict: bool = True
    device: Any = "cpu"
    on_commit: Callable[[int, Tensor, Tensor, Tensor], None] | None = None  # (row, offsets in the span, ids, scores)

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.gens)


@dataclass(frozen=True)
class Block:
    """A settled block of one row: its ids (end token included, nothing after it) and whether the span is over."""

    row: int
    ids: Tensor
    ended: bool


@SAMPLER.register("blockwise")
@dataclass(frozen=True)
class Blockwise(SpanSampler):
    """Block-wise diffusion decoding (paper of TtT; spec, sections 8.1 and 8.3).

    ``block_length`` masks are appended and denoised together; each step commits the best-scored candidates.
    ``diffusion_steps`` is the total for a span of ``gen_length`` tokens, so a block gets
    ``diffusion_steps // (gen_length // block_length)`` steps; both divisions must be exact.  ``drop_after_end``: once the
    end token is committed, later positions of the block are no longer worked on (strict mode only).  ``end_guard``: an end
    token is committed only when nothing before it in the block is open any more.
    """

    block_length: int = 26
    diffusion_steps: int = 2600
    gen_length: int = 2600
    temperature: float = 0.0
    cfg_scale: float = 0.0
    cfg_mode: str = "mask_all"
    remask: Any = component("remask", "low_confidence")
    drop_after_end: bool = True
    end_guard: bool = False

    def __post_init__(self) -> None:
        if self.block_length < 1 or self.gen_length % self.block_length:
            raise ValueError(f"gen_length {self.gen_length} must be a multiple of block_length {self.block_length}")
        blocks = self.gen_length // self.block_length
        if self.diffusion_steps < blocks or self.diffusion_steps % blocks:
            raise ValueError(
                f"diffusion_steps {self.diffusion_steps} must be a multiple of gen_length // block_length = {blocks}"
            )
        if self.cfg_scale < 0 or self.temperature < 0:
            raise ValueError("cfg_scale and temperature must be >= 0")
        if self.cfg_mode not in CFG_MODES:
            raise ValueError(f"cfg_mode must be one of {', '.join(CFG_MODES)}, got {self.cfg_mode!r}")

    @property
    def steps_per_block(self) -> int:
        """Denoising steps of one block."""
        return self.diffusion_steps // (self.gen_length // self.block_length)

    def span(self, request: SpanRequest) -> Iterator[Block]:
        """Fill one span per row, block by block; rows whose span ended drop out."""
        done = {row: torch.empty(0, dtype=torch.long, device=request.device) for row in range(request.rows)}
        while done:
            # Rows share their network calls when their blocks have one width, one number of open places and equally long histories.
            groups: dict[tuple[int, int, bool], list[int]] = {}
            for row, before in done.items():
                width = self._width(request, row, len(before))
                forced = request.strict and len(before) + width >= self._total(request, row)
                groups.setdefault((len(before), width, forced), []).append(row)
            for (_, width, _), rows in sorted(groups.items()):
                before = torch.stack([done[row] for row in rows])
                canvas = self._denoise(request, torch.tensor(rows, device=request.device), before, width)
                for row, ids in zip(rows, canvas, strict=True):
                    ids, ended = self._cut(request, row, ids)
                    done[row] = torch.cat([done[row], ids])
                    full = not request.strict and len(done[row]) >= self.gen_length
                    if ended or full:
                        del done[row]
                    yield Block(row, ids, ended)

    def _total(self, request: SpanRequest, row: int) -> int:
        codes = request.exact[row]
        return min(request.limit[row], self.gen_length if codes is None else codes) + 1

    def _width(self, request: SpanRequest, row: int, before: int) -> int:
        if not request.strict:
            return self.block_length
        return min(self.block_length, self._total(request, row) - before)

    def _cut(self, request: SpanRequest, row: int, ids: Tensor) -> tuple[Tensor, bool]:
        if request.strict:
            ends = torch.isin(ids, torch.tensor(list(request.end_ids[row]), device=ids.device)).nonzero()
            return (ids[: int(ends[0]) + 1], True) if len(ends) else (ids, False)
        for end in request.end_ids[row]:  # official: the order of the list decides, not the position
            at = (ids == end).nonzero()
            if len(at):
                return ids[: int(at[0]) + 1], True
        return ids, False

    def _denoise(self, request: SpanRequest, rows: Tensor, before: Tensor, width: int) -> Tensor:
        mask_id, device = request.mask_id, request.device
        canvas = torch.full((len(rows), width), mask_id, dtype=torch.long, device=device)  # [R, w]
        alive = torch.ones_like(canvas, dtype=torch.bool)
        allowed = None
        if request.allowed is not None:
            allowed = request.allowed[rows].clone()  # [R, V]
            for i, row in enumerate(rows.tolist()):
                if before.shape[1] + width >= self._total(request, row):
                    canvas[i, -1] = request.end_ids[row][0]
                if request.exact[row] is not None:
                    allowed[i, list(request.end_ids[row])] = False
        gens = [request.gens[row] for row in rows.tolist()]
        ends = torch.tensor(sorted({e for row in rows.tolist() for e in request.end_ids[row]}), device=device)
        positions = torch.arange(width, device=device)
        open_at_start = int((canvas == mask_id).sum(1).max())
        counts = iter(transfer_counts(open_at_start, self.steps_per_block))
        while True:
            # A guarded end may leave a step's quota unused; strict spans go on until nothing is open.
            count = next(counts, 1 if request.strict else 0)
            open_ = (canvas == mask_id) & alive
            if count == 0 or not bool(open_.any()):
                break
            live = open_.any(1).nonzero().flatten()  # rows that are complete take no part in further calls
            tails = torch.cat([before, canvas], 1)[live]
            logits = request.predict(rows[live], tails, width)  # [L, w, V]
            if self.cfg_scale > 0:
                logits = guide(logits, request.predict(rows[live], tails, width, self.cfg_mode), self.cfg_scale)
            if len(request.forbidden):
                logits[..., list(request.forbidden)] = -torch.inf
            if allowed is not None:
                logits = logits.masked_fill(~allowed[live][:, None], -torch.inf)
            some = [gens[i] for i in live.tolist()]
            chosen = choose_audio(logits, self.temperature, some)  # [L, w]
            ranked = self.remask.score(logits, chosen, some).masked_fill(~open_[live], -torch.inf)
            if self.end_guard and len(ends):
                first_open = torch.where(open_[live], positions, width).min(1, keepdim=True).values
                early = torch.isin(chosen, ends) & (positions > first_open)
                ranked = ranked.masked_fill(early, -torch.inf)
            best = ranked.topk(min(count, width), dim=1).indices
            commit = torch.zeros_like(open_)
            commit[live] = torch.zeros_like(open_[live]).scatter(1, best, True) & open_[live] & ranked.isfinite()
            canvas = canvas.index_copy(0, live, torch.where(commit[live], chosen, canvas[live]))
            score = torch.zeros(canvas.shape, device=device).index_copy(0, live, ranked.float())
            if request.on_commit is not None:
                for i, row in enumerate(rows.tolist()):
                    at = commit[i].nonzero().flatten()
                    request.on_commit(row, before.shape[1] + at, canvas[i, at], score[i, at])
            if request.strict and self.drop_after_end and len(ends):
                first = torch.where(torch.isin(canvas, ends), positions, width).min(1, keepdim=True).values
                alive = positions <= first
        return canvas


@SAMPLER.register("ar")
@dataclass(frozen=True)
class Autoregressive(SpanSampler):
    """Audio token by token like text, for models trained with the ``ar`` objective; greedy or with its own sampling."""

    autoregressive: ClassVar[bool] = True
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def span(self, request: SpanRequest) -> Iterator[Block]:
        """Never called: the interleaving loop writes audio itself."""
        raise RuntimeError("the ar sampler fills no spans")
