"""Adapters of published codecs, on tiny random models saved to a folder."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import ttt.audio.codecs.published
import ttt.audio.codecs.snac
from ttt.audio.codecs.causal_stream import CausalStream
from ttt.audio.streaming import WindowStream
from ttt.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

NAMES = ("encodec", "encodec_32khz", "dac", "mimi", "snac", "snac_windows")
# codebooks of several rates, none of which can be left out
HIERARCHICAL = ("snac", "snac_windows")
BY_BOOK = tuple(n for n in NAMES if n not in HIERARCHICAL)
SNAC = {
    "sampling_rate": 24_000, "encoder_dim": 4, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 32, "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None, "codebook_size": 16, "codebook_dim": 4, "vq_strides": [4, 2, 1], "noise": False, "depthwise": True,
}  # fmt: skip
# as the published 44 kHz model, with attention: four codebooks, fifteen positions
SNAC_WINDOWS = {**SNAC, "sampling_rate": 44_100, "encoder_rates": [2, 2, 2, 2], "decoder_rates": [2, 2, 2, 2],
                "decoder_dim": 64, "attn_window_size": 32, "vq_strides": [8, 4, 2, 1]}  # fmt: skip


def plugin(name: str) -> str:
    """Registered name of the adapter of a tiny model."""
    return name.split("_")[0]


def tiny_snac(folder, settings: dict):
    snac = pytest.importorskip("snac")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = snac.SNAC(**settings)
    (folder / "config.json").write_text(json.dumps(settings))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def tiny(name: str):
    transformers = pytest.importorskip("transformers")
    config = {
        "encodec": lambda: transformers.EncodecConfig(
            target_bandwidths=[0.6, 1.2], hidden_size=8, num_filters=4, codebook_size=16, codebook_dim=8, num_lstm_layers=1,
        ),
        "encodec_32khz": lambda: transformers.EncodecConfig(
            target_bandwidths=[0.8], sampling_rate=32_000, upsampling_ratios=[8, 5, 4, 4], hidden_size=8, num_filters=4,
            use_causal_conv=False,
            codebook_size=16, codebook_dim=8, num_lstm_layers=1,
        ),
        "dac": lambda: transformers.DacConfig(
            encoder_hidden_size=4, downsampling_ratios=[2, 4, 4, 5], decoder_hidden_size=32, n_codebooks=3,
            codebook_size=16, codebook_dim=4,
        ),
        "mimi": lambda: transformers.MimiConfig(
            hidden_size=16, num_filters=4, codebook_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8,
            num_quantizers=4, num_hidden_layers=1, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, upsample_groups=16, sliding_window=6,
        ),
    }[name]()  # fmt: skip
    model_class = {"encodec": "EncodecModel", "dac": "DacModel", "mimi": "MimiModel"}[plugin(name)]
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
        if name in HIERARCHICAL:
            tiny_snac(out[name], SNAC if name == "snac" else SNAC_WINDOWS)
        else:
            tiny(name).save_pretrained(out[name])
    return out


def noise(rate_hz: int, duration_s: float = 0.31, seed: int = 0) -> Waveform:
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(rate_hz * duration_s))
    return Waveform(samples.astype(np.float32), rate_hz)


def load(folders, name: str, half: str = "float32", **fields):
    return CODEC.build({"name": plugin(name), "path": str(folders[name]), **pickled(name), **fields}, "codec").load("cpu", half)


def pickled(name: str) -> dict[str, bool]:
    """SNAC is published as a pickle only."""
    return {"allow_pickle": True} if plugin(name) == "snac" else {}


EXPECTED = {
    "encodec": (24_000, 75.0, 4), "encodec_32khz": (32_000, 50.0, 4), "dac": (16_000, 100.0, 3), "mimi": (24_000, 12.5, 4),
    "snac": (24_000, 24_000 / 2048, 7), "snac_windows": (44_100, 44_100 / 128, 15),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_facts_shapes_and_repeatability(folders, name):
    codec = load(folders, name)
    assert (codec.rate_hz, codec.frame_rate_hz, codec.num_codebooks) == EXPECTED[name]
    waves = [noise(codec.rate_hz), noise(codec.rate_hz, 0.5, seed=1)]
    codes = codec.encode(waves)
    for wave, c in zip(waves, codes):
        assert c.ids.shape == (int(np.ceil(wave.duration_s * codec.frame_rate_hz)), codec.num_codebooks)
        assert c.ids.dtype == np.int32 and c.ids.min() >= 0 and c.ids.max() < codec.num_codes == 16
    sounds = codec.decode(codes)
    assert [len(s.samples) for s in sounds] == [round(len(c.ids) * codec.rate_hz / codec.frame_rate_hz) for c in codes]
    np.testing.assert_array_equal(codec.encode(waves[1:])[0].ids, codes[1].ids)  # rows do not mix
    vectors = codec.code_vectors()
    assert vectors.shape[:2] == (codec.num_codebooks, 16) and np.isfinite(vectors).all()
    again = load(folders, name)
    assert again.codec_id == codec.codec_id and codec.codec_id.startswith(f"{plugin(name)}-")


@pytest.mark.parametrize("name", NAMES)
def test_company_changes_nothing_and_causal_models_pad(folders, name, monkeypatch):
    """Rows share a batch of the network where that is exact, and only there: codes are those of one by one."""
    codec = load(folders, name)
    seconds = (0.2, 0.24, 0.31, 0.24, 0.9)
    waves = [noise(codec.rate_hz, s, seed=i) for i, s in enumerate(seconds)]
    rows = []
    real = type(codec)._encode
    monkeypatch.setattr(type(codec), "_encode", lambda self, model, x: rows.append(len(x)) or real(self, model, x))
    together = codec.encode(waves)
    causal = name in ("encodec", "mimi")
    assert len(rows) < len(waves) and (codec._causal == causal) and sum(rows) == len(waves)
    alone = [codec.encode([wave])[0] for wave in waves]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    for one, sound in zip(alone, codec.decode(together), strict=True):
        np.testing.assert_allclose(codec.decode([one])[0].samples, sound.samples, atol=2e-5)
    rows.clear()
    monkeypatch.setattr(ttt.audio.codecs.published, "BATCH_SAMPLES", 1)  # a bound of memory
    assert [c.ids.tolist() for c in codec.encode(waves)] == [c.ids.tolist() for c in alone] and rows == [1] * 5


@pytest.mark.parametrize("name", NAMES)
def test_streams_of_causal_models_are_exact(folders, name):
    """Joined pieces equal decoding at once, however they are cut, two streams at a time; others say that they do not."""
    codec = load(folders, name)
    causal = name in ("encodec", "mimi")
    assert codec.exact_stream == causal
    assert isinstance(codec.open_stream(), CausalStream if causal else WindowStream)
    if not causal:
        return
    frames = 23 if name == "mimi" else 41  # Mimi's decoder sees six positions, two a frame
    ids = np.random.default_rng(0).integers(0, 16, (2, frames, codec.num_codebooks)).astype(np.int32)
    whole = [w.samples for w in codec.decode([AudioCodes(i, codec.frame_rate_hz, codec.codec_id) for i in ids])]
    for sizes in ((1,), (3, 1, 8), (1000,)):
        streams, parts, at = [codec.open_stream(), codec.open_stream()], ([], []), 0
        while at < frames:
            size = sizes[at % len(sizes)]
            for stream, row, got in zip(streams, ids, parts, strict=True):
                got.append(stream.push(row[at : at + size]))
            at += size
        for stream, got, expected in zip(streams, parts, whole, strict=True):
            joined = np.concatenate([*got, stream.finish()])
            assert joined.shape == expected.shape and joined.dtype == np.float32
            np.testing.assert_allclose(joined, expected, atol=2e-5 * np.abs(expected).max())
            assert not len(stream.finish())
    again = codec.decode([AudioCodes(ids[0], codec.frame_rate_hz, codec.codec_id)])[0].samples
    np.testing.assert_array_equal(again, codec.decode([AudioCodes(ids[0], codec.frame_rate_hz, codec.codec_id)])[0].samples)
    assert not any("forward" in vars(m) for m in codec._model.modules())  # the layers are as they were
    short, stream = ids[0, :4], codec.open_stream()  # shorter than the padding by reflection
    joined = np.concatenate([stream.push(short), stream.finish()])
    np.testing.assert_allclose(joined, codec.decode([AudioCodes(short, codec.frame_rate_hz, "")])[0].samples, atol=1e-6)
    with pytest.raises(DataError, match="outside the codebook"):
        stream.push(np.full((1, codec.num_codebooks), 16, dtype=np.int32))


@pytest.mark.parametrize("name", ["encodec", "dac", "mimi", "snac"])
def test_half_precision_leaves_the_quantizer_and_the_id_alone(folders, name):
    whole, half = load(folders, name), load(folders, name, half="bfloat16")
    assert half.codec_id == whole.codec_id  # the weights are the same
    kinds = {n.split(".")[0]: v.dtype for n, v in half._model.named_parameters() if "quantizer" not in n}
    assert set(kinds.values()) == {torch.bfloat16} and {"encoder", "decoder"} <= set(kinds)
    inside = [v.dtype for v in half._model.quantizer.state_dict().values() if v.is_floating_point()]
    assert inside and set(inside) == {torch.float32}
    (codes,) = half.encode([noise(half.rate_hz)])
    assert codes.ids.shape == whole.encode([noise(half.rate_hz)])[0].ids.shape
    (sound,), (exact,) = half.decode([codes]), whole.decode([codes])
    error = np.sqrt(np.mean((sound.samples - exact.samples) ** 2) / np.mean(exact.samples**2))
    assert sound.samples.dtype == np.float32 and 0 < error < 0.1


def test_local_attention_of_snac_computes_in_float32_only(folders):
    with pytest.raises(ConfigError, match="'snac' cannot compute in float16; choices: float32"):
        load(folders, "snac_windows", half="float16")


@pytest.mark.parametrize("name", BY_BOOK)
def test_codes_equal_the_model_called_by_hand(folders, name):
    """The adapter adds padding and picks codebooks; nothing else."""
    codec = load(folders, name)
    frames = 6
    wave = noise(codec.rate_hz, frames / codec.frame_rate_hz)
    x = torch.tensor(wave.samples)[None, None]
    model = codec._model
    with torch.inference_mode():
        extra = {"bandwidth": model.config.target_bandwidths[-1]} if plugin(name) == "encodec" else {}
        ids = model.encode(x, **extra).audio_codes.reshape(codec.num_codebooks, frames)
    np.testing.assert_array_equal(codec.encode([wave])[0].ids, ids.T.numpy())


@pytest.mark.parametrize("name", BY_BOOK)
def test_sounds_equal_the_model_called_by_hand(folders, name):
    """A model opened anew, its quantizer and decoder one after the other, whatever the length.

    Where a decoder's odd strides lose the last samples (DAC's do), the adapter fills the frame with silence.
    """
    import transformers

    codec = load(folders, name)
    model = getattr(transformers, type(codec).model_class).from_pretrained(str(folders[name])).eval()
    rng = np.random.default_rng(4)
    several = [rng.integers(0, 16, (frames, codec.num_codebooks)).astype(np.int32) for frames in (9, 4, 1)]
    sounds = codec.decode([AudioCodes(ids, codec.frame_rate_hz, codec.codec_id) for ids in several])
    for ids, sound in zip(several, sounds, strict=True):
        x = torch.tensor(ids.T.copy()).long()[None]  # [1, Q, F]
        with torch.inference_mode():
            if plugin(name) == "encodec":
                by_hand = model.decoder(model.quantizer.decode(x.transpose(0, 1)))
            elif plugin(name) == "dac":
                by_hand = model.decoder(model.quantizer.from_codes(x)[0])
            else:
                by_hand = model.decode(x).audio_values
        wanted = by_hand.flatten().numpy()[: len(sound.samples)].clip(-1, 1)
        assert sound.rate_hz == codec.rate_hz
        assert 0 <= len(sound.samples) - len(wanted) < codec.rate_hz / codec.frame_rate_hz
        np.testing.assert_allclose(sound.samples[: len(wanted)], wanted, atol=1e-6)
        assert not sound.samples[len(wanted) :].any() and np.abs(wanted).max() > 1e-4


def test_snac_frames_are_in_the_order_of_the_hierarchy(folders):
    """q0 | q1 q4 | q2 q3 q5 q6, and decoding puts them back: equal to the package called by hand."""
    codec = load(folders, "snac")
    wave = noise(24_000, 3 * 2048 / 24_000)
    x = torch.tensor(wave.samples)[None, None]
    with torch.inference_mode():
        codebooks = [b[0].numpy() for b in codec._model.encode(x)]
        sound = codec._model.decode(codec._model.encode(x))[0, 0].numpy()
    (codes,) = codec.encode([wave])
    assert codes.ids.shape == (3, 7)
    np.testing.assert_array_equal(codes.ids[:, 0], codebooks[0])
    np.testing.assert_array_equal(codes.ids[:, [1, 4]].reshape(-1), codebooks[1])
    np.testing.assert_array_equal(codes.ids[:, [2, 3, 5, 6]].reshape(-1), codebooks[2])
    np.testing.assert_allclose(codec.decode([codes])[0].samples, sound, atol=1e-6)


def test_noise_of_the_decoder_is_drawn_anew_from_a_fixed_seed(tmp_path):
    tiny_snac(tmp_path, {**SNAC, "noise": True})
    codec = CODEC.build({"name": "snac", "path": str(tmp_path), "allow_pickle": True}, "codec").load()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    codes = codec.encode([noise(24_000)])
    one, two = codec.decode(codes)[0].samples, codec.decode(codes)[0].samples
    np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.rand(3), expected), "the global generator is left alone"


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_positions_of_a_hierarchy_cannot_be_left_out(folders, name):
    with pytest.raises(ConfigError, match="codec.num_codebooks: 2 asked for, .* belong together; leave it at 0"):
        load(folders, name, num_codebooks=2)


def test_the_missing_package_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "snac", None)
    with pytest.raises(MissingExtraError, match="'snac' needs the package snac: pip install snac"):
        load(folders, "snac")


@pytest.mark.parametrize("name", BY_BOOK)
def test_fewer_books(folders, name):
    codec, full = load(folders, name, num_codebooks=2), load(folders, name)
    wave = noise(codec.rate_hz)
    np.testing.assert_array_equal(codec.encode([wave])[0].ids, full.encode([wave])[0].ids[:, :2])
    assert codec.code_vectors().shape[0] == 2 and codec.codec_id != full.codec_id
    with pytest.raises(ConfigError, match=f"codec.num_codebooks: 9 asked for, .* has {full.num_codebooks}"):
        load(folders, name, num_codebooks=9)


@pytest.mark.parametrize("name", NAMES)
def test_stream_gives_the_length_of_one_shot_and_nearly_its_samples(folders, name):
    codec = load(folders, name)
    ids = np.random.default_rng(0).integers(0, 16, (20, codec.num_codebooks)).astype(np.int32)
    whole = codec.decode([AudioCodes(ids, codec.frame_rate_hz, codec.codec_id)])[0].samples
    stream = codec.open_stream()
    pieces = [stream.push(ids[i : i + 6]) for i in range(0, 20, 6)]
    assert any(len(p) for p in pieces)
    joined = np.concatenate([*pieces, stream.finish()])
    assert joined.shape == whole.shape
    # all windows start at the first frame here, so only frames near a joint differ, by what they see of the future
    assert np.sqrt(np.mean((joined - whole) ** 2)) < 0.3 * np.sqrt(np.mean(whole**2))


@pytest.mark.parametrize("name", NAMES)
def test_refusals(folders, name, tmp_path):
    with pytest.raises(CheckpointError, match=f"codec.path: not set for codec '{plugin(name)}': point codec.path"):
        CODEC.build({"name": plugin(name)}, "codec").load()
    with pytest.raises(
        CheckpointError, match=f"nowhere: no {plugin(name)} model here.*config.json is missing.*codec.path"
    ):
        CODEC.build({"name": plugin(name), "path": str(tmp_path / "nowhere")}, "codec").load()
    with pytest.raises(CheckpointError, match="holds no weights yet"):
        CODEC.build({"name": plugin(name)}, "codec").encode([])
    codec = load(folders, name)
    with pytest.raises(DataError, match=f"{plugin(name)}.*8000 Hz, expected {codec.rate_hz} Hz"):
        codec.encode([noise(8000)])
    bad = np.full((2, codec.num_codebooks), 16, dtype=np.int32)
    with pytest.raises(DataError, match=f"{plugin(name)}.*code 16 is outside the codebook of 16"):
        codec.decode([AudioCodes(bad, codec.frame_rate_hz, codec.codec_id)])


@pytest.mark.parametrize("name, weights", [("dac", "model.safetensors"), ("snac", "pytorch_model.bin")])
def test_damaged_weights_are_one_line(folders, tmp_path, name, weights):
    (tmp_path / "config.json").write_bytes((folders[name] / "config.json").read_bytes())
    (tmp_path / weights).write_bytes((folders[name] / weights).read_bytes()[:-500])
    with pytest.raises(CheckpointError) as caught:
        CODEC.build({"name": name, "path": str(tmp_path), **pickled(name)}, "codec").load()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
