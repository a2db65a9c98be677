"""Adapters of published codecs, on tiny random models saved to a folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ttt.audio.external  # noqa: F401  (registers the adapters)
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

NAMES = ("encodec", "dac", "mimi")


def tiny(name: str):
    transformers = pytest.importorskip("transformers")
    config = {
        "encodec": lambda: transformers.EncodecConfig(
            target_bandwidths=[0.6, 1.2], hidden_size=8, num_filters=4, codebook_size=16, codebook_dim=8, num_lstm_layers=1,
        ),
        "dac": lambda: transformers.DacConfig(
            encoder_hidden_size=4, downsampling_ratios=[2, 4, 4, 5], decoder_hidden_size=32, n_codebooks=3,
            codebook_size=16, codebook_dim=4,
        ),
        "mimi": lambda: transformers.MimiConfig(
            hidden_size=16, num_filters=4, codebook_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8,
            num_quantizers=4, num_hidden_layers=1, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, upsample_groups=16,
        ),
    }[name]()  # fmt: skip
    model_class = {"encodec": "EncodecModel", "dac": "DacModel", "mimi": "MimiModel"}[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(config)
        for key, value in model.named_buffers():
            if key.endswith(("embed", "embed_sum")):  # zero at birth: every code would be the same
                value.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = {}
    for name in NAMES:
        out[name] = tmp_path_factory.mktemp(name)
        tiny(name).save_pretrained(out[name])
    return out


def noise(rate_hz: int, duration_s: float = 0.31, seed: int = 0) -> Waveform:
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(rate_hz * duration_s))
    return Waveform(samples.astype(np.float32), rate_hz)


def load(folders, name: str, **fields):
    return CODEC.build({"name": name, "path": str(folders[name]), **fields}, "codec").load()


EXPECTED = {"encodec": (24_000, 75.0, 4), "dac": (16_000, 100.0, 3), "mimi": (24_000, 12.5, 4)}


@pytest.mark.parametrize("name", NAMES)
def test_facts_shapes_and_repeatability(folders, name):
    codec = load(folders, name)
    assert (codec.rate_hz, codec.frame_rate_hz, codec.num_books) == EXPECTED[name]
    waves = [noise(codec.rate_hz), noise(codec.rate_hz, 0.5, seed=1)]
    codes = codec.encode(waves)
    for wave, c in zip(waves, codes):
        assert c.ids.shape == (int(np.ceil(wave.duration_s * codec.frame_rate_hz)), codec.num_books)
        assert c.ids.dtype == np.int32 and c.ids.min() >= 0 and c.ids.max() < codec.num_codes == 16
    sounds = codec.decode(codes)
    assert [len(s.samples) for s in sounds] == [round(len(c.ids) * codec.rate_hz / codec.frame_rate_hz) for c in codes]
    np.testing.assert_array_equal(codec.encode(waves[1:])[0].ids, codes[1].ids)  # rows do not mix
    vectors = codec.code_vectors()
    assert vectors.shape[:2] == (codec.num_books, 16) and np.isfinite(vectors).all()
    again = load(folders, name)
    assert again.codec_id == codec.codec_id and codec.codec_id.startswith(f"{name}-")


@pytest.mark.parametrize("name", NAMES)
def test_codes_equal_the_model_called_by_hand(folders, name):
    """The adapter adds padding and picks books; nothing else."""
    codec = load(folders, name)
    frames = 6
    wave = noise(codec.rate_hz, frames / codec.frame_rate_hz)
    x = torch.tensor(wave.samples)[None, None]
    model = codec._model
    with torch.inference_mode():
        extra = {"bandwidth": model.config.target_bandwidths[-1]} if name == "encodec" else {}
        ids = model.encode(x, **extra).audio_codes.reshape(codec.num_books, frames)
    np.testing.assert_array_equal(codec.encode([wave])[0].ids, ids.T.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_fewer_books(folders, name):
    codec, full = load(folders, name, num_books=2), load(folders, name)
    wave = noise(codec.rate_hz)
    np.testing.assert_array_equal(codec.encode([wave])[0].ids, full.encode([wave])[0].ids[:, :2])
    assert codec.code_vectors().shape[0] == 2 and codec.codec_id != full.codec_id
    with pytest.raises(ConfigError, match=f"codec.num_books: 9 asked for, .* has {full.num_books}"):
        load(folders, name, num_books=9)


@pytest.mark.parametrize("name", NAMES)
def test_stream_gives_the_length_of_one_shot_and_nearly_its_samples(folders, name):
    codec = load(folders, name)
    ids = np.random.default_rng(0).integers(0, 16, (20, codec.num_books)).astype(np.int32)
    whole = codec.decode([AudioCodes(ids, codec.frame_rate_hz, codec.codec_id)])[0].samples
    stream = codec.stream_decoder()
    pieces = [stream.push(ids[i : i + 6]) for i in range(0, 20, 6)]
    assert any(len(p) for p in pieces)
    joined = np.concatenate([*pieces, stream.finish()])
    assert joined.shape == whole.shape
    # all windows start at the first frame here, so only frames near a joint differ, by what they see of the future
    assert np.sqrt(np.mean((joined - whole) ** 2)) < 0.3 * np.sqrt(np.mean(whole**2))


@pytest.mark.parametrize("name", NAMES)
def test_refusals(folders, name, tmp_path):
    with pytest.raises(CheckpointError, match=f"codec.path: not set for codec '{name}': point codec.path"):
        CODEC.build({"name": name}, "codec").load()
    with pytest.raises(CheckpointError, match=f"nowhere: no {name} model here.*config.json is missing.*codec.path"):
        CODEC.build({"name": name, "path": str(tmp_path / "nowhere")}, "codec").load()
    with pytest.raises(CheckpointError, match="holds no weights yet"):
        CODEC.build({"name": name}, "codec").encode([])
    codec = load(folders, name)
    with pytest.raises(DataError, match=f"{name}.*8000 Hz, expected {codec.rate_hz} Hz"):
        codec.encode([noise(8000)])
    bad = np.full((2, codec.num_books), 16, dtype=np.int32)
    with pytest.raises(DataError, match=f"{name}.*code 16 is outside the code book of 16"):
        codec.decode([AudioCodes(bad, codec.frame_rate_hz, codec.codec_id)])


def test_damaged_weights_are_one_line(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders["dac"] / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folders["dac"] / "model.safetensors").read_bytes()[:-500])
    with pytest.raises(CheckpointError) as caught:
        CODEC.build({"name": "dac", "path": str(tmp_path)}, "codec").load()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
