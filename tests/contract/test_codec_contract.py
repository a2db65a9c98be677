"""Every codec that can be made offline keeps the same promises; a plug-in is tested the day it is registered."""

from __future__ import annotations

import numpy as np
import pytest

import ttt.audio.external  # noqa: F401  (registers the adapters of published codecs)
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.interfaces import TrainableCodec
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

SMALL = {"mel_kmeans": {"num_codes": 16, "pca_dim": 6, "mels": 20, "iterations": 3, "griffin_lim_iterations": 4}}


def noise(rate_hz: int, duration_s: float, seed: int = 0) -> Waveform:
    """Noise whose colour changes every tenth of a second."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(round(rate_hz * duration_s))
    for start in range(0, len(x), rate_hz // 10):
        width = int(rng.integers(1, 20))
        piece = x[start : start + rate_hz // 10]
        x[start : start + rate_hz // 10] = np.convolve(piece, np.ones(width) / width, "same")
    return Waveform((0.1 * x).astype(np.float32), rate_hz)


def offline(name: str, path: str = ""):
    """The codec, ready for use; fitted on noise if it learns.  Codecs that need published weights are skipped."""
    fields = dict(SMALL.get(name, {}))
    codec = CODEC.build({"name": name, **fields, **({"path": path} if path else {})}, "codec")
    if isinstance(codec, TrainableCodec) and not path:
        codec.fit([noise(codec.rate_hz, 0.7, seed) for seed in range(10)], seed=1)
        return codec
    try:
        codec.load()
        codec.encode([noise(codec.rate_hz, 0.5)])
    except (CheckpointError, ConfigError) as error:
        pytest.skip(f"{name}: needs weights or cannot encode ({error})")
    return codec


@pytest.fixture(scope="module", params=CODEC.names())
def codec(request):
    return offline(request.param)


def test_facts(codec):
    assert codec.rate_hz > 0 and codec.frame_rate_hz > 0 and codec.num_codes > 0 and codec.num_books > 0
    assert codec.codec_id.startswith(type(codec).registered_name)


@pytest.mark.parametrize("duration_s", [0.06, 0.5, 1.003])
def test_codes_have_the_right_shape_and_range_and_cover_the_sound(codec, duration_s):
    wave = noise(codec.rate_hz, duration_s)
    (codes,) = codec.encode([wave])
    assert codes.ids.dtype == np.int32 and codes.ids.shape[1] == codec.num_books
    assert len(codes.ids) == int(np.ceil(round(len(wave.samples) * codec.frame_rate_hz / codec.rate_hz, 6)))
    assert codes.ids.min() >= 0 and codes.ids.max() < codec.num_codes
    assert (codes.frame_rate_hz, codes.codec) == (codec.frame_rate_hz, codec.codec_id)
    (sound,) = codec.decode([codes])
    assert sound.rate_hz == codec.rate_hz
    assert len(sound.samples) == round(len(codes.ids) * codec.rate_hz / codec.frame_rate_hz)
    assert np.isfinite(sound.samples).all() and np.abs(sound.samples).max() <= 1


def test_same_answer_twice_and_in_any_company(codec):
    waves = [noise(codec.rate_hz, d, i) for i, d in enumerate((0.3, 0.8, 0.5))]
    together = codec.encode(waves)
    for wave, codes in zip(waves, together):
        np.testing.assert_array_equal(codec.encode([wave])[0].ids, codes.ids)
    sounds = codec.decode(together)
    for codes, sound in zip(together, sounds):
        alone = codec.decode([codes])[0].samples
        np.testing.assert_allclose(alone, sound.samples, atol=1e-4)  # batched transforms round differently


def test_nothing_in_nothing_out(codec):
    assert codec.encode([]) == [] and codec.decode([]) == []
    empty = AudioCodes(np.zeros((0, codec.num_books), dtype=np.int32), codec.frame_rate_hz, codec.codec_id)
    assert len(codec.decode([empty])[0].samples) == 0


def test_stream_gives_as_many_samples_as_one_shot_however_it_is_cut(codec):
    (codes,) = codec.encode([noise(codec.rate_hz, 1.5)])
    expected = len(codec.decode([codes])[0].samples)
    for size in (1, 7, 1000):
        stream = codec.stream_decoder()
        pieces = [stream.push(codes.ids[i : i + size]) for i in range(0, len(codes.ids), size)] + [stream.finish()]
        assert sum(map(len, pieces)) == expected
        assert all(p.dtype == np.float32 and np.isfinite(p).all() for p in pieces)
        assert len(stream.finish()) == 0


def test_code_vectors_are_standardised(codec):
    vectors = codec.code_vectors()
    if vectors is None:
        pytest.skip("this codec has no code vectors")
    assert vectors.dtype == np.float32 and vectors.shape[:2] == (codec.num_books, codec.num_codes)
    np.testing.assert_allclose(vectors.mean(1), 0, atol=1e-4)


def test_refusals(codec):
    with pytest.raises(DataError):
        codec.encode([noise(codec.rate_hz + 1, 0.5)])
    with pytest.raises(DataError):
        codec.encode([Waveform(np.zeros(0, dtype=np.float32), codec.rate_hz)])
    for code in (-1, codec.num_codes):
        ids = np.full((1, codec.num_books), code, dtype=np.int32)
        with pytest.raises(DataError, match=f"code {code} is outside the code book of {codec.num_codes}"):
            codec.decode([AudioCodes(ids, codec.frame_rate_hz, codec.codec_id)])


def test_what_was_learnt_survives_the_folder(codec, tmp_path):
    if not isinstance(codec, TrainableCodec):
        pytest.skip("nothing to save")
    codec.save(tmp_path / "c")
    again = offline(type(codec).registered_name, str(tmp_path / "c"))
    assert again.codec_id == codec.codec_id
    wave = noise(codec.rate_hz, 0.9, seed=99)
    np.testing.assert_array_equal(again.encode([wave])[0].ids, codec.encode([wave])[0].ids)
