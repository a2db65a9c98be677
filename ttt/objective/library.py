"""Objectives: which tokens are noised, which mask is used, which position predicts which token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Generator, Tensor, nn

from ttt.diffusion.constraints import constraint_of
from ttt.diffusion.corrupt import Noised, Times, corrupt, draw, per_document, per_position
from ttt.errors import ConfigError
from ttt.interfaces import Objective
from ttt.objective.losses import plan_terms
from ttt.objective.padding import with_padding
from ttt.objective.pairs import SPAN_QUARTERS, Normalizer, ar_pairs, denoising_term, next_token_term, span_quarters
from ttt.objective.places import whole_spans
from ttt.registry import NonNegativeFloat, ShareBelow1, component, components
from ttt.registry.families import CONSTRAINT, OBJECTIVE, RATE
from ttt.types import Kind, LogitAlignment, LossTerms, PackedBatch, Partition, Plan, PlanTerm


@dataclass(frozen=True)
class _Planned(Objective):
    """Shared by all objectives whose loss is a plan of (source, target, weight) triples."""

    def terms(self, model: nn.Module, plan: Plan) -> LossTerms:
        """One forward, weighted sums."""
        return plan_terms(model, plan)


@OBJECTIVE.register("ttt")
@dataclass(frozen=True)
class TtT(_Planned):
    """Text-to-Talk: next-token loss on text + absorbing diffusion on answer audio, in one forward pass (arXiv 2509.20072).

    L = text_scale * L_AR + audio_scale * L_diff.  The text loss reads the same (noisy) forward pass, as in the official
    code; ``text_normalize`` / ``audio_normalize``: ``sample`` (official) or ``token``; ``min_mask_prob`` is the epsilon of the
    masking probability; ``strategies`` act in the order listed; ``times``: how the documents' times are drawn
    (`ttt.diffusion.corrupt.draw_times`), ``rate``: how they depend on the progress of training (validation: as drawn);
    ``constraint``: the ids over which the softmax of a code runs; ``logit_alignment``: whether a masked token is predicted in
    its own place (``same``) or in the one before (``next``: Dream, arXiv 2508.15487).
    """

    renamed_fields: ClassVar = {"floor": "min_mask_prob"}

    mask: Any = component("mask", "hybrid")
    noise: Any = component("noise", "linear")
    weighting: Any = component("weighting", "inverse_p")
    strategies: Any = components("strategy", ("banom", "ppm", "sst"))
    min_mask_prob: ShareBelow1 = 1.0e-3
    text_scale: NonNegativeFloat = 1.0
    audio_scale: NonNegativeFloat = 1.0
    text_normalize: Normalizer = "sample"
    audio_normalize: Normalizer = "sample"
    times: Times = "independent"
    rate: Any = component("rate", "random")
    constraint: Any = component("constraint", "none")
    logit_alignment: LogitAlignment = "same"

    learns_ends = True  # of spans: no field

    def __post_init__(self) -> None:
        for name, family in (("rate", RATE), ("constraint", CONSTRAINT)):
            if isinstance(getattr(self, name), str):  # an objective that was built without a configuration
                object.__setattr__(self, name, family.build(getattr(self, name), name))

    def maskable(self, batch: PackedBatch) -> Tensor:
        """Answer audio that may be noised, before strategies.  bool [B, T]."""
        return (batch.kind == Kind.AUDIO) & batch.noisable & batch.visible

    def prepared(self, batch: PackedBatch) -> PackedBatch:
        """The batch as this objective reads it."""
        return batch

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Draw the noise, apply the strategies, build both terms."""
        batch = self.prepared(batch)
        for strategy in self.strategies:
            batch = strategy.on_batch(batch, gen)
        t, u = draw(batch, gen, self.times)
        t = self.rate.times(t, batch.progress, gen)
        maskable = self.maskable(batch)
        if maskable.any():
            for strategy in self.strategies:
                maskable = strategy.on_maskable(batch, maskable, gen)
        return self.plan_from(batch, maskable, t, u)

    def clean_plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Validation: fixed noise, only strategies that shape the canvas (already applied), no rate."""
        batch = self.prepared(batch)
        t, u = draw(batch, gen, self.times)
        return self.plan_from(batch, self.maskable(batch), t, u)

    def plan_from(self, batch: PackedBatch, maskable: Tensor, t: Tensor, u: Tensor) -> Plan:
        """The plan for given draws: ``t`` f32 [n_docs], ``u`` f32 [B, T] (a pure function)."""
        noised = corrupt(batch, maskable, t, u, self.noise, self.min_mask_prob)
        text = batch.target & (batch.kind == Kind.TEXT)
        terms = {
            "ar": next_token_term(batch, text, self.text_normalize, self.text_scale),
            "nar": self.diffusion_term(batch, noised),
        }
        return Plan(noised.input_ids, batch.position, batch.layout(), self.mask, terms, batch.joined)

    def diffusion_term(self, batch: PackedBatch, noised: Noised) -> PlanTerm:
        """L_diff of the noised positions."""
        weight = self.weighting.weight(noised.t, noised.p, self.noise)
        if self.logit_alignment == "next" and batch.joined is not None:
            raise ConfigError(
                "objective.logit_alignment: 'next' is for one code at a position, data.pattern puts several; use same"
            )
        constraint = self.constraint if batch.joined is None else constraint_of(self.constraint)
        return denoising_term(
            batch, noised.masked, noised.maskable, weight, noised.p, self.audio_normalize, self.audio_scale, noised.group,
            constraint, self.learns_ends, self.logit_alignment,
        )  # fmt: skip


@OBJECTIVE.register("ar")
@dataclass(frozen=True)
class Ar(_Planned):
    """Next-token prediction on everything, audio included (the AR baseline of the TtT paper)."""

    mask: Any = component("mask", "causal")
    strategies: Any = components("strategy", ())
    normalize: Normalizer = "sample"

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """One term over all targets, with statistics by modality."""
        term = next_token_term(batch, batch.target, self.normalize)
        _, at = ar_pairs(batch, batch.target)
        kinds = batch.kind.flatten()[at].long() - int(Kind.TEXT)
        place = span_quarters(batch).flatten()[at]
        parts = (Partition(kinds, ("text", "audio")), Partition(place, SPAN_QUARTERS))
        term = dataclasses.replace(term, partitions=(*parts, *term.partitions))
        return Plan(batch.ids, batch.position, batch.layout(), self.mask, {"ar": term}, batch.joined)


@OBJECTIVE.register("nar")
@dataclass(frozen=True)
class Nar(TtT):
    """Absorbing diffusion over the whole answer, text included, with full attention (LLaDA, arXiv 2502.09992).

    It is the NAR baseline of the TtT paper.

    ``noised``: ``answer`` (the prompt stays clean, loss / (p * answer length): LLaDA's SFT, and with documents that are all
    answer its pre-training); ``speech`` (spans of the answer, text stays clean: LLaDA-TTS); ``by_kind`` (speech of answers that
    have some, the whole answer otherwise, as losses ``audio`` and ``text``).  ``weigh``: with ``by_kind``, losses are divided by
    all ``documents`` of an update, or each by its own documents (``kinds``).  ``ends``: ``keep`` never noises the tokens that end
    spans, so that the model does not learn where to stop.  ``spans``: ``first`` noises the first span of a document only.
    ``padding``: ``learn`` makes the padding of rows part of the answer (`with_padding`).  ``real_masks``: ``count`` treats mask
    tokens in the data as masked positions.  Values other than the defaults are those of published programs (docs/llada.md).
    """

    mask: Any = component("mask", "full")
    strategies: Any = components("strategy", ())
    noised: Literal["answer", "speech", "by_kind"] = "answer"
    ends: Literal["learn", "keep"] = "learn"
    spans: Literal["all", "first"] = "all"
    padding: Literal["ignore", "learn"] = "ignore"
    real_masks: Literal["ignore", "count"] = "ignore"
    weigh: Literal["documents", "kinds"] = "documents"

    @property
    def canvas(self) -> str:  # type: ignore[override]
        """``speech`` where only speech is learned, else the whole ``answer``."""
        return "speech" if self.noised == "speech" else "answer"

    @property
    def learns_ends(self) -> bool:  # type: ignore[override]
        """Are the tokens that end spans among the targets?"""
        return self.noised == "answer" or self.ends == "learn"

    @property
    def canvases(self) -> tuple[str, ...]:
        """Every canvas that is learned."""
        return ("answer", "speech") if self.noised == "by_kind" else (self.canvas,)

    def prepared(self, batch: PackedBatch) -> PackedBatch:
        """With padding as part of the answer if ``padding`` is ``learn``."""
        return with_padding(batch) if self.padding == "learn" else batch

    def maskable(self, batch: PackedBatch) -> Tensor:
        """The answer, or its speech."""
        if self.noised == "answer" and batch.joined is not None:
            raise ConfigError(
                "objective.noised: answer masks text and speech alike, but with this data.pattern several codes stand at one "
                "position and a masked one could be either; use speech or by_kind, or a tokenizer with pattern flatten"
            )
        answer = batch.noisable & batch.visible
        if self.noised == "answer":
            return answer
        speech = whole_spans(batch, self.spans == "first", self.learns_ends)
        return speech if self.noised == "speech" else speech | (answer & ~self._spoken(batch))

    def _spoken(self, batch: PackedBatch) -> Tensor:
        """bool [B, T]: positions of documents with speech in their answers."""
        audio = (batch.kind == Kind.AUDIO) & batch.noisable & batch.visible
        return per_position(per_document(audio.float(), batch.doc, batch.n_docs), batch.doc) > 0

    def plan_from(self, batch: PackedBatch, maskable: Tensor, t: Tensor, u: Tensor) -> Plan:
        """One diffusion term, or one for each kind of document."""
        noised = corrupt(batch, maskable, t, u, self.noise, self.min_mask_prob)
        if self.real_masks == "count":
            real = (batch.ids == batch.mask_id) & batch.visible
            noised = dataclasses.replace(noised, masked=noised.masked | real)
            batch = dataclasses.replace(batch, target=batch.target | real)
        if self.noised == "by_kind":
            terms = self._by_kind(batch, noised)
        else:
            terms = {"nar": self.diffusion_term(batch, noised)}
        return Plan(noised.input_ids, batch.position, batch.layout(), self.mask, terms, batch.joined)

    def _by_kind(self, batch: PackedBatch, noised: Noised) -> dict[str, PlanTerm]:
        spoken = self._spoken(batch)
        terms: dict[str, PlanTerm] = {}
        own: dict[str, float] = {}  # what each loss is divided by with weigh=kinds
        for name, where, scale in (("text", ~spoken, self.text_scale), ("audio", spoken, self.audio_scale)):
            of_kind = dataclasses.replace(noised, masked=noised.masked & where, maskable=noised.maskable & where)
            terms[name] = dataclasses.replace(self.diffusion_term(batch, of_kind), scale=scale)
            visible = (where & batch.visible).float()
            if self.audio_normalize in ("sample", "sum"):
                own[name] = float((per_document(visible, batch.doc, batch.n_docs) > 0).sum())
            else:
                own[name] = float(visible.sum()) if self.audio_normalize == "all_tokens" else terms[name].count
        counts = dict.fromkeys(own, sum(own.values())) if self.weigh == "documents" else own
        return {name: dataclasses.replace(term, count=counts[name]) for name, term in terms.items()}
