"""Sound in pieces: bit for bit the one-shot sound of linear codecs, near it for others."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.unit.audio.codecs.test_simple_and_mel import SMALL, vowels
from ttt.audio.codecs.mel import MelKmeans
from ttt.audio.codecs.toy import Toy
from ttt.audio.signal import log_mel
from ttt.audio.streaming import CHUNK_FRAMES, ChunkedSound, WindowStream
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Codec
from ttt.types import AudioCodes, Waveform

HOP = 6


@dataclass
class OverlapAdd(Codec):
    """A linear codec: every code adds a template that reaches ``past`` frames back and ``future`` frames ahead of its own.

    Whole numbers, so that no order of additions rounds: equal means equal bit for bit.
    """

    past: int = 2
    future: int = 1
    num_codes: int = 17
    num_codebooks: int = 2
    context: tuple[int, int] = (2, 1)
    fade: int = 1
    rate_hz = 100 * HOP
    frame_rate_hz = 100.0
    codec_id = "overlap-add"

    def __post_init__(self) -> None:
        width = (self.past + 1 + self.future) * HOP
        rng = np.random.default_rng(7)
        self.templates = rng.integers(-50, 50, size=(self.num_codebooks, self.num_codes, width)).astype(np.float32)
        self.decoded_frames = 0

    def load(self, device="cpu"):
        return self

    def encode(self, waves):
        raise NotImplementedError

    def decode(self, codes):
        out = []
        for c in codes:
            self.decoded_frames += len(c.ids)
            frames = len(c.ids)
            samples = np.zeros((frames + self.past + self.future) * HOP, dtype=np.float32)
            for f, frame in enumerate(c.ids):
                for q, code in enumerate(frame):
                    samples[f * HOP : (f + self.past + 1 + self.future) * HOP] += self.templates[q, code]
            # A code's template begins `future` frames before it, so a frame needs `past` codes before and `future` behind.
            out.append(Waveform(samples[self.future * HOP : (self.future + frames) * HOP], self.rate_hz))
        return out

    def open_stream(self):
        return WindowStream(self, *self.context, self.fade)


def some_codes(codec, frames, seed=0):
    return np.random.default_rng(seed).integers(0, codec.num_codes, (frames, codec.num_codebooks)).astype(np.int32)


def one_shot(codec, codes):
    return codec.decode([AudioCodes(codes, codec.frame_rate_hz, codec.codec_id)])[0].samples


def cuts(rng, n):
    """Sizes, some of them 0, that add up to n."""
    sizes = []
    while n:
        sizes.append(min(int(rng.integers(0, 9)), n))
        n -= sizes[-1]
    return sizes


@pytest.mark.parametrize("past, future", [(0, 0), (2, 1), (5, 3)])
@pytest.mark.parametrize("fade", [0, 1, 2])
def test_windows_of_a_linear_codec_are_the_one_shot_sound_bit_for_bit(past, future, fade):
    codec = OverlapAdd(past=past, future=future, context=(past, future), fade=fade)
    rng = np.random.default_rng(1)
    for frames in (0, 1, 2, 9, 40):
        codes = some_codes(codec, frames, frames)
        expected = one_shot(codec, codes)
        for _ in range(5):
            stream = codec.open_stream()
            parts, at = [], 0
            for size in cuts(rng, frames):
                parts.append(stream.push(codes[at : at + size]))
                at += size
                given = sum(map(len, parts)) // HOP
                assert given == max(0, at - (future + fade)), "all that is final, and no more"
            parts.append(stream.finish())
            np.testing.assert_array_equal(np.concatenate(parts), expected)
            assert len(stream.finish()) == 0


def test_the_context_is_what_makes_it_exact():
    """The same test sees it when windows are too narrow on either side."""
    for context in ((1, 1), (2, 0)):
        codec = OverlapAdd(past=2, future=1, context=context)
        codes = some_codes(codec, 40)
        stream = codec.open_stream()
        got = np.concatenate([*(stream.push(codes[i : i + 5]) for i in range(0, 40, 5)), stream.finish()])
        assert got.shape == one_shot(codec, codes).shape and not np.array_equal(got, one_shot(codec, codes))


def test_a_fade_goes_from_the_old_window_to_the_new_one():
    """A codec whose level depends on the window: without a fade the joint jumps by 1, with one it climbs evenly."""

    class Restless(OverlapAdd):
        def decode(self, codes):
            self.decoded_frames += 1
            return [Waveform(np.full(len(c.ids) * HOP, float(self.decoded_frames), np.float32), 600) for c in codes]

    largest = {}
    for fade in (0, 2):
        codec = Restless(context=(4, 0), fade=fade)
        stream = codec.open_stream()
        sound = np.concatenate([*(stream.push(some_codes(codec, 6)) for _ in range(3)), stream.finish()])
        largest[fade] = np.abs(np.diff(sound)).max()
    assert largest[0] == 1.0 and largest[2] == pytest.approx(1 / (2 * HOP - 1), rel=1e-4)


def test_a_long_stream_decodes_windows_not_everything():
    codec = OverlapAdd(context=(8, 1))
    stream = codec.open_stream()
    for _ in range(100):
        stream.push(some_codes(codec, 5))
    assert codec.decoded_frames <= 100 * (5 + 8 + 2) and len(stream._ids) <= 5 + 8 + 2


@pytest.mark.parametrize("chunks", [CHUNK_FRAMES, (1,), (3, 5, 7), (1000,)])
def test_chunks_grow_as_told_and_change_no_sound(chunks):
    codec = OverlapAdd()
    codes = some_codes(codec, 230)
    handed = []

    class Counting(WindowStream):
        def push(self, codes):
            handed.append(len(codes))
            return super().push(codes)

    codec.open_stream = lambda: Counting(codec, 2, 1, 1)
    sound = ChunkedSound(codec, chunks)
    parts = [p for i in range(0, 230, 13) for p in sound.push(codes[i : i + 13])]
    assert all(len(p) for p in parts)
    parts.append(sound.finish())
    np.testing.assert_array_equal(np.concatenate(parts), one_shot(codec, codes))
    expected, left = [], 230
    while left:
        size = chunks[min(len(expected), len(chunks) - 1)]
        expected.append(min(size, left))
        left -= expected[-1]
    assert handed == expected


def test_the_first_sound_needs_the_first_chunk_only():
    codec = Toy()
    sound = ChunkedSound(codec, (4, 100))
    assert [len(p) for p in sound.push(some_codes(codec, 3))] == []
    assert [len(p) for p in sound.push(some_codes(codec, 2))] == [4 * 320]
    assert [len(p) for p in sound.push(some_codes(codec, 98))] == []
    assert len(sound.finish()) == 99 * 320 and len(sound.finish()) == 0


def test_chunks_of_one_push_are_decoded_one_by_one():
    """A large block does not delay its first piece by decoding all of it."""
    codec = OverlapAdd()
    parts = ChunkedSound(codec, (5, 50)).push(some_codes(codec, 55))
    assert len(next(parts)) == 3 * HOP and codec.decoded_frames == 5


@pytest.mark.parametrize("chunks, shown", [((), "got none"), ((5, 0), "got 5,0"), ((-1,), "got -1")])
def test_impossible_chunks(chunks, shown):
    with pytest.raises(ConfigError, match=f"chunk sizes: expected one or more numbers of frames >= 1, {shown}"):
        ChunkedSound(Toy(), chunks)


def test_wrong_codes_and_codecs_without_whole_frames():
    stream = OverlapAdd().open_stream()
    with pytest.raises(DataError, match=r"codec 'overlap-add': codes have shape \[2, 1\], expected \[F, 2\]"):
        stream.push(np.zeros((2, 1), np.int32))
    with pytest.raises(DataError, match="code 17 is outside the codebook of 17"):
        stream.push(np.full((2, 2), 17, np.int32))
    odd = OverlapAdd()
    odd.rate_hz = 655
    with pytest.raises(ConfigError, match="no whole number of samples per frame"):
        odd.open_stream()
    with pytest.raises(ValueError, match="past, future and fade must be >= 0"):
        WindowStream(OverlapAdd(), -1)


# -- a codec that is not linear


def decibels(a, b, codec):
    """Mean distance of two sounds' mels, in dB."""
    mels = [log_mel(torch.tensor(x), codec._mel).clamp(min=float(np.log(codec.min_magnitude))).numpy() for x in (a, b)]
    return 20 / np.log(10) * float(np.abs(mels[0] - mels[1]).mean())


@pytest.fixture(scope="module")
def fitted():
    codec = MelKmeans(**{**SMALL, "griffin_lim_iterations": 16})
    codec.fit([vowels(i) for i in range(12)], seed=1)
    return codec


def test_mel_kmeans_in_chunks_stays_near_the_one_shot_sound(fitted):
    """Griffin-Lim finds other phases, so waves differ; their mels differ far less than the one-shot sound's from the codes'."""
    for seed in (20, 21):
        (codes,) = fitted.encode([vowels(seed, duration_s=3.0)])
        whole = one_shot(fitted, codes.ids)
        target = fitted._mels(torch.tensor(codes.ids).long())
        found = log_mel(torch.tensor(whole), fitted._mel).clamp(min=float(np.log(fitted.min_magnitude)))
        own = 20 / np.log(10) * float((found - target).abs().mean())  # what the one-shot sound misses of its mels
        for chunks in (CHUNK_FRAMES, (10, 20), (5,)):
            sound = ChunkedSound(fitted, chunks)
            parts = [*sound.push(codes.ids), sound.finish()]
            streamed = np.concatenate(parts)
            assert streamed.shape == whole.shape
            assert decibels(streamed, whole, fitted) < 0.3 * own, chunks
            ends = np.cumsum([len(p) for p in parts])[:-1]
            steps = np.abs(np.diff(streamed))
            assert all(
                steps[e - 2 : e + 2].max() <= np.abs(np.diff(whole)).max() for e in ends if 2 < e < len(steps) - 2
            )
