"""Masks that break one property each."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests.unit.check.faults import exactly, planted
from ttt.check.core import check
from ttt.masks.library import Causal, Full, Hybrid

FAULTS, fault = planted()


def lambda_mask(base, change):
    """A rule whose predicate is ``change(base predicate, layout)``; all else is the base's."""

    @dataclass(frozen=True)
    class Changed(base):
        def allow(self, layout):
            return change(base.allow(self, layout), layout)

    return Changed


fault("mask", "documents")(
    lambda_mask(Causal, lambda f, x: lambda b, h, q, k: (k <= q) & x.visible[b, k] & (x.position[b, q] >= 0))
)
fault("mask", "padding")(lambda_mask(Full, lambda f, x: lambda b, h, q, k: f(b, h, q, k) | (x.doc[b, k] < 0)))


@fault("mask", "future")
@dataclass(frozen=True)
class Peeking(Causal):
    """Text sees one token ahead."""

    def allow(self, layout):
        same = lambda b, q, k: (layout.doc[b, q] == layout.doc[b, k]) & layout.visible[b, k]  # noqa: E731
        return lambda b, h, q, k: same(b, q, k) & (k <= q + (layout.kind[b, q] == 1).long())

    def frozen_prefix(self, layout, closed):
        return torch.zeros(len(closed), dtype=torch.long)


fault("mask", "looks_ahead")(  # the last two positions of a long run do not see each other's future
    lambda_mask(Hybrid, lambda f, x: lambda b, h, q, k: f(b, h, q, k) & (k - q < 3))
)
fault("mask", "company")(  # counts columns instead of positions
    lambda_mask(Causal, lambda f, x: lambda b, h, q, k: f(b, h, q, k) & ((k == q) | (k % 3 > 0)))
)


@fault("mask", "flex")
@dataclass(frozen=True)
class NeedsTensors(Causal):
    """Asks for a number in the predicate: works on whole tensors, not under vmap."""

    def allow(self, layout):
        rule = Causal().allow(layout)
        return lambda b, h, q, k: rule(b, h, q, k) if int(k.max()) >= 0 else rule(b, h, q, k)


@fault("mask", "frozen")
@dataclass(frozen=True)
class FreezesTooMuch(Hybrid):
    """Calls an open run frozen."""

    def frozen_prefix(self, layout, closed):
        return layout.visible.long().sum(1)


fault("mask", "reach")(  # text does not see itself; a network's residual does
    lambda_mask(Causal, lambda f, x: lambda b, h, q, k: f(b, h, q, k) & ((k < q) | (x.kind[b, q] == 2)))
)


@pytest.mark.parametrize("family, breaks, cls", FAULTS)
def test_exactly_the_right_property_names_the_fault(family, breaks, cls):
    exactly(family, breaks, cls)


def test_a_masks_counter_example_is_drawn():
    (result,) = [r for r in check("mask", Peeking()) if r.failed]
    assert "text position" in result.counter and "sees" in result.counter and "lies in the future" in result.counter
    lines = result.drawing.splitlines()
    cell = [(q, k) for q, line in enumerate(lines[1:]) for k, c in enumerate(line[2:]) if c == "X"]
    assert len(cell) == 1 and cell[0][1] == cell[0][0] + 1, "one marked cell, just above the diagonal"


def test_a_predicate_that_is_not_bool_is_said_to_be_none():
    floats = lambda_mask(Causal, lambda f, x: lambda b, h, q, k: f(b, h, q, k).float())
    assert "torch.float32, not bool" in check("mask", floats())[0].counter
