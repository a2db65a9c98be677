"""Objectives: what is noised, which mask is used, and which position predicts what."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor, nn

from ttt.diffusion.corrupt import TIMES, Noised, corrupt, draw
from ttt.interfaces import Objective
from ttt.objective.losses import plan_terms
from ttt.objective.pairs import NORMALIZERS, SPAN_QUARTERS, denoising_term, next_token_term, span_quarters
from ttt.registry import component, components
from ttt.registry.families import OBJECTIVE
from ttt.types import Kind, LossTerms, PackedBatch, Partition, Plan


@dataclass(frozen=True)
class _Planned(Objective):
    """Shared by all objectives whose loss is a plan of (source, target, weight) triples."""

    def terms(self, model: nn.Module, plan: Plan) -> LossTerms:
        """One forward, weighted sums."""
        return plan_terms(model, plan)


@OBJECTIVE.register("ttt")
@dataclass(frozen=True)
class TtT(_Planned):
    """Text-to-Talk: next-token loss on text + absorbing diffusion on answer audio, one forward (spec, sections 4-6).

    L = text_scale * L_AR + audio_scale * L_diff.  The text loss reads the same (noisy) forward pass, as in the official
    code; ``text_normalize`` / ``audio_normalize``: ``sample`` (official) or ``token``; ``floor`` is the epsilon of the
    masking probability; ``strategies`` act in the order listed; ``times``: how the documents' times are drawn
    (`ttt.diffusion.corrupt.draw_times`).
    """

    mask: Any = component("mask", "hybrid")
    noise: Any = component("noise", "linear")
    weighting: Any = component("weighting", "inverse_p")
    strategies: Any = components("strategy", ("banom", "ppm", "sst"))
    floor: float = 1.0e-3
    text_scale: float = 1.0
    audio_scale: float = 1.0
    text_normalize: str = "sample"
    audio_normalize: str = "sample"
    times: str = "independent"

    def __post_init__(self) -> None:
        if self.times not in TIMES:
            raise ValueError(f"times must be one of {', '.join(TIMES)}, got {self.times!r}")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must lie in [0, 1), got {self.floor}")
        for name in ("text_normalize", "audio_normalize"):
            if getattr(self, name) not in NORMALIZERS:
                raise ValueError(f"{name} must be one of {', '.join(NORMALIZERS)}, got {getattr(self, name)!r}")

    def maskable(self, batch: PackedBatch) -> Tensor:
        """Answer audio that may be noised, before strategies.  bool [B, T]."""
        return (batch.kind == Kind.AUDIO) & batch.answer & batch.visible

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Draw the noise, apply the strategies, list both terms."""
        t, u = draw(batch, gen, self.times)
        maskable = self.maskable(batch)
        if maskable.any():
            for strategy in self.strategies:
                maskable = strategy.on_maskable(batch, maskable, gen)
        return self.plan_from(batch, maskable, t, u)

    def clean_plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Validation: fixed noise, no strategies."""
        t, u = draw(batch, gen, self.times)
        return self.plan_from(batch, self.maskable(batch), t, u)

    def plan_from(self, batch: PackedBatch, maskable: Tensor, t: Tensor, u: Tensor) -> Plan:
        """The plan for given draws: ``t`` f32 [n_docs], ``u`` f32 [B, T] (a pure function)."""
        noised = corrupt(batch, maskable, t, u, self.noise, self.floor)
        text = batch.target & (batch.kind == Kind.TEXT)
        terms = {
            "ar": next_token_term(batch, text, self.text_normalize, self.text_scale),
            "nar": self.diffusion_term(batch, noised),
        }
        return Plan(noised.input_ids, batch.position, batch.layout(), self.mask, terms)

    def diffusion_term(self, batch: PackedBatch, noised: Noised):
        """L_diff of the noised positions."""
        weight = self.weighting.weight(noised.t, noised.p, self.noise)
        return denoising_term(
            batch,
            noised.masked,
            noised.maskable,
            weight,
            noised.p,
            self.audio_normalize,
            self.audio_scale,
            noised.group,
        )


@OBJECTIVE.register("ar")
@dataclass(frozen=True)
class Ar(_Planned):
    """Next-token prediction on everything, audio included (the paper's AR baseline; spec, section 10)."""

    mask: Any = component("mask", "causal")
    strategies: Any = components("strategy", ())
    normalize: str = "sample"

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZERS:
            raise ValueError(f"normalize must be one of {', '.join(NORMALIZERS)}, got {self.normalize!r}")

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """One term over all targets; its statistics are kept apart by modality."""
        term = next_token_term(batch, batch.target, self.normalize)
        kinds = batch.kind.flatten()[term.source + 1].long() - int(Kind.TEXT)
        place = span_quarters(batch).flatten()[term.source + 1]
        parts = (Partition(kinds, ("text", "audio")), Partition(place, SPAN_QUARTERS))
        term = dataclasses.replace(term, partitions=(*parts, *term.partitions))
        return Plan(batch.ids, batch.position, batch.layout(), self.mask, {"ar": term})


@OBJECTIVE.register("nar")
@dataclass(frozen=True)
class Nar(TtT):
    """Absorbing diffusion over the whole answer, text included, with full attention (the paper's NAR baseline, read as
    LLaDA-SFT: prompt clean, loss / (p * answer length); spec, section 10)."""

    canvas = "answer"  # no field: nothing to choose
    mask: Any = component("mask", "full")
    strategies: Any = components("strategy", ())

    def maskable(self, batch: PackedBatch) -> Tensor:
        """The whole answer."""
        return batch.answer & batch.visible

    def plan_from(self, batch: PackedBatch, maskable: Tensor, t: Tensor, u: Tensor) -> Plan:
        """One diffusion term over the answer."""
        noised = corrupt(batch, maskable, t, u, self.noise, self.floor)
        return Plan(
            noised.input_ids, batch.position, batch.layout(), self.mask, {"nar": self.diffusion_term(batch, noised)}
        )
