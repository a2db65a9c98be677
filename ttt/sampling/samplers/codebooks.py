"""Samplers for codecs with several codebooks: the first from left to right, the others by stages or masked diffusion.

Each row is filled by a generator of its own (`ttt.sampling.samplers.steps`); what several rows request at the same time is
one network call.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from ttt.errors import ConfigError
from ttt.interfaces import SpanSampler
from ttt.registry import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, PositiveShare
from ttt.registry.families import SAMPLER
from ttt.sampling.samplers.logits import choose_each, guide, sampling_probabilities
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import Block, Steps, drive, run_together
from ttt.types import CallKind, LogitsRequest


@dataclass(frozen=True)
class _FrameSampler(SpanSampler):
    """What both samplers share: the first codebook, code by code (VALL-E, arXiv 2301.02111), limits, chunks.

    ``max_frames`` is the most that is ever written.  With ``chunk_frames`` n, the upper codebooks of n frames are filled as
    soon as their first codebook is there, which lets sound stream.  This is an approximation: the NAR decoder was trained
    on whole targets.
    """

    canvas = "answer"  # no field: nothing to choose
    arch = "valle"

    temperature: NonNegativeFloat = 1.0  # first codebook; 0: greedy
    top_k: NonNegativeInt = 0  # first codebook; 0: off
    top_p: PositiveShare = 1.0  # first codebook; 1: off
    min_frames: NonNegativeInt = 0  # no end before so many frames
    max_frames: PositiveInt = 500  # frames after which decoding stops (bounded by eval.max_tokens too)
    stop_on_argmax: bool = True  # end when the end is the likeliest, whatever was drawn
    repetition_window: NonNegativeInt = 0  # frames looked back on; 0: off
    repetition_share: PositiveShare = 0.1  # a code that fills more of the window is drawn again from all codes (VALL-E 2)
    voice_scale: NonNegativeFloat = 0.0  # guidance by the prompt's voice_vector; 0: off (needs model.arch.voice_dim)
    chunk_frames: NonNegativeInt = 0  # 0: the upper codebooks when all frames are there (exact)

    def __post_init__(self) -> None:
        if self.min_frames > self.max_frames:
            raise ValueError(f"need min_frames <= max_frames, got {self.min_frames} and {self.max_frames}")

    def span(self, request: SpanRequest) -> Iterator[Block]:
        """See `SpanSampler`."""
        yield from drive(self.steps(request), request.run)

    def steps(self, request: SpanRequest) -> Steps:
        """All rows at once."""
        yield from run_together([self.row(request, r) for r in range(request.rows)])

    def row(self, request: SpanRequest, row: int) -> Steps:
        """One row: the first codebook frame by frame, the others behind it."""
        q, gen = request.codebooks, request.gens[row]
        frames = torch.full((0, q), request.mask_id, dtype=torch.long)
        settled, ended = 0, False
        past: list[int] = []
        most, exact = self._limits(request, row)
        while not ended and len(frames) < most:
            tail = torch.cat([frames.flatten(), torch.tensor([request.mask_id])])
            answers = yield self._asked(request, row, tail, torch.tensor([len(tail) - 1]), "ar")
            at = torch.tensor([[len(tail) - 1]])
            logits = request.restricted(torch.tensor([row]), self._logits(answers), at)[0, 0].cpu()
            ends = request.columns(request.end_ids[row], len(logits))
            if len(frames) < self.min_frames or exact:
                logits[ends] = -torch.inf
            code = self._choose(logits, past, ends, gen)
            if code in ends:
                ended = True
                break
            past.append(code)
            self._report_code(request, row, len(frames) * q, code, logits)
            new = torch.full((1, q), request.mask_id, dtype=torch.long)
            new[0, 0] = code + request.first
            frames = torch.cat([frames, new])
            if self.chunk_frames and len(frames) - settled >= self.chunk_frames and len(frames) < most:
                frames = yield from self.upper(request, row, frames, settled)
                yield Block(row, frames[settled:].flatten(), False)
                settled = len(frames)
        frames = yield from self.upper(request, row, frames, settled)
        ids = frames[settled:].flatten()
        if ended or request.force_end:
            ids, ended = torch.cat([ids, torch.tensor([request.end_ids[row][0]])]), True
        if len(ids):
            yield Block(row, ids, ended)

    def upper(self, request: SpanRequest, row: int, frames: Tensor, settled: int) -> Steps:
        """Fill the upper codebooks of the frames from ``settled`` on; returns the frames [T, Q]."""
        raise NotImplementedError
        yield

    def _asked(
        self, request: SpanRequest, row: int, tail: Tensor, places: Tensor, kind: CallKind = "diffusion",
        settled_as_prompt: bool = False,
    ) -> list[LogitsRequest]:  # fmt: skip
        """Logits of one row at ``places`` i64 [p] of its tail i64 [m]; with guidance, also those without its voice."""
        asked = request.logits_request(
            torch.tensor([row]), tail[None], places[None], len(tail) - int(places[0]), "", kind, settled_as_prompt
        )
        return [asked, dataclasses.replace(asked, guidance="no_voice")] if self.voice_scale else [asked]

    def _logits(self, answers: Sequence[Tensor]) -> Tensor:
        """The logits [1, p, ids] to choose from, of the answers to `_asked`."""
        if not self.voice_scale:
            return answers[0]
        told, untold = answers
        return torch.where(told.isinf(), told, guide(told, untold, self.voice_scale))

    def _limits(self, request: SpanRequest, row: int) -> tuple[int, bool]:
        """Most frames, and whether there must be as many."""
        exact = request.exact[row]
        limit = request.limit[row] if exact is None else exact
        return max(1, min(limit // request.codebooks, limit if exact is not None else self.max_frames)), exact is not None

    def _choose(self, logits: Tensor, past: list[int], ends: list[int], gen: Generator) -> int:
        """A column: drawn, or the end, or drawn again where it repeats too much."""
        likeliest = int(logits.argmax())
        if self.temperature == 0 or (self.stop_on_argmax and likeliest in ends):
            return likeliest
        probs = sampling_probabilities(logits, self.temperature, self.top_k, self.top_p)
        drawn = int(torch.multinomial(probs, 1, generator=gen))
        window = past[-self.repetition_window :] if self.repetition_window else []
        if window and window.count(drawn) > self.repetition_share * self.repetition_window:
            drawn = int(torch.multinomial((logits / self.temperature).softmax(-1), 1, generator=gen))
        return drawn

    def _report_code(self, request: SpanRequest, row: int, at: int, column: int, logits: Tensor) -> None:
        if request.on_commit is not None:
            score = logits.softmax(-1)[column : column + 1].float()
            request.on_commit(row, torch.tensor([at]), torch.tensor([column + request.first]), score)


@SAMPLER.register("valle")
@dataclass(frozen=True)
class ValleSampler(_FrameSampler):
    """VALL-E's decoding: the first codebook token by token, then one pass for each further codebook."""

    nar_temperature: NonNegativeFloat = 0.0  # upper codebooks; 0: the likeliest code
    chunk_prefix: bool = False  # frames of earlier chunks join the prompt (for networks trained with nar_prefix: first)

    def upper(self, request: SpanRequest, row: int, frames: Tensor, settled: int) -> Steps:
        """One call a codebook."""
        q, t = request.codebooks, len(frames)
        if t == settled:
            return frames
        for codebook in range(1, q):
            places = torch.arange(settled, t) * q + codebook
            answers = yield self._asked(request, row, frames.flatten(), places, settled_as_prompt=self.chunk_prefix)
            logits = request.restricted(torch.tensor([row]), self._logits(answers), places[None])
            chosen = choose_each(logits, self.nar_temperature, 0, 1.0, [request.gens[row]]).cpu()
            _report(request, row, places, chosen[0], logits[0].cpu())
            frames = frames.clone()
            frames[settled:, codebook] = chosen[0] + request.first
        return frames


@SAMPLER.register("valle_masked")
@dataclass(frozen=True)
class ValleMaskedSampler(_FrameSampler):
    """Coarse-to-fine confidence decoding of masked codebooks: MaskGIT's (arXiv 2202.04200), over frames and codebooks.

    All masked codes compete in every step.  A code's confidence is multiplied by the weight of its codebook, so that coarse
    codebooks are written first.  With model.arch.nar=masked the first codebook is written before, from left to right.  With
    masked_all it is masked too; the answer then has ``max_frames`` frames (or what is left of eval.max_tokens), or those
    of a prompt's ``known`` (in-filling).
    """

    steps_total: PositiveInt = 16  # calls for the masked codebooks
    codebook_weights: list[PositiveFloat] = field(default_factory=list)  # of confidence, by codebook; empty: 2 ** -codebook
    masked_temperature: NonNegativeFloat = 0.0  # of the codes; 0: the likeliest
    noise: NonNegativeFloat = 0.0  # Gumbel noise on the log-confidence, falling to 0 with the steps
    renamed_fields: ClassVar = {"first_book": "first_codebook", "book_weights": "codebook_weights"}

    first_codebook: Literal["ar", "masked"] = "ar"  # ar (nar=masked) | masked (nar=masked_all)

    @property
    def fills_holes(self) -> bool:  # type: ignore[override]
        """Does it keep what a prompt knows of its answer (`Prompt.known`)?"""
        return self.first_codebook == "masked"

    def row(self, request: SpanRequest, row: int) -> Steps:
        """With ``first_codebook`` masked, one canvas of frames; else as every sampler of frames."""
        if self.first_codebook == "ar":
            yield from super().row(request, row)
            return
        given = request.known[row] if request.known else ()
        if len(given):
            canvas = torch.tensor(list(given), dtype=torch.long).view(-1, request.codebooks)
        else:
            most, _ = self._limits(request, row)
            canvas = torch.full((most, request.codebooks), request.mask_id, dtype=torch.long)
        frames = yield from self.upper(request, row, canvas, 0)
        yield Block(row, torch.cat([frames.flatten(), torch.tensor([request.end_ids[row][0]])]), True)

    def upper(self, request: SpanRequest, row: int, frames: Tensor, settled: int) -> Steps:
        """Unmask everything that is masked, some of it in each step."""
        q = request.codebooks
        weights = torch.tensor(self.codebook_weights or [2.0**-b for b in range(q)])
        if len(weights) != q:
            raise ConfigError(f"eval.sampler.codebook_weights: {len(weights)} weights for {q} codebooks; give one each")
        flat = frames.flatten().clone()
        flat_settled = torch.arange(len(flat)) < settled * q
        total = int(((flat == request.mask_id) & ~flat_settled).sum())
        gen = request.gens[row]
        for step in range(self.steps_total):
            places = ((flat == request.mask_id) & ~flat_settled).nonzero().flatten()
            if not len(places):
                break
            answers = yield self._asked(request, row, flat.clone(), places)
            logits = request.restricted(torch.tensor([row]), self._logits(answers), places[None])
            logits[..., request.columns(request.end_ids[row], logits.shape[-1])] = -torch.inf
            chosen = choose_each(logits, self.masked_temperature, 0, 1.0, [gen])[0].cpu()
            own = logits[0].cpu().log_softmax(-1).gather(1, chosen[:, None])[:, 0]
            score = own + weights[places % q].log()
            if self.noise:
                uniform = torch.rand(len(places), generator=gen).clamp(min=1e-20)
                score = score - self.noise * (1 - (step + 1) / self.steps_total) * (-uniform.log()).log()
            # The cosine schedule: how many stay masked after this step.
            left = int(total * math.cos(math.pi / 2 * (step + 1) / self.steps_total))
            count = max(1, len(places) - left) if step + 1 < self.steps_total else len(places)
            kept = score.topk(count).indices.sort().values
            flat[places[kept]] = chosen[kept] + request.first
            _report(request, row, places[kept], chosen[kept], logits[0].cpu()[kept])
        return flat.view(-1, q)


def _report(request: SpanRequest, row: int, places: Tensor, chosen: Tensor, logits: Tensor) -> None:
    if request.on_commit is not None:
        score = logits.softmax(-1).gather(1, chosen[:, None])[:, 0].float()
        request.on_commit(row, places, chosen + request.first, score)
