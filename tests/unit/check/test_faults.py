"""For every property one broken plug-in; exactly that property has to name it."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from ttt.audio.codecs import Toy
from ttt.check.core import MODULES, check, family_key, properties
from ttt.data.convert.chats import Alpaca
from ttt.diffusion.constraints import FramePosition
from ttt.diffusion.rates import RandomRate
from ttt.diffusion.schedules import Linear
from ttt.diffusion.strategies import Ppm
from ttt.diffusion.weightings import Uniform
from ttt.errors import RegistryError
from ttt.eval.metrics import ExactMatch
from ttt.interfaces import StreamDecoder
from ttt.masks.library import Causal, Full, Hybrid
from ttt.objective.library import Ar, TtT
from ttt.registry import component
from ttt.registry.core import build_dataclass
from ttt.sampling.length import Fixed
from ttt.sampling.remask import LeftToRight
from ttt.sampling.unmask import Block, Blockwise
from ttt.tasks.speech import Asr
from ttt.types import AudioCodes, Example, Waveform

FAULTS = []
COUNTER = itertools.count()
FIELDS = {"sampler": {"block_length": 4, "gen_length": 16, "diffusion_steps": 16}}


def fault(family: str, breaks: str):
    def add(cls):
        FAULTS.append(pytest.param(family, breaks, cls, id=f"{family}-{breaks}-{cls.__name__}"))
        return cls

    return add


# ---------------------------------------------------------------------------------------------------------- masks


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

# ---------------------------------------------------------------------------------------------------------- noise


@fault("noise", "shape")
@dataclass(frozen=True)
class Flat(Linear):
    def alpha(self, t):
        return (1 - t).flatten()

    def dalpha(self, t):
        return -torch.ones_like(t).flatten()


@fault("noise", "ends")
@dataclass(frozen=True)
class NeverClean(Linear):
    """Does not say that it starts at 0.9."""

    def alpha(self, t):
        return 0.9 * (1 - t)

    def dalpha(self, t):
        return -0.9 * torch.ones_like(t)


@fault("noise", "monotone")
@dataclass(frozen=True)
class Wave(Linear):
    def alpha(self, t):
        return 1 - t + 0.3 * torch.sin(2 * torch.pi * t)

    def dalpha(self, t):
        return -1 + 0.6 * torch.pi * torch.cos(2 * torch.pi * t)


@fault("noise", "slope")
@dataclass(frozen=True)
class WrongSlope(Linear):
    def dalpha(self, t):
        return -1.01 * torch.ones_like(t)


@fault("weighting", "shape")
@dataclass(frozen=True)
class OneForAll(Uniform):
    def weight(self, t, p, schedule):
        return (1 / p).mean()


@fault("weighting", "finite")
@dataclass(frozen=True)
class Exploding(Uniform):
    def weight(self, t, p, schedule):
        return 1 / (t - t[100]).abs()


@fault("weighting", "positive")
@dataclass(frozen=True)
class Rewarding(Uniform):
    def weight(self, t, p, schedule):
        return 0.5 - t


# ----------------------------------------------------------------------------------------------------- strategies


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


# ----------------------------------------------------------------------------------------------------- objectives


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


# ------------------------------------------------------------------------------------------------------- samplers


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
        def predict(rows, tails, last, unconditional=""):
            hidden = tails.clone()
            hidden[:, :-last] = request.mask_id
            return request.predict(rows, hidden, last, unconditional)

        yield from super().span(dataclasses.replace(request, predict=predict))


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
        yield from super().span(dataclasses.replace(request, places=None))


# ---------------------------------------------------------------------------------------------- constraints, rates


@fault("constraint", "ranges")
@dataclass(frozen=True)
class TakesTheIdBefore(FramePosition):
    def ranges(self, books):
        return tuple((a - 1, b) for a, b in books)


@fault("constraint", "frames")
@dataclass(frozen=True)
class OnePlaceLate(FramePosition):
    def range_at(self, places, books):
        return (places + 1) % len(books)


@fault("constraint", "ends")
@dataclass(frozen=True)
class NeverEnds(FramePosition):
    def may_end(self, places, books):
        return places == 0

    def period(self, books):
        return 0


@fault("constraint", "period")
@dataclass(frozen=True)
class AnotherPeriod(FramePosition):
    def period(self, books):
        return len(books) + 1


@fault("constraint", "shape")
@dataclass(frozen=True)
class RowsOnly(FramePosition):
    def range_at(self, places, books):
        return super().range_at(places, books) if places.ndim == 1 else torch.zeros_like(places)


@fault("rate", "times")
@dataclass(frozen=True)
class PastTheEnd(RandomRate):
    def times(self, t, progress, gen):
        return t * (1 + progress)


@fault("rate", "seed")
@dataclass(frozen=True)
class GlobalDraws(RandomRate):
    def times(self, t, progress, gen):
        return torch.rand_like(t)


@fault("sampler", "calls")
@dataclass(frozen=True)
class AsksTwice(Blockwise):
    def span(self, request):
        def predict(*args):
            request.predict(*args)
            return request.predict(*args)

        yield from super().span(dataclasses.replace(request, predict=predict))


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


# ----------------------------------------------------------------------------------------------------- converters


@fault("converter", "sample")
@dataclass(frozen=True)
class EmptySample(Alpaca):
    def sample(self, folder):
        (folder / "none.json").write_text("[]")
        return folder / "none.json"


@fault("converter", "form")
@dataclass(frozen=True)
class OtherRoles(Alpaca):
    def convert(self, where, row):
        made = super().convert(where, row)
        return {**made, "turns": [{**made["turns"][0], "role": "human"}]}


@fault("converter", "places")
@dataclass(frozen=True)
class RowNumbers(Alpaca):
    def rows(self, path):
        return ((f"row {n}", row) for n, (_, row) in enumerate(super().rows(path)))


@fault("converter", "names")
@dataclass(frozen=True)
class OneName(Alpaca):
    def convert(self, where, row):
        return {**super().convert(where, row), "uid": "row"}


@fault("converter", "refusals")
@dataclass(frozen=True)
class Forgiving(Alpaca):
    def convert(self, where, row):
        return super().convert(where, row if row != {} else {"instruction": "?", "output": "!"})


@fault("converter", "missing")
@dataclass(frozen=True)
class SilentlyEmpty(Alpaca):
    def rows(self, path):
        return super().rows(path) if path.is_file() else iter(())


# --------------------------------------------------------------------------------------------------------- codecs


@fault("codec", "facts")
@dataclass
class Anonymous(Toy):
    def __post_init__(self):
        super().__post_init__()
        self.codec_id = "x"


@fault("codec", "codes")
@dataclass
class DropsTheLastFrame(Toy):
    def encode(self, waves):
        return [
            dataclasses.replace(c, ids=c.ids[:-1] if len(w.samples) % self._hop else c.ids)
            for w, c in zip(waves, super().encode(waves), strict=True)
        ]


@fault("codec", "sound")
@dataclass
class TooLoud(Toy):
    exact_stream = False

    def decode(self, codes):
        return [Waveform(3 * w.samples, w.rate_hz) for w in super().decode(codes)]


@fault("codec", "deterministic")
@dataclass
class Moody(Toy):
    def encode(self, waves):
        shift = next(COUNTER)
        return [dataclasses.replace(c, ids=(c.ids + shift) % self.num_codes) for c in super().encode(waves)]


@fault("codec", "company")
@dataclass
class Together(Toy):
    def encode(self, waves):
        shift = max(len(waves) - 1, 0)
        return [dataclasses.replace(c, ids=(c.ids + shift) % self.num_codes) for c in super().encode(waves)]


@fault("codec", "stream")
@dataclass
class Clicks(Toy):
    """The stream loses a sample's value at each push; lengths are right."""

    def stream_decoder(self):
        inner = super().stream_decoder()

        class Stream(StreamDecoder):
            def push(self, codes):
                sound = inner.push(codes).copy()
                sound[:5] = 0.3
                return sound

            def finish(self):
                return inner.finish()

        return Stream()


@fault("codec", "refusals")
@dataclass
class TakesAnything(Toy):
    def decode(self, codes):
        good = [AudioCodes(np.clip(c.ids, 0, self.num_codes - 1), c.frame_rate_hz, c.codec) for c in codes]
        return super().decode(good)


@fault("codec", "vectors")
@dataclass
class Shifted(Toy):
    def code_vectors(self):
        return super().code_vectors() + np.float32(1)


# -------------------------------------------------------------------------------------------------- tasks, metrics


@fault("task", "example")
@dataclass(frozen=True)
class OtherLabel(Asr):
    @property
    def label(self):
        return f"asr{next(COUNTER)}"


@fault("task", "deterministic")
@dataclass(frozen=True)
class ChangesItems(Asr):
    def build(self, item, codes):
        item["text_out"] = "changed"
        return super().build(item, codes)


@fault("task", "prompt")
@dataclass(frozen=True)
class TellsTheAnswer(Asr):
    def prompt(self, example):
        return Example(example.uid, example.turns, example.task, example.meta)


@fault("task", "metrics")
@dataclass(frozen=True)
class UnknownMetric(Asr):
    @property
    def metrics(self):
        return {"wer": "word_error"}


@fault("task", "file")
@dataclass(frozen=True)
class NotJson(Asr):
    def build(self, item, codes):
        example = super().build(item, codes)
        return dataclasses.replace(example, meta={**example.meta, "pair": (1, 2)})


@fault("metric", "statistics")
@dataclass(frozen=True)
class Ints(ExactMatch):
    def item(self, scored):
        return super().item(scored).astype(np.int64)


@fault("metric", "micro")
@dataclass(frozen=True)
class Sum(ExactMatch):
    def total(self, statistics):
        return float(statistics[0])


@fault("metric", "direction")
@dataclass(frozen=True)
class UpsideDown(ExactMatch):
    higher_is_better = False


@fault("metric", "deterministic")
@dataclass(frozen=True)
class WritesItems(ExactMatch):
    def item(self, scored):
        found = super().item(scored)
        scored["text"] = scored["text_ref"]
        return found


# ----------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("family, breaks, cls", FAULTS)
def test_exactly_the_right_property_names_the_fault(family, breaks, cls):
    torch.manual_seed(1)  # some faults draw from the global generator
    results = check(family, build_dataclass(cls, FIELDS.get(family, {}), family))
    failed = {r.name: r.counter for r in results if r.failed}
    assert list(failed) == [breaks], failed
    assert failed[breaks] and "\n" not in failed[breaks]


def test_there_is_a_fault_for_every_property():
    planted = {(p.values[0], p.values[1]) for p in FAULTS}
    assert planted == {(family, p.name) for family in MODULES for p in properties(family)}


def test_a_masks_counter_example_is_drawn():
    (result,) = [r for r in check("mask", Peeking()) if r.failed]
    assert "text position" in result.counter and "sees" in result.counter and "lies in the future" in result.counter
    lines = result.drawing.splitlines()
    cell = [(q, k) for q, line in enumerate(lines[1:]) for k, c in enumerate(line[2:]) if c == "X"]
    assert len(cell) == 1 and cell[0][1] == cell[0][0] + 1, "one marked cell, just above the diagonal"


def test_exceptions_are_counter_examples_with_their_place():
    failed = [r for r in check("objective", build_dataclass(NeedsAudio, {}, "objective")) if r.failed]
    assert "raises AssertionError: no audio at " in failed[0].counter and "test_faults.py:" in failed[0].counter


def test_a_predicate_that_is_not_bool_is_said_to_be_none():
    floats = lambda_mask(Causal, lambda f, x: lambda b, h, q, k: f(b, h, q, k).float())
    assert "torch.float32, not bool" in check("mask", floats())[0].counter


def test_the_world_has_what_faults_need():
    from ttt.check import world

    layout = world.batch().layout()
    assert not layout.visible.all() and int(layout.doc.max()) == 4, "padding and several documents"
    streams = world.streams(3, 15, most=25)
    assert any(s.target.all() for s in streams) and any(s.style == "last" for x in streams for s in x.segments)


def test_families():
    assert family_key("schedule") == "noise"
    with pytest.raises(RegistryError, match="family 'judge' has no checks"):
        family_key("judge")
    with pytest.raises(RegistryError, match="no plug-in family named 'maks'. Did you mean 'mask'"):
        family_key("maks")
