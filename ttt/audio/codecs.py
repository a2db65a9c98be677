"""Codecs without weights (tones; codes that come with the data) and the checks that all codecs share.

Letters: ``F`` frames, ``Q`` code positions per frame (codebooks), ``C`` codes per codebook, ``S`` wav samples, ``E``
dimensions of a code vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import numpy as np

from ttt.errors import ConfigError, DataError
from ttt.interfaces import Codec, StreamDecoder
from ttt.registry import PositiveFloat, PositiveInt
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform


def check_wave(wave: Waveform, rate_hz: int, codec: str) -> None:
    """Refuse what cannot be encoded: another rate, no samples, NaN or infinity."""
    if wave.rate_hz != rate_hz:
        raise DataError(
            f"codec {codec!r}: waveform has {wave.rate_hz} Hz, expected {rate_hz} Hz: "
            "resample it with ttt.audio.signal.resample"
        )
    if len(wave.samples) == 0:
        raise DataError(f"codec {codec!r}: a waveform holds no samples: make it again or drop the item")
    if not np.isfinite(wave.samples).all():
        bad = int((~np.isfinite(wave.samples)).sum())
        raise DataError(
            f"codec {codec!r}: {bad} of {len(wave.samples)} samples are NaN or infinite: make the wav again"
        )


def check_codes(ids: np.ndarray, num_codes: int, num_codebooks: int, codec: str) -> None:
    """Refuse codes [F, Q] of another shape or outside the codebook."""
    if ids.ndim != 2 or ids.shape[1] != num_codebooks:
        raise DataError(
            f"codec {codec!r}: codes have shape {list(ids.shape)}, expected [F, {num_codebooks}] (codebooks last)"
        )
    wrong = ids[(ids < 0) | (ids >= num_codes)]
    if wrong.size:
        raise DataError(
            f"codec {codec!r}: code {int(wrong[0])} is outside the codebook of {num_codes} (0 to {num_codes - 1}): "
            "decode with the codec that made the codes"
        )


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

    def load(self, device: str = "cpu") -> Toy:
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

    def stream_decoder(self) -> StreamDecoder:
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


@CODEC.register("precomputed")
@dataclass
class Precomputed(Codec):
    """Codes come with the data; nothing is encoded or decoded.  The fields say what the codes are."""

    renamed_fields: ClassVar = {"num_books": "num_codebooks"}

    num_codes: PositiveInt = 16_384
    num_codebooks: PositiveInt = 1
    frame_rate_hz: PositiveFloat = 12.5
    rate_hz: PositiveInt = 24_000
    label: str = "precomputed"  # stored beside the codes as `codec_id`

    def __post_init__(self) -> None:
        self.codec_id = self.label

    def load(self, device: str = "cpu") -> Precomputed:
        """Nothing to load; returns self."""
        return self

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Refused."""
        self._refuse("encode")

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Refused."""
        self._refuse("decode")

    def stream_decoder(self) -> StreamDecoder:
        """Refused."""
        self._refuse("decode")

    def _refuse(self, verb: str) -> NoReturn:
        raise ConfigError(
            f"codec: 'precomputed' cannot {verb}, its codes come with the data: configure the codec that made them, "
            f"for example one of {', '.join(n for n in CODEC.names() if n != 'precomputed')}"
        )


def standardize(vectors: np.ndarray) -> np.ndarray:
    """Each codebook centred and divided by its overall standard deviation: f32 [Q, C, E] -> f32 [Q, C, E]."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    spread = centred.std(axis=(1, 2), keepdims=True)
    return (centred / np.maximum(spread, 1e-8)).astype(np.float32)
