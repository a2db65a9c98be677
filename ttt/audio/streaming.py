"""Decoding codes to sound while they are generated: growing chunks, cross-faded windows.

Letters: ``F`` frames, ``Q`` codebooks, ``S`` wav samples.

A codec's `StreamDecoder` returns the samples that are final; `ChunkedSound` decides how many codes it gets at a time.
`WindowStream` is a stream decoder for any codec, made of its one-shot `decode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ttt.audio.codecs.checks import check_codes
from ttt.errors import ConfigError
from ttt.interfaces import Codec, StreamDecoder
from ttt.types import AudioCodes

# Frames of the first, second, ... chunk; the last size repeats (GLM-4-Voice's demo, arXiv 2412.02612).
CHUNK_FRAMES = (25, 50, 100, 150, 200)


class ChunkedSound:
    """Collects codes and decodes them in chunks of ``chunk_frames``: a small one for an early first sound, then larger.

    The concatenation of all results of `push` and `finish` is what the codec's stream decoder returns for these chunks.
    """

    def __init__(self, codec: Codec, chunk_frames: Sequence[int] = CHUNK_FRAMES) -> None:
        self.chunk_frames = check_chunks(chunk_frames)
        self._decoder = codec.open_stream()
        self._waiting = np.zeros((0, codec.num_codebooks), dtype=np.int32)
        self._chunks = 0

    def push(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Take codes i32 [F, Q]; the samples f32 [S] of each chunk that is full, one by one (none that are empty)."""
        self._waiting = np.concatenate([self._waiting, codes.astype(np.int32)])
        while len(self._waiting) >= (size := self.chunk_frames[min(self._chunks, len(self.chunk_frames) - 1)]):
            chunk, self._waiting = self._waiting[:size], self._waiting[size:]
            self._chunks += 1
            if len(samples := self._decoder.push(chunk)):
                yield samples

    def finish(self) -> np.ndarray:
        """The samples f32 [S] of everything that waits."""
        parts = [self._decoder.push(self._waiting)] if len(self._waiting) else []
        self._waiting = self._waiting[:0]
        return np.concatenate([*parts, self._decoder.finish()])


def check_chunks(chunk_frames: Sequence[int]) -> tuple[int, ...]:
    """The sizes as a tuple.  Raises `ConfigError` unless there are some and all are >= 1."""
    sizes = tuple(chunk_frames)
    if not sizes or any(size < 1 for size in sizes):
        raise ConfigError(
            f"chunk sizes: expected one or more numbers of frames >= 1, got {','.join(map(str, sizes)) or 'none'}"
        )
    return sizes


class WindowStream(StreamDecoder):
    """A stream decoder for any codec: each push decodes the new frames anew together with ``past`` old ones.

    ``past`` and ``future``: frames before and behind a frame that its sound depends on.  ``future + fade`` frames are
    held back; over ``fade`` frames the continuation of the old window is cross-faded into the new one.  If the codec is
    linear and time-invariant and the two numbers cover its context, the result equals decoding in one go bit for bit;
    otherwise the fade hides the transition.
    """

    def __init__(self, codec: Codec, past: int = 24, future: int = 1, fade: int = 1) -> None:
        hop = codec.rate_hz / codec.frame_rate_hz
        if abs(hop - round(hop)) > 1e-3:
            raise ConfigError(
                f"codec {codec.codec_id!r}: {codec.rate_hz} Hz hold no whole number of samples per frame "
                f"({hop:.3f} at {codec.frame_rate_hz} frames/s), so its frames cannot be cut apart: decode in one go"
            )
        if min(past, future, fade) < 0:
            raise ValueError(f"past, future and fade must be >= 0, got {past}, {future} and {fade}")
        self.codec, self.past, self.fade, self.held = codec, past, fade, future + fade
        self._hop = round(hop)  # samples per frame
        self._ids = np.zeros((0, codec.num_codebooks), dtype=np.int32)  # frames from `_first` on
        self._first = 0
        self._done = 0  # frames already output
        self._tail = np.zeros(0, dtype=np.float32)  # continuation of the previous window after them

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Codes [F, Q] -> the samples that are final by now.  Raises `DataError` for codes outside the codebook."""
        check_codes(codes, self.codec.num_codes, self.codec.num_codebooks, self.codec.codec_id)
        self._ids = np.concatenate([self._ids, codes.astype(np.int32)])
        return self._give(self._first + len(self._ids) - self.held)

    def finish(self) -> np.ndarray:
        """The rest."""
        return self._give(self._first + len(self._ids))

    def _give(self, until: int) -> np.ndarray:
        if until <= self._done:
            return np.zeros(0, dtype=np.float32)
        drop = max(0, self._done - self.past - self._first)
        self._ids, self._first = self._ids[drop:], self._first + drop
        window = AudioCodes(self._ids, self.codec.frame_rate_hz, self.codec.codec_id)
        samples = self.codec.decode([window])[0].samples[(self._done - self._first) * self._hop :].copy()
        n = min(len(self._tail), self.fade * self._hop, len(samples))
        ramp = np.linspace(0.0, 1.0, n, dtype=np.float32)
        # Written so that fading between two equal sounds changes no bit.
        samples[:n] = self._tail[:n] + ramp * (samples[:n] - self._tail[:n])
        given = samples[: (until - self._done) * self._hop]
        self._tail = samples[len(given) :]
        self._done = until
        return given
