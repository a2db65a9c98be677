"""Losses of the architecture ``valle``: next code of the first codebook, and the other codebooks by stages or by masked diffusion.

Batches stay flat ids, as for every model; here they become frames (`ttt.data.batches.codec_frames`).  Sums are over
predictions, counts over target frames: the logged loss is nats per target frame (VALL-E, arXiv 2301.02111).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from ttt.data.batches.codec_frames import Frames, frames_of, resplit, with_stretch
from ttt.data.batches.prompt_cut import Cut
from ttt.diffusion.corrupt import Times, draw_times
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Objective
from ttt.model.valle.targets import EosRule
from ttt.registry import NonNegativeFloat, PositiveInt, ShareBelow1, component, components, nested
from ttt.registry.families import OBJECTIVE
from ttt.types import LossTerm, LossTerms, PackedBatch, Plan, PlanTerm, Voices


@dataclass(frozen=True)
class FramePlan(Plan):
    """A plan over frames: which of them, the codebooks of the NAR passes, or the masked codes bool [D, T, Q], weights f32 [D, Q].

    ``nar_frames``: the same recordings as the NAR decoder gets them (None: as the AR decoder), of whose target frames it learns
    ``learned`` bool [D, T] (None: all).  The terms' sources are the flat positions of the codes that are predicted.
    ``told`` bool [D]: the network is told who speaks (None: in all).
    """

    frames: Frames = None  # type: ignore[assignment]
    nar_frames: Frames | None = None
    learned: Tensor | None = None
    stages: Sequence[int] = ()
    hidden: Tensor | None = None
    weight: Tensor | None = None
    told: Tensor | None = None


@dataclass(frozen=True)
class _Frames(Objective):
    """What both objectives of ``valle`` share: prompts, the AR decoder's loss, statistics."""

    canvas = "answer"  # no field: the sampler writes everything after the prompt
    arch = "valle"

    mask: Any = component("mask", "prefix")  # of the AR decoder: prefix, or causal
    strategies: Any = components("strategy", ())
    stage: Literal[0, 1, 2] = 0  # 0: both decoders; 1: the AR decoder; 2: the NAR decoder
    eos: EosRule = "first"  # first | padding (the end is learned at every padded frame too, as in the fork)
    first_code: bool = True  # without a beginning token: the last prompt frame learns the first code (the fork: false)
    cut: Cut = nested(Cut)  # where recordings are cut
    voice_drop: ShareBelow1 = 0.0  # share of documents whose voice_vector is withheld, for guidance by voice (arch.voice_dim)

    def frames(self, batch: PackedBatch, gen: Generator) -> Frames:
        """The batch as frames, with a new cut if ``cut`` says so."""
        frames = frames_of(batch)
        if self.cut.mode == "stored" or not len(frames.doc):
            return frames
        draws = torch.rand(len(frames.doc), generator=gen).tolist()
        lengths = (frames.prompt_lens + frames.target_lens).tolist()
        cut = self.cut.at_rate(batch.space.frame_rate_hz if batch.space else 0.0)
        return resplit(frames, torch.tensor(cut.prompts(lengths, draws)))

    def withheld(self, plan: FramePlan, gen: Generator) -> FramePlan:
        """The plan of an update: of some documents the network is not told who speaks (arXiv 2207.12598, algorithm 1)."""
        if not self.voice_drop:
            return plan
        return dataclasses.replace(plan, told=torch.rand(len(plan.frames.doc), generator=gen) >= self.voice_drop)

    def make(self, batch: PackedBatch, frames: Frames, terms: Mapping[str, PlanTerm], **more: Any) -> FramePlan:
        """The plan of ``terms``; terms are halved where there are two."""
        scale = 1 / len(terms) if terms else 1.0
        halved = {name: dataclasses.replace(term, scale=scale) for name, term in terms.items()}
        return FramePlan(batch.ids, batch.position, batch.layout(), self.mask, halved, frames=frames, **more)

    def terms(self, model: nn.Module, plan: Plan) -> LossTerms:
        """One pass of each decoder that is asked for."""
        assert isinstance(plan, FramePlan)
        from ttt.model.valle.network import FrameInputs, Scores

        f = plan.frames
        if not len(f.doc):
            # Of no parameter: a gradient of 0 would be an update, weight decay included.
            nothing = torch.zeros((), device=next(model.parameters()).device)
            return LossTerms({n: LossTerm(nothing, t.count, t.scale) for n, t in plan.terms.items()})
        network: Any = model
        self.check_network(network.arch)
        device = next(model.parameters()).device
        voices = _voices(f, network.arch.voice_dim, plan.told)
        told = None if voices is None else voices.to(device)
        hidden = None if plan.hidden is None else plan.hidden.to(device)

        def scored(f: Frames, ar: bool, stages: Sequence[int]) -> dict[str, Scores]:
            return model(FrameInputs(
                f.prompt.to(device), f.prompt_lens.to(device), f.target.to(device), f.target_lens.to(device), self.mask,
                ar, self.eos, self.first_code, stages, hidden, f.stretch, f.words.to(device) if network.arch.text else None,
                told,
            ))  # fmt: skip

        if plan.nar_frames is None:
            scores = scored(f, "ar" in plan.terms, plan.stages)
        else:
            scores = scored(f, True, ()) if "ar" in plan.terms else {}
            (found,) = scored(plan.nar_frames, False, plan.stages).values()
            if plan.learned is not None:
                kept = plan.learned[_own(plan.nar_frames)].to(device)
                found = Scores(*(getattr(found, name)[kept] for name in Scores.__dataclass_fields__))
            scores["nar"] = found
        terms: dict[str, LossTerm] = {}
        stats: dict[str, tuple[float, float]] = {}
        for name, found in scores.items():
            term = plan.terms[name]
            nll = found.nll
            if name == "nar" and plan.weight is not None:
                nll = nll * plan.weight.to(device)[found.row, found.codebook]
            terms[name] = LossTerm(nll.sum(), term.count, term.scale)
            stats.update(_statistics(name, found))
        return LossTerms(terms, stats)

    def check_network(self, arch: Any) -> None:
        """Raise `ConfigError` when the network has another form than this objective trains."""


def _voices(frames: Frames, size: int, told: Tensor | None) -> Voices | None:
    """Who speaks, for a network that reads vectors of ``size`` numbers (0: it reads none)."""
    if not size:
        return None
    if frames.voices is None or frames.voices.shape[1] != size:
        raise DataError(
            f"a batch whose examples have not all a voice_vector of {size} numbers, which model.arch.voice_dim={size} reads; "
            "add them, or set model.arch.voice_dim"
        )
    return Voices(frames.voices, torch.ones(len(frames.doc), dtype=torch.bool) if told is None else told)


def _statistics(name: str, found: Any) -> dict[str, tuple[float, float]]:
    """Mean -log p of the term and of each codebook's codes, hits among the ten likeliest, perplexity of each codebook."""
    nll, hit, codebook, end = (getattr(found, key).detach().cpu() for key in ("nll", "hit", "codebook", "end"))
    stats = {f"nll/{name}": (float(nll.sum()), float(len(nll)))}
    if end.any():
        stats[f"nll/{name}/end"] = (float(nll[end].sum()), float(end.sum()))
    codes = ~end
    stats[f"top10/{name}"] = (float(hit[codes].sum()), float(codes.sum()))
    for q in torch.unique(codebook[codes]).tolist():
        mine = codes & (codebook == q)
        total, count = float(nll[mine].sum()), float(mine.sum())
        stats[f"nll/{name}/book{q}"] = stats[f"ppl/book{q}"] = (total, count)
        stats[f"top10/{name}/book{q}"] = (float(hit[mine].sum()), count)
    return stats


def _term(frames: Frames, chosen: Tensor, count: float) -> PlanTerm:
    """Positions and codes of ``chosen`` bool [D, T, Q]."""
    row, at, codebook = chosen.nonzero(as_tuple=True)
    return PlanTerm(frames.target_at[row, at] + codebook, frames.target[row, at, codebook], torch.ones(len(row)), count)


def _own(frames: Frames) -> Tensor:
    """bool [D, T]: real target frames."""
    return torch.arange(frames.target.shape[1]) < frames.target_lens[:, None]


@OBJECTIVE.register("valle")
@dataclass(frozen=True)
class Valle(_Frames):
    """VALL-E's loss on continuations: (AR + NAR) / 2 (arXiv 2301.02111).

    Every update draws one codebook for the NAR decoder, the same for the whole micro-batch, from (seed, update, micro-batch).
    Validation sees all codebooks, and no prefixes.

    ``nar_prefix``: VALL-E's prefix modes.  The NAR decoder's prompt gets, with all codebooks, ``first`` (mode 1):
    the first frames of
    the target, a quarter to a half of the shortest, which are then no target: what decoding in chunks asks for (the samplers'
    ``chunk_prefix``); ``stretch`` (mode 2): a copy of a quarter from anywhere in the target, whose frames are not learned.
    """

    nar_prefix: Literal["none", "first", "stretch"] = "none"  # none | first | stretch
    nar_prefix_frames: PositiveInt = 150  # the longest prefix; VALL-E: 3 s

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Cut, draw a codebook, build both terms."""
        frames = self.frames(batch, gen)
        codebooks = frames.target.shape[2]
        drawn = int(torch.randint(1, codebooks, (1,), generator=gen)) if codebooks > 1 else 0
        plan = self._plan(batch, frames, [drawn] if drawn else [], *self._prefixed(frames, gen))
        return self.withheld(plan, gen)

    def clean_plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """All codebooks."""
        frames = self.frames(batch, gen)
        return self._plan(batch, frames, list(range(1, frames.target.shape[2])))

    def _prefixed(self, frames: Frames, gen: Generator) -> tuple[Frames | None, Tensor | None]:
        """Input and targets of the NAR decoder (`FramePlan`)."""
        quarter = int(frames.target_lens.min()) // 4 if len(frames.doc) else 0
        if self.nar_prefix == "none" or not quarter:
            return None, None
        if self.nar_prefix == "first":
            length = quarter + int(torch.randint(quarter, (1,), generator=gen))
            return resplit(frames, frames.prompt_lens + min(length, self.nar_prefix_frames)), None
        length = min(quarter, self.nar_prefix_frames)
        places = frames.target_lens - length + 1  # where it may begin
        starts = (torch.rand(len(places), generator=gen) * places).long()
        at = torch.arange(frames.target.shape[1])
        inside = (at >= starts[:, None]) & (at < starts[:, None] + length)
        return with_stretch(frames, starts, length), _own(frames) & ~inside

    def _plan(
        self, batch: PackedBatch, frames: Frames, stages: Sequence[int], nar_frames: Frames | None = None,
        learned: Tensor | None = None,
    ) -> FramePlan:  # fmt: skip
        terms: dict[str, PlanTerm] = {}
        if self.stage != 2 or not stages:
            first = torch.zeros_like(frames.target, dtype=torch.bool)
            first[..., 0] = _own(frames)
            terms["ar"] = _term(frames, first, float(frames.count))
        stages = [] if self.stage == 1 else stages
        if stages:
            seen = nar_frames or frames
            own = _own(seen) if learned is None else learned
            chosen = torch.zeros_like(seen.target, dtype=torch.bool)
            chosen[..., list(stages)] = own[..., None]
            terms["nar"] = _term(seen, chosen, float(own.sum()) * len(stages))
            return self.make(batch, frames, terms, stages=tuple(stages), nar_frames=nar_frames, learned=learned)
        return self.make(batch, frames, terms)

    def check_network(self, arch: Any) -> None:
        """The NAR decoder must work codebook by codebook."""
        if arch.nar != "stages" and self.stage != 1:
            raise ConfigError(
                f"objective: 'valle' trains model.arch.nar=stages, the model has {arch.nar!r}; use the objective valle_masked"
            )


@OBJECTIVE.register("valle_masked")
@dataclass(frozen=True)
class ValleMasked(_Frames):
    """Masked diffusion over the codebooks of a frame, all at once (SoundStorm's form, arXiv 2305.09636, without its stages).

    ``codebooks``: ``upper`` leaves the first codebook to the AR decoder; ``all`` masks every codebook, and there is
    no AR decoder (its
    answers have a length that is given).  One time per recording and codebook: codebooks are masked by different
    shares, so that the
    model meets the states of coarse-to-fine decoding.

    Validation and forced accuracies ask what is asked of a NAR decoder that works by stages: for each codebook, all its codes with
    the codebooks below known and the codebooks above masked, without weights.  So their numbers may be compared.
    """

    renamed_fields: ClassVar = {
        "floor": "min_mask_prob", "books": "codebooks", "book_weights": "codebook_weights",
    }  # fmt: skip

    codebooks: Literal["upper", "all"] = "upper"  # upper | all
    noise: Any = component("noise", "cosine")
    weighting: Any = component("weighting", "uniform")
    codebook_weights: list[NonNegativeFloat] = field(default_factory=list)  # of the loss, by codebook; empty: all 1
    times: Times = "stratified"  # how times are drawn (`ttt.diffusion.corrupt.draw_times`)
    min_mask_prob: ShareBelow1 = 1.0e-3  # smallest masking probability

    def __post_init__(self) -> None:
        if self.codebooks == "all" and self.stage == 1:
            raise ValueError("stage 1 trains the AR decoder, which codebooks=all has none of")

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Cut, draw the masks, build the terms."""
        frames = self.frames(batch, gen)
        docs, _, codebooks = frames.target.shape
        first = 0 if self.codebooks == "all" else 1
        if self.codebook_weights and len(self.codebook_weights) != codebooks:
            raise ConfigError(
                f"objective.codebook_weights: {len(self.codebook_weights)} weights for {codebooks} codebooks; give one each"
            )
        t = draw_times(docs * codebooks, gen, self.times).view(docs, codebooks)
        u = torch.rand(tuple(frames.target.shape), generator=gen)
        p = (1 - self.min_mask_prob) * (1 - self.noise.alpha(t)) + self.min_mask_prob  # [D, Q]
        own = _own(frames)[..., None].expand(frames.target.shape)
        masked = (u < p[:, None]) & own
        masked[..., :first] = False
        weight = self.weighting.weight(t, p, self.noise)
        if self.codebook_weights:
            weight = weight * torch.tensor(self.codebook_weights)
        terms = self._terms(frames, masked)
        plan = self.make(
            batch, frames, terms, hidden=masked if "nar" in terms else None, weight=weight if "nar" in terms else None
        )
        return self.withheld(plan, gen)

    def clean_plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """All codebooks that are masked in training, one after another."""
        frames = self.frames(batch, gen)
        stages = list(range(0 if self.codebooks == "all" else 1, frames.target.shape[2]))
        chosen = torch.zeros_like(frames.target, dtype=torch.bool)
        chosen[..., stages] = _own(frames)[..., None]
        terms = self._terms(frames, chosen)
        return self.make(batch, frames, terms, stages=tuple(stages) if "nar" in terms else ())

    def _terms(self, frames: Frames, chosen: Tensor) -> dict[str, PlanTerm]:
        """Both terms; the NAR decoder predicts ``chosen`` bool [D, T, Q]."""
        first = 0 if self.codebooks == "all" else 1
        terms: dict[str, PlanTerm] = {}
        if first and self.stage != 2:
            coarse = torch.zeros_like(chosen)
            coarse[..., 0] = _own(frames)
            terms["ar"] = _term(frames, coarse, float(frames.count))
        if self.stage != 1:
            terms["nar"] = _term(frames, chosen, float(frames.count * (frames.target.shape[2] - first)))
        return terms

    def check_network(self, arch: Any) -> None:
        """The NAR decoder must have the same codebooks."""
        wanted = "masked_all" if self.codebooks == "all" else "masked"
        if arch.nar != wanted:
            raise ConfigError(
                f"objective.codebooks: {self.codebooks!r} trains model.arch.nar={wanted}, the model has {arch.nar!r}"
            )
