"""Codecs without published weights: round trips, folders good and bad, refusals that say what to do."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
import torch

from ttt.audio.codecs.checks import standardize
from ttt.audio.codecs.mel import MelKmeans
from ttt.audio.codecs.precomputed import Precomputed
from ttt.audio.codecs.toy import Toy
from ttt.audio.kmeans import fit_neighbour_tables, kmeans, look_up, nearest
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.registry.families import CODEC
from ttt.rng import generator
from ttt.types import AudioCodes, Waveform

RATE_HZ = 16_000
SMALL = {"frame_rate_hz": 20.0, "num_codes": 12, "pca_dim": 6, "mels": 20, "iterations": 5, "griffin_lim_iterations": 4}


def vowels(number: int, duration_s: float = 0.6) -> Waveform:
    """Steady pieces of two partials each, drawn from eight pairs: something k-means can tell apart."""
    rng = np.random.default_rng(number)
    t = np.arange(round(0.15 * RATE_HZ)) / RATE_HZ
    pieces = []
    while sum(map(len, pieces)) < duration_s * RATE_HZ:
        k = int(rng.integers(8))
        pieces.append(0.2 * np.sin(2 * np.pi * (250 + 90 * k) * t) + 0.1 * np.sin(2 * np.pi * (1200 + 310 * k) * t))
    samples = np.concatenate(pieces)[: round(duration_s * RATE_HZ)] + 0.001 * rng.standard_normal(
        round(duration_s * RATE_HZ)
    )
    return Waveform(samples.astype(np.float32), RATE_HZ)


@pytest.fixture(scope="module")
def fitted() -> MelKmeans:
    codec = MelKmeans(**SMALL)
    codec.measured = codec.fit([vowels(i) for i in range(12)], seed=1)
    return codec


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "codec")
    return tmp_path / "codec"


# -- toy


def test_toy_round_trip_is_exact_for_every_code():
    codec = Toy().load()
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(32, dtype=np.int32), 3))[:, None]
    (wave,) = codec.decode([AudioCodes(ids, codec.frame_rate_hz, codec.codec_id)])
    assert wave.duration_s == pytest.approx(len(ids) / 50)
    np.testing.assert_array_equal(codec.encode([wave])[0].ids, ids)


def test_toy_stream_equals_one_shot():
    codec = Toy()
    ids = np.random.default_rng(0).integers(0, 32, (17, 1)).astype(np.int32)
    stream = codec.open_stream()
    pieces = [stream.push(ids[i : i + 5]) for i in range(0, 17, 5)] + [stream.finish()]
    np.testing.assert_array_equal(np.concatenate(pieces), codec.decode([AudioCodes(ids, 50.0, "toy")])[0].samples)


@pytest.mark.parametrize("fields", [{"num_codes": 400}, {"num_codes": 0}, {"frame_rate_hz": 37.0}])
def test_toy_refuses_what_cannot_be_told_apart(fields):
    with pytest.raises(ConfigError, match="codec.*must"):
        CODEC.build({"name": "toy", **fields}, "codec")


# -- mel_kmeans


def test_fit_is_deterministic_and_says_what_it_measured(fitted):
    twin = MelKmeans(**SMALL)
    assert twin.fit([vowels(i) for i in range(12)], seed=1) == fitted.measured
    assert twin.codec_id == fitted.codec_id and twin.codec_id.startswith("mel_kmeans-")
    measured = fitted.measured
    assert measured["frames"] == 12 * 12 and 2 < measured["perplexity"] <= 12
    assert measured["mse_pca"] <= measured["mse_decoder"] <= measured["mse_codes"]
    other = MelKmeans(**SMALL)
    other.fit([vowels(i) for i in range(12)], seed=2)
    assert other.codec_id != fitted.codec_id


@pytest.mark.parametrize("samples", [1, 799, 800, 801, 5000])
def test_frames_cover_the_whole_sound(fitted, samples):
    wave = Waveform(vowels(3).samples[:samples].copy(), RATE_HZ)
    (codes,) = fitted.encode([wave])
    assert codes.ids.shape == (-(-samples // 800), 1) and codes.ids.dtype == np.int32
    assert len(fitted.decode([codes])[0].samples) == 800 * len(codes.ids)


def test_encoding_does_not_change_or_keep_the_sound(fitted):
    wave = vowels(3)
    before = wave.samples.copy()
    fitted.encode([wave])
    np.testing.assert_array_equal(wave.samples, before)


def test_resynthesis_keeps_most_codes(fitted):
    """The codes of the decoded sound are those it was decoded from, nearly: the sound says what the codes say."""
    codec = MelKmeans(**{**SMALL, "griffin_lim_iterations": 16})
    codec.fit([vowels(i) for i in range(12)], seed=1)
    codes = codec.encode([vowels(i) for i in range(4)])
    again = codec.encode(codec.decode(codes))
    same = np.concatenate([a.ids == b.ids for a, b in zip(codes, again)])
    assert same.mean() > 0.6  # chance: about 0.15


def test_save_and_load_give_the_same_codes_and_sound(fitted, folder):
    loaded = MelKmeans(path=str(folder), griffin_lim_iterations=4).load()
    assert loaded.codec_id == fitted.codec_id
    assert (loaded.frame_rate_hz, loaded.num_codes, loaded.num_codebooks) == (20.0, 12, 1)
    (a,), (b,) = fitted.encode([vowels(20)]), loaded.encode([vowels(20)])
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(fitted.decode([a])[0].samples, loaded.decode([b])[0].samples)
    assert sorted(p.name for p in folder.iterdir()) == ["codec.json", "codec.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["codec"]  # no temporary folder is left


def test_settings_of_the_folder_win_and_the_log_says_so(folder, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = MelKmeans(path=str(folder), num_codes=512, frame_rate_hz=20.0).load()
    assert loaded.num_codes == 12 and "num_codes 512 -> 12" in caplog.text


def test_fitting_again_replaces_the_files_and_leaves_others(fitted, folder):
    (folder / "notes.txt").write_text("mine")
    other = MelKmeans(**SMALL)
    other.fit([vowels(i) for i in range(12)], seed=2)
    other.save(folder)
    assert MelKmeans(path=str(folder)).load().codec_id == other.codec_id
    assert (folder / "notes.txt").read_text() == "mine"


class Pwned:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was run')",))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: (f / "codec.safetensors").unlink(), "codec.safetensors is missing"),
        (lambda f: (f / "codec.json").unlink(), "codec.json is missing"),
        (lambda f: _cut(f / "codec.safetensors"), "damaged or cut short"),
        (lambda f: (f / "codec.safetensors").write_bytes(b""), "damaged or cut short"),
        (lambda f: (f / "codec.safetensors").write_bytes(pickle.dumps(Pwned())), "damaged or cut short"),
        (lambda f: (f / "codec.json").write_text("{"), "codec.json:1: not JSON"),
        (lambda f: (f / "codec.json").write_text("[]"), "codec.json: expected an object"),
        (lambda f: _edit(f, weights="00000000"), "do not belong together"),
        (lambda f: _edit(f, num_codes=13), "arrays of other shapes"),
        (lambda f: _edit(f, frame_rate_hz=17.0), "frame_rate_hz must be 100 / n"),
        (lambda f: _edit(f, mels=None), "do not describe a mel_kmeans codec"),
    ],
    ids=["no weights", "no json", "cut", "empty", "pickle", "bad json", "list", "mixed", "shape", "rate", "null"],
)  # fmt: skip
def test_bad_folder_is_refused_in_one_line_with_its_name_and_a_mend(folder, spoil, expected):
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        MelKmeans(path=str(folder)).load()
    message = str(caught.value)
    assert message.startswith(f"{folder}") and expected in message
    assert "ttt fit codec" in message and "\n" not in message


def _edit(folder, **values):
    record = json.loads((folder / "codec.json").read_text())
    (folder / "codec.json").write_text(json.dumps({**record, **values}))


def test_missing_path_folder_and_weights_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="codec.path: not set"):
        MelKmeans().load()
    with pytest.raises(CheckpointError, match="nowhere: no fitted codec here"):
        MelKmeans(path=str(tmp_path / "nowhere")).load()
    with pytest.raises(CheckpointError, match="holds no weights yet"):
        MelKmeans().encode([vowels(1)])
    with pytest.raises(CheckpointError, match="holds no weights yet"):
        MelKmeans().save(tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("codec_name", ["toy", "mel_kmeans"])
@pytest.mark.parametrize(
    ("wave", "expected"),
    [
        (Waveform(np.zeros(800, dtype=np.float32), 8000), "8000 Hz, expected 16000 Hz: resample"),
        (Waveform(np.zeros(0, dtype=np.float32), RATE_HZ), "holds no samples"),
        (Waveform(np.array([0.1, np.nan, np.inf] * 400, dtype=np.float32), RATE_HZ), "800 of 1200 samples are NaN"),
    ],
    ids=["rate", "empty", "nan"],
)
def test_encode_refuses_bad_sound(fitted, codec_name, wave, expected):
    codec = {"toy": Toy(), "mel_kmeans": fitted}[codec_name]
    with pytest.raises(DataError, match=f"{codec_name}.*{expected}"):
        codec.encode([vowels(1), wave])


@pytest.mark.parametrize("codec_name", ["toy", "mel_kmeans"])
@pytest.mark.parametrize("code", [-1, 1000])
def test_decode_refuses_codes_outside_the_book(fitted, codec_name, code):
    codec = {"toy": Toy(), "mel_kmeans": fitted}[codec_name]
    ids = np.array([[1], [code]], dtype=np.int32)
    with pytest.raises(DataError, match=f"code {code} is outside the codebook of {codec.num_codes}"):
        codec.decode([AudioCodes(ids, codec.frame_rate_hz, codec.codec_id)])
    with pytest.raises(DataError, match=f"code {code} is outside"):
        codec.open_stream().push(ids)
    with pytest.raises(DataError, match=r"shape \[2, 2\], expected \[F, 1\]"):
        codec.decode([AudioCodes(np.zeros((2, 2), dtype=np.int32), codec.frame_rate_hz, codec.codec_id)])


def test_too_little_sound_to_fit(fitted):
    with pytest.raises(DataError, match="12 frames of sound cannot fill 1024 codes.*num_codes"):
        MelKmeans(frame_rate_hz=20.0).fit([vowels(1)], seed=1)
    with pytest.raises(DataError, match="0 frames"):
        MelKmeans().fit([], seed=1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"frame_rate_hz": 30.0}, "must be 100 / n"),
        ({"frame_rate_hz": 0.0}, "frame_rate_hz: must be > 0"),
        ({"num_codes": 0}, "num_codes: must be >= 1"),
        ({"pca_dim": 999}, "pca_dim must be <= 160"),
        ({"min_magnitude": 0.0}, "min_magnitude: must be > 0"),
        ({"num_kodes": 5}, "Did you mean 'num_codes'"),
    ],
)
def test_bad_settings_name_the_key(fields, expected):
    with pytest.raises(ConfigError, match=f"codec.*{expected}"):
        CODEC.build({"name": "mel_kmeans", "frame_rate_hz": 25.0, "mels": 40, **fields}, "codec")


def test_residual_books_lower_the_error():
    errors = []
    for codebooks in (1, 3):
        codec = MelKmeans(**{**SMALL, "num_codebooks": codebooks})
        errors.append(codec.fit([vowels(i) for i in range(12)], seed=1)["mse_codes"])
    (codes,) = codec.encode([vowels(1)])
    assert codes.ids.shape == (12, 3) and codec.code_vectors().shape == (3, 12, 6)
    assert errors[1] < 0.7 * errors[0]


def test_level_makes_codes_blind_to_loudness():
    codec = MelKmeans(**{**SMALL, "level": True})
    codec.fit([vowels(i) for i in range(12)], seed=1)
    quiet = Waveform(0.5 * vowels(1).samples, RATE_HZ)
    a, b = codec.encode([vowels(1), quiet])
    assert (a.ids == b.ids).mean() > 0.9  # the floor still cuts the quiet one a little earlier
    assert len(codec.decode([a])[0].samples) == 9600


def test_stream_has_the_length_of_one_shot_and_no_clicks(fitted):
    (codes,) = fitted.encode([vowels(5, duration_s=2.0)])
    whole = fitted.decode([codes])[0].samples
    stream = fitted.open_stream()
    pieces = [stream.push(codes.ids[i : i + 8]) for i in range(0, len(codes.ids), 8)]
    assert sum(len(p) > 0 for p in pieces) >= 3  # it does stream
    pieces.append(stream.finish())
    joined = np.concatenate(pieces)
    assert joined.shape == whole.shape
    ends = np.cumsum([len(p) for p in pieces])[:-1]
    steps = np.abs(np.diff(joined))
    near = np.concatenate([steps[e - 3 : e + 3] for e in ends if 3 < e < len(joined) - 3])
    assert near.max() <= steps.max() and near.max() < 3 * np.quantile(np.abs(np.diff(whole)), 0.99)
    assert len(fitted.open_stream().finish()) == 0


# -- pieces


def test_kmeans_uses_every_code_and_nearest_equals_the_obvious_twin():
    gen = generator(1, "test")
    vectors = torch.randn(300, 3, generator=gen)
    centres = kmeans(vectors, 40, 10, gen)
    ids = nearest(vectors, centres)
    assert torch.equal(ids, torch.cdist(vectors, centres).argmin(1))
    assert len(ids.unique()) >= 38  # a code re-seeded in the last round may be empty


def test_kmeans_survives_equal_vectors():
    centres = kmeans(torch.ones(50, 2), 4, 3, generator(1, "test"))
    assert torch.isfinite(centres).all() and bool((centres == 1).all(1).any())


def test_neighbour_tables_find_what_neighbours_tell():
    gen = generator(1, "test")
    lengths = [40] * 50
    ids = torch.randint(4, (2000,), generator=gen)
    truth = torch.randn(3, 4, 2, generator=gen)
    rest = look_up(truth, ids, lengths)
    tables, left = fit_neighbour_tables(rest, ids, lengths, 4, 1)
    assert float(left.square().mean()) < 0.02 * float(rest.square().mean())
    torch.testing.assert_close(rest - look_up(tables, ids, lengths), left, atol=1e-4, rtol=1e-4)


def test_standardize():
    out = standardize(np.random.default_rng(0).normal(3, 5, (2, 9, 4)).astype(np.float32))
    np.testing.assert_allclose(out.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((1, 2)), 1, atol=1e-5)


# -- precomputed


def test_precomputed_describes_codes_and_refuses_sound():
    codec = CODEC.build({"name": "precomputed", "num_codes": 100, "label": "glm"}, "codec").load()
    assert (codec.codec_id, codec.num_codes, codec.code_vectors()) == ("glm", 100, None)
    for refused in (
        lambda: codec.encode([vowels(1)]), lambda: codec.decode([]), lambda: codec.open_stream()
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="codes come with the data: configure the codec that made them"):
            refused()
    assert isinstance(codec, Precomputed)
