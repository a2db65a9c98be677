"""Strategies and objectives that break one property each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.check.faults import exactly, planted
from ttt.check.core import check
from ttt.diffusion.strategies import AnswerPadding, Ppm
from ttt.objective.library import Ar, TtT
from ttt.registry import component
from ttt.registry.core import build_dataclass

FAULTS, fault = planted()


# --------------------------------------------------------------------------------------------------------- strategies


@fault("strategy", "deterministic")
@dataclass(frozen=True)
class OwnRandomness(Ppm):
    """Draws from the global generator."""

    def on_maskable(self, batch, maskable, gen):
        return maskable & (torch.rand(maskable.shape) > 0.5 * (self.p > 0))


@fault("strategy", "input")
@dataclass(frozen=True)
class InPlace(Ppm):
    def on_maskable(self, batch, maskable, gen):
        if self.p > 0:
            maskable[:] = False
        return maskable


@fault("strategy", "growth")
@dataclass(frozen=True)
class Grows(Ppm):
    def on_stream(self, stream, gen):
        closed = [i for i, s in enumerate(stream.segments) if s.style == "last"]
        return stream.repeat_end(closed[-1], 2) if closed and self.p > 0 else stream


@fault("strategy", "growth")
@dataclass(frozen=True)
class NeverLimited(AnswerPadding):
    def limited(self, stream, room):
        return self


@fault("strategy", "canvas")
@dataclass(frozen=True)
class TouchesTheBatch(AnswerPadding):
    def on_batch(self, batch, gen):
        return batch


@fault("strategy", "consistent")
@dataclass(frozen=True)
class OldKinds(Ppm):
    """Changes ids and forgets what they are."""

    def on_stream(self, stream, gen):
        return stream if self.p == 0 else dataclasses.replace(stream, ids=np.full_like(stream.ids, 5))


@fault("strategy", "maskable")
@dataclass(frozen=True)
class NoisesThePrompt(Ppm):
    def on_maskable(self, batch, maskable, gen):
        return maskable | ((batch.kind == 2) & (self.p > 0))


@fault("strategy", "off")
@dataclass(frozen=True)
class NeverOff(Ppm):
    def on_maskable(self, batch, maskable, gen):
        return torch.zeros_like(maskable)


# --------------------------------------------------------------------------------------------------------- objectives


@fault("objective", "deterministic")
@dataclass(frozen=True)
class GlobalNoise(TtT):
    def plan(self, batch, gen):
        return super().plan(batch, torch.Generator().manual_seed(int(torch.randint(1 << 30, ()))))


@fault("objective", "input")
@dataclass(frozen=True)
class WritesTargets(TtT):
    def plan_from(self, batch, maskable, t, u):
        plan = super().plan_from(batch, maskable, t, u)
        batch.target[0, 0] = ~batch.target[0, 0]
        return plan


@fault("objective", "noise")
@dataclass(frozen=True)
class OtherMask(TtT):
    """Writes pads instead of the mask token."""

    def plan_from(self, batch, maskable, t, u):
        plan = super().plan_from(batch, maskable, t, u)
        return dataclasses.replace(plan, input_ids=torch.where(plan.input_ids == batch.mask_id, 0, plan.input_ids))


@fault("objective", "counts")
@dataclass(frozen=True)
class NoCount(Ar):
    def plan(self, batch, gen):
        plan = super().plan(batch, gen)
        few = int(batch.target.sum()) > 20  # right on the small batch of text
        return dataclasses.replace(
            plan, terms={"ar": dataclasses.replace(plan.terms["ar"], count=0.0 if few else plan.terms["ar"].count)}
        )


@fault("objective", "pairs")
@dataclass(frozen=True)
class NegativeWeight(Ar):
    def plan(self, batch, gen):
        plan = super().plan(batch, gen)
        weight = plan.terms["ar"].weight.clone()
        weight[0] *= -1
        return dataclasses.replace(plan, terms={"ar": dataclasses.replace(plan.terms["ar"], weight=weight)})


@fault("objective", "leak")
@dataclass(frozen=True)
class SeesTheAnswer(Ar):
    """Next-token prediction under full attention."""

    mask: Any = component("mask", "full")


@fault("objective", "gradients")
@dataclass(frozen=True)
class Detached(TtT):
    def terms(self, model, plan):
        found = super().terms(model, plan)
        cut = {k: dataclasses.replace(t, sum=t.sum.detach()) for k, t in found.terms.items()}
        return dataclasses.replace(found, terms=cut)


@fault("objective", "quiet")
@dataclass(frozen=True)
class NeedsAudio(TtT):
    def plan_from(self, batch, maskable, t, u):
        assert maskable.any(), "no audio"
        return super().plan_from(batch, maskable, t, u)


@pytest.mark.parametrize("family, breaks, cls", FAULTS)
def test_exactly_the_right_property_names_the_fault(family, breaks, cls):
    exactly(family, breaks, cls)


def test_exceptions_are_counter_examples_with_their_place():
    failed = [r for r in check("objective", build_dataclass(NeedsAudio, {}, "objective")) if r.failed]
    assert (
        "raises AssertionError: no audio at " in failed[0].counter and "test_faults_training.py:" in failed[0].counter
    )
