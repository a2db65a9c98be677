"""Samplers, remasking and length rules, constraints that break one property each."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tests.unit.check.faults import exactly, planted
from ttt.diffusion.constraints import FramePosition
from ttt.sampling.samplers.blocks import Block, Blockwise
from ttt.sampling.samplers.length import Fixed
from ttt.sampling.samplers.remask import LeftToRight
from ttt.text.patterns import Delay

FAULTS, fault = planted()


COUNTER = itertools.count()


# ----------------------------------------------------------------------------------------------------------- samplers


@fault("sampler", "complete")
@dataclass(frozen=True)
class OneMore(Blockwise):
    """Hands out a mask token behind every end."""

    def span(self, request):
        for block in super().span(request):
            yield block
            if block.ended:
                yield Block(block.row, torch.tensor([request.mask_id]), True)


class _LastBlock(Blockwise):
    """Changes the codes of last blocks, which no later call shows."""

    def span(self, request):
        for block in super().span(request):
            codes = block.ended & (block.ids < 10)
            yield Block(block.row, torch.where(codes, self.changed(block.ids, request), block.ids), block.ended)


@fault("sampler", "restriction")
@dataclass(frozen=True)
class WritesAnything(_LastBlock):
    def changed(self, ids, request):
        return torch.full_like(ids, 13)


@fault("sampler", "settled")
@dataclass(frozen=True)
class ForgetsBlocks(Blockwise):
    """Shows the model mask tokens where settled ids are."""

    def span(self, request):
        def run(requests):
            hidden = [r.tails.clone() for r in requests]
            for r, tails in zip(requests, hidden, strict=True):
                tails[:, : -r.window] = request.mask_id
            return request.run([dataclasses.replace(r, tails=t) for r, t in zip(requests, hidden, strict=True)])

        yield from super().span(dataclasses.replace(request, run=run))


@fault("sampler", "seed")
@dataclass(frozen=True)
class NeverTheSame(Blockwise):
    def span(self, request):
        shift = next(COUNTER)
        for block in super().span(request):
            codes = block.ended & (block.ids < 10)
            yield Block(block.row, torch.where(codes, (block.ids + shift) % 10, block.ids), block.ended)


@fault("sampler", "company")
@dataclass(frozen=True)
class LooksAtOthers(_LastBlock):
    def changed(self, ids, request):
        return (ids + request.rows) % 10


@fault("sampler", "constraint")
@dataclass(frozen=True)
class ForgetsPlaces(Blockwise):
    def span(self, request):
        yield from super().span(dataclasses.replace(request, constraint=None))


@fault("sampler", "calls")
@dataclass(frozen=True)
class AsksTwice(Blockwise):
    def span(self, request):
        def run(requests):
            request.run(requests)
            return request.run(requests)

        yield from super().span(dataclasses.replace(request, run=run))


# -------------------------------------------------------------------------------------------------------- constraints


@fault("constraint", "ranges")
@dataclass(frozen=True)
class TakesTheIdBefore(FramePosition):
    def ranges(self, codebooks):
        return tuple((a - 1, b) for a, b in codebooks)


@fault("constraint", "frames")
@dataclass(frozen=True)
class OnePlaceLate(FramePosition):
    def range_at(self, places, codebooks):
        return (places + 1) % len(codebooks)


@fault("constraint", "ends")
@dataclass(frozen=True)
class NeverEnds(FramePosition):
    def may_end(self, places, codebooks):
        return places == 0

    def period(self, codebooks):
        return 0


@fault("constraint", "period")
@dataclass(frozen=True)
class AnotherPeriod(FramePosition):
    def period(self, codebooks):
        return len(codebooks) + 1


@fault("constraint", "shape")
@dataclass(frozen=True)
class RowsOnly(FramePosition):
    def range_at(self, places, codebooks):
        return super().range_at(places, codebooks) if places.ndim == 1 else torch.zeros_like(places)


# ----------------------------------------------------------------------------------------------------------- patterns


@fault("pattern", "grid")
@dataclass(frozen=True)
class HidesEmptyCells(Delay):
    has_empty = False


@fault("pattern", "order")
@dataclass(frozen=True)
class SecondFrameFirst(Delay):
    def columns(self, codebooks):
        return 2 * codebooks

    def index(self, frames, codebooks):
        padded = np.append(np.arange(frames * codebooks), [-1] * (frames % 2 * codebooks)).astype(int)
        return padded.reshape(-1, 2, codebooks)[:, ::-1].reshape(-1, 2 * codebooks)


@fault("pattern", "later")
@dataclass(frozen=True)
class LaterIfOdd(Delay):
    def index(self, frames, codebooks):
        return np.pad(super().index(frames, codebooks), ((frames % 2, 0), (0, 0)), constant_values=-1)


# ------------------------------------------------------------------------------------------------- remasking, lengths


@fault("remask", "shape")
@dataclass(frozen=True)
class PerRow(LeftToRight):
    def score(self, logits, chosen, gens):
        return super().score(logits, chosen, gens)[:, :1]


@fault("remask", "seed")
@dataclass(frozen=True)
class WritesLogits(LeftToRight):
    def score(self, logits, chosen, gens):
        logits.clamp_(min=-100)
        return super().score(logits, chosen, gens)


@fault("remask", "company")
@dataclass(frozen=True)
class Relative(LeftToRight):
    def score(self, logits, chosen, gens):
        return super().score(logits, chosen, gens) * len(chosen)


@fault("length", "bounds")
@dataclass(frozen=True)
class TooLong(Fixed):
    def max_codes(self, last):
        return self.codes - 1


@fault("length", "deterministic")
@dataclass(frozen=True)
class Drifting(Fixed):
    asked: list = field(default_factory=list)

    def max_codes(self, last):
        self.asked.append(1)
        return self.limit + len(self.asked)


@pytest.mark.parametrize("family, breaks, cls", FAULTS)
def test_exactly_the_right_property_names_the_fault(family, breaks, cls):
    exactly(family, breaks, cls)
