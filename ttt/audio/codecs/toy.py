"""A codec of pure tones, without weights: for tests and the toy recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt.audio.codecs.checks import check_codes, check_wave, standardize
from ttt.interfaces import Codec, StreamDecoder
from ttt.registry import PositiveFloat, PositiveInt
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform


@CODEC.register("toy")
@dataclass
class Toy(Codec):
    """Code k is one frame of a pure tone; no weights, exact round trip.  For tests and the toy recipe."""

    num_codes: PositiveInt = 32
    rate_hz: PositiveInt = 16_000
    frame_rate_hz: PositiveFloat = 50.0

    num_codebooks = 1
    exact_stream = True

    def __post_init__(self) -> None:
        self._hop = round(self.rate_hz / self.frame_rate_hz)
        if self._hop < 1 or abs(self._hop * self.frame_rate_hz - self.rate_hz) > 1e-6:
            raise ValueError(
                f"rate_hz must be a multiple of frame_rate_hz, got {self.rate_hz} and {self.frame_rate_hz}"
            )
        step = (self._hop // 2 - 4) // max(self.num_codes, 1)
        if step < 1:
            raise ValueError(
                f"num_codes must lie in 1 to {self._hop // 2 - 4} at this frame rate, got {self.num_codes}"
            )
        self._bins = 4 + step * np.arange(self.num_codes)  # whole periods per frame: tones meet at zero
        self.codec_id = f"toy-{self.num_codes}x{self._hop}@{self.rate_hz}"

    def load(self, device: str = "cpu", dtype: str = "float32") -> Toy:
        """Nothing to load; returns self."""
        return self

    def tone(self, ids: np.ndarray) -> np.ndarray:
        """Samples f32 [F * hop] of codes [F]."""
        turns = self._bins[ids][:, None] * np.arange(self._hop)[None] / self._hop
        return (0.5 * np.sin(2 * np.pi * turns)).astype(np.float32).reshape(-1)

    def strengths(self, samples: np.ndarray) -> np.ndarray:
        """Magnitude of each code's tone in each frame, f32 [F, C]; a tone of `tone` has 0.25."""
        frames = -(-len(samples) // self._hop)
        padded = np.zeros(frames * self._hop, dtype=np.float32)
        padded[: len(samples)] = samples
        return np.abs(np.fft.rfft(padded.reshape(frames, self._hop), axis=1))[:, self._bins] / self._hop

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """The strongest tone of each frame; a last frame cut short counts."""
        for wave in waves:
            check_wave(wave, self.rate_hz, "toy")
        ids = [self.strengths(w.samples).argmax(1).astype(np.int32)[:, None] for w in waves]
        return [AudioCodes(i, self.frame_rate_hz, self.codec_id) for i in ids]

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """One tone per code."""
        for c in codes:
            check_codes(c.ids, self.num_codes, 1, "toy")
        return [Waveform(self.tone(c.ids[:, 0]), self.rate_hz) for c in codes]

    def open_stream(self) -> StreamDecoder:
        """Returns the samples of each frame at once."""
        return _ToyStream(self)

    def code_vectors(self) -> np.ndarray:
        """The identity matrix, standardised, f32 [1, C, C]: no two codes are more similar than others."""
        return standardize(np.eye(self.num_codes, dtype=np.float32)[None])


@dataclass
class _ToyStream(StreamDecoder):
    codec: Toy

    def push(self, codes: np.ndarray) -> np.ndarray:
        check_codes(codes, self.codec.num_codes, 1, "toy")
        return self.codec.tone(codes[:, 0])

    def finish(self) -> np.ndarray:
        return np.zeros(0, dtype=np.float32)
