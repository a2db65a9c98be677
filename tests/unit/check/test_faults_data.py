"""Converters and codecs that break one property each."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from tests.unit.check.faults import exactly, planted
from ttt.audio.codecs.toy import Toy
from ttt.check.core import check
from ttt.data.convert.chats import Alpaca
from ttt.interfaces import StreamDecoder
from ttt.types import AudioCodes, Waveform

FAULTS, fault = planted()


COUNTER = itertools.count()


# --------------------------------------------------------------------------------------------------------- converters


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


# ------------------------------------------------------------------------------------------------------------- codecs


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

    def open_stream(self):
        inner = super().open_stream()

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


@fault("codec", "precision")
@dataclass
class RenamedInHalf(Toy):
    """Data made in float32 would be another codec's."""

    def load(self, device="cpu", dtype="float32"):
        self.codec_id = f"{self.codec_id}{'' if dtype == 'float32' else '-half'}"
        return self


@dataclass
class TwoRates(Toy):
    """Takes recordings at another rate than its sound has."""

    takes_hz: int = 16_000

    @property
    def encode_rate_hz(self):
        return self.takes_hz

    def encode(self, waves):
        inner = Toy(self.num_codes, self.takes_hz, self.frame_rate_hz)
        return [dataclasses.replace(c, codec=self.codec_id) for c in inner.encode(waves)]


@fault("codec", "codes")
@dataclass
class ForgetsItsOwnRate(TwoRates):
    """Counts frames at the rate of the sound."""

    takes_hz: int = 22_050

    def encode(self, waves):
        codes = super().encode(waves)
        frames = [-(-len(w.samples) // self._hop) for w in waves]
        return [dataclasses.replace(c, ids=np.resize(c.ids, (n, 1))) for c, n in zip(codes, frames, strict=True)]


@pytest.mark.parametrize("takes_hz, rate_hz", [(16_000, 22_050), (24_000, 16_000)])
def test_a_codec_may_have_two_rates(takes_hz, rate_hz):
    broken = {r.name: r.counter for r in check("codec", TwoRates(rate_hz=rate_hz, takes_hz=takes_hz)) if r.failed}
    assert broken in ({}, {"facts": broken.get("facts")}) and "begin" in broken.get("facts", "begin")  # it is not registered


@pytest.mark.parametrize("family, breaks, cls", FAULTS)
def test_exactly_the_right_property_names_the_fault(family, breaks, cls):
    exactly(family, breaks, cls)
