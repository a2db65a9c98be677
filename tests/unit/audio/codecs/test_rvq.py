"""Residual codecs with codebooks at several rates: order of codes, round trips, folders, streams."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.unit.audio.codecs.test_simple_and_mel import RATE_HZ, vowels
from ttt.audio.codecs.mel import MelKmeans, Rvq
from ttt.audio.hierarchy import join, positions, split
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

SMALL = {"num_codes": 12, "pca_dim": 6, "mels": 20, "iterations": 5, "griffin_lim_iterations": 4}
SHAPES = {  # strides -> frame rate, positions a frame
    (4, 2, 1): (12.5, 7), (1, 1, 1): (25.0, 3), (2, 1): (16.667, 3), (2, 2, 1): (25.0, 4), (3,): (11.111, 1), (1, 2): (25.0, 3),
}  # fmt: skip


def build(strides, **fields) -> Rvq:
    return Rvq(**{**SMALL, "strides": list(strides), "frame_rate_hz": SHAPES[tuple(strides)][0], **fields})


@pytest.fixture(scope="module")
def fitted():
    """A codec of each shape."""
    torch.set_num_threads(1)
    out = {}
    for strides in SHAPES:
        out[strides] = codec = build(strides)
        codec.measured = codec.fit([vowels(i) for i in range(12)], seed=1)
    return out


# -- order


@pytest.mark.parametrize("strides", SHAPES)
def test_positions_hold_every_code_once_and_never_a_finer_one_before_its_coarse_one(strides):
    order = positions(strides)
    frame = max(strides)
    assert sorted(order) == sorted((b, n) for b, s in enumerate(strides) for n in range(frame // s))
    begins = [n * strides[b] for b, n in order]
    assert begins == sorted(begins)  # by time, so that a prefix of a frame is a prefix of its sound
    for (a, i), (b, j) in itertools.combinations(order, 2):
        assert i * strides[a] < j * strides[b] or a < b


@pytest.mark.parametrize("strides", SHAPES)
def test_join_and_split_are_inverse(strides):
    codes = np.random.default_rng(0).integers(0, 9, (5, len(positions(strides)))).astype(np.int32)
    codebooks = split(codes, strides)
    assert [len(b) for b in codebooks] == [5 * max(strides) // s for s in strides]
    np.testing.assert_array_equal(join(codebooks, strides), codes)


def test_one_more_level_nests():
    """Strides 8, 4, 2, 1: the second half of a frame is laid out like the first, after the coarse code."""
    order = positions([8, 4, 2, 1])
    assert len(order) == 15 and order[0] == (0, 0)
    first, second = order[1:8], order[8:]
    assert [(b, n - 2 ** (b - 1)) for b, n in second] == first


# -- codec


@pytest.mark.parametrize("strides", SHAPES)
def test_shapes_and_what_is_measured(fitted, strides):
    codec = fitted[strides]
    rate, num_codebooks = SHAPES[strides]
    assert codec.num_codebooks == num_codebooks and codec.frame_rate_hz == pytest.approx(rate, rel=1e-3)
    assert codec.codec_id.startswith("rvq-")
    hop = round(RATE_HZ / codec.frame_rate_hz)
    for samples in (1, hop, hop + 1, 5000):
        (codes,) = codec.encode([Waveform(vowels(3).samples[:samples].copy(), RATE_HZ)])
        assert codes.ids.shape == (-(-samples // hop), num_codebooks) and codes.ids.dtype == np.int32
        assert len(codec.decode([codes])[0].samples) == hop * len(codes.ids)
    measured = codec.measured
    assert measured["mse_pca"] <= measured["mse_decoder"] <= measured["mse_codes"]
    assert all(2 < measured[f"perplexity_{q}" if q else "perplexity"] <= 12 for q in range(len(strides)))


def test_equal_rates_are_plain_residual_books(fitted):
    """The same sizes as `mel_kmeans` with several codebooks: the same codes."""
    twin = MelKmeans(**{**SMALL, "frame_rate_hz": 25.0, "num_codebooks": 3, "context": 1})
    twin.fit([vowels(i) for i in range(12)], seed=1)
    (a,), (b,) = twin.encode([vowels(20)]), fitted[1, 1, 1].encode([vowels(20)])
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(twin.decode([a])[0].samples, fitted[1, 1, 1].decode([b])[0].samples)


def test_every_book_leaves_less(fitted):
    """Mean squared error of the mels when only the first positions are right and the rest are drawn."""
    codec = fitted[4, 2, 1]
    waves = [vowels(i) for i in range(30, 36)]
    codes = [c.ids for c in codec.encode(waves)]
    wanted = [codec._stacks(torch.tensor(w.samples))[0].reshape(-1, codec.mels) for w in waves]
    rng = np.random.default_rng(0)
    errors = []
    for codebooks in range(4):
        kept = [q for q, (codebook, _) in enumerate(positions(codec.strides)) if codebook < codebooks]
        total = 0.0
        for ids, mels in zip(codes, wanted, strict=True):
            some = rng.integers(0, codec.num_codes, ids.shape).astype(np.int32)
            some[:, kept] = ids[:, kept]
            total += float((codec._mels(some) - mels).square().mean())
        errors.append(total)
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.5 * errors[0]


def test_vectors_say_where_in_the_frame_a_code_speaks(fitted):
    codec = fitted[4, 2, 1]
    vectors = codec.code_vectors().reshape(7, 12, 4, 6)  # [Q, C, S, E]
    spread = vectors.std(1) > 0
    where = [spread[q].all(-1).tolist() for q in range(7)]
    assert where == [
        [True] * 4, [True, True, False, False], [True, False, False, False], [False, True, False, False],
        [False, False, True, True], [False, False, True, False], [False, False, False, True],
    ]  # fmt: skip


def test_save_and_load_give_the_same_codes_and_sound(fitted, tmp_path):
    codec = fitted[4, 2, 1]
    codec.save(tmp_path / "codec")
    loaded = CODEC.build({"name": "rvq", "path": str(tmp_path / "codec"), "griffin_lim_iterations": 4}, "codec").load()
    assert loaded.codec_id == codec.codec_id and loaded.strides == [4, 2, 1] and loaded.num_codebooks == 7
    (a,), (b,) = codec.encode([vowels(20)]), loaded.encode([vowels(20)])
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(codec.decode([a])[0].samples, loaded.decode([b])[0].samples)
    with pytest.raises(CheckpointError, match="do not describe a mel_kmeans codec.*num_codebooks"):
        MelKmeans(path=str(tmp_path / "codec")).load()


@pytest.mark.parametrize("size", [1, 3])
def test_stream_has_the_length_of_one_shot_and_starts_early(fitted, size):
    codec = fitted[4, 2, 1]
    (codes,) = codec.encode([vowels(21, duration_s=1.2)])
    whole = codec.decode([codes])[0].samples
    stream = codec.open_stream()
    pieces = [stream.push(codes.ids[i : i + size]) for i in range(0, len(codes.ids), size)]
    assert len(pieces[3 if size == 1 else 1])  # one frame of context is held back
    joined = np.concatenate([*pieces, stream.finish()])
    assert joined.shape == whole.shape and joined.std() > 0.5 * whole.std()


def test_refusals(fitted):
    for fields, message in (
        ({"strides": [4, 3]}, "strides must be >= 1 and divide the largest"), ({"strides": []}, "strides must be >= 1"),
        ({"strides": [4, 2, 1], "frame_rate_hz": 20.0}, "5 mel frames .* cannot be cut into 4 sub-frames"),
        ({"strides": [4, 1], "frame_rate_hz": 25.0, "pca_dim": 50}, "pca_dim must be <= 40"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            CODEC.build({"name": "rvq", **fields}, "codec")
    codec = fitted[4, 2, 1]
    with pytest.raises(DataError, match=r"'rvq': codes have shape \[2, 3\], expected \[F, 7\]"):
        codec.decode([AudioCodes(np.zeros((2, 3), dtype=np.int32), 12.5, codec.codec_id)])
    with pytest.raises(CheckpointError, match="'rvq' holds no weights yet"):
        build((4, 2, 1)).encode([vowels(1)])
