"""Audio tokenizers of transformers through one adapter, on tiny random models saved to a folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttt.check.codecs import noise
from ttt.errors import CheckpointError, ConfigError
from ttt.registry.families import CODEC
from ttt.types import AudioCodes

transformers = pytest.importorskip("transformers")

BERT = {  # wav2vec2-bert, the semantic half of X-Codec 2 and NeuCodec
    "model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 3,
}  # fmt: skip
PAIR = {
    "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 8, "encoder_hidden_size": 2, "quantization_dim": 48, "quantization_levels": [4, 4, 2],
    "semantic_model_config": BERT,
}  # fmt: skip
DAC = {
    "encoder_hidden_size": 4, "downsampling_ratios": [8, 5, 4, 2], "decoder_hidden_size": 16, "upsampling_ratios": [8, 5, 4, 2],
    "hidden_size": 8,
}  # fmt: skip
HUBERT = {
    "model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": [4] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
TWO_HALVES = {
    "codebook_size": 16, "codebook_dim": 4, "acoustic_model_config": {"model_type": "dac", **DAC},
    "semantic_model_config": HUBERT,
    "target_bandwidths": [0.4, 0.8],
}  # fmt: skip
# name: (class, settings, (rate of recordings, rate of sound, frames/s, codebooks, codes))
MODELS = {
    "dac": (
        "Dac", {"sampling_rate": 16_000, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4, **DAC},
        (16_000, 16_000, 50, 3, 16),
    ),
    "xcodec2": ("Xcodec2", PAIR, (16_000, 16_000, 50, 1, 32)),
    "neucodec": ("NeuCodec", PAIR, (16_000, 24_000, 50, 1, 32)),
    "xcodec": ("Xcodec", {**TWO_HALVES, "codebook_dim": 24}, (16_000, 16_000, 50, 4, 16)),
    "higgs": ("HiggsAudioV2Tokenizer", {**TWO_HALVES, "sample_rate": 16_000}, (16_000, 16_000, 50, 4, 16)),
}  # fmt: skip


def save(folder, name: str, **changes):
    kind, settings, _ = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}Model")(config).eval()
        for key, value in model.named_buffers():
            if key.endswith("embed"):  # zero at birth: every code would be the same
                value.normal_()
    model.save_pretrained(folder)
    if name in ("xcodec2", "neucodec"):
        getattr(transformers, f"{kind}FeatureExtractor")().save_pretrained(folder)
    return model


def opened(folder, **fields):
    return CODEC.build({"name": "transformers_codec", "path": str(folder), **fields}, "codec").load()


@pytest.mark.filterwarnings("ignore")  # of transformers' own classes
@pytest.mark.parametrize("name", MODELS)
def test_facts_codes_and_sound_are_the_models(name, tmp_path):
    model, codec = save(tmp_path, name), opened(tmp_path)
    facts = (codec.encode_rate_hz, codec.rate_hz, codec.frame_rate_hz, codec.num_codebooks, codec.num_codes)
    assert facts == MODELS[name][2] and codec.codec_id.startswith("transformers_codec-")
    waves = [noise(codec.encode_rate_hz, s, i) for i, s in enumerate((0.31, 0.2, 0.31))]
    codes = codec.encode(waves)
    assert [c.ids.shape for c in codes] == [(16, codec.num_codebooks), (10, codec.num_codebooks), (16, codec.num_codebooks)]
    for wave, c, sound in zip(waves, codes, codec.decode(codes), strict=True):
        np.testing.assert_array_equal(codec.encode([wave])[0].ids, c.ids)
        assert len(sound.samples) == len(c.ids) * codec.rate_hz // 50 and np.isfinite(sound.samples).all()
    one = codec.decode([AudioCodes(codes[0].ids[:1], 50.0, codec.codec_id)])[0].samples
    assert len(one) == codec.rate_hz // 50 and np.isfinite(one).all()
    with torch.inference_mode():  # the class called by hand, on a whole number of frames
        wave = waves[1]
        x = torch.tensor(wave.samples)[None, None]
        if name in ("xcodec2", "neucodec"):
            extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
            given = extractor(wave.samples, sampling_rate=16_000, return_tensors="pt")
            ids = model.encode(given["input_values"], given["input_features"]).audio_codes[..., :10]
        else:
            ids = model.encode(x, **({"bandwidth": 0.8} if name in ("xcodec", "higgs") else {})).audio_codes
        by_hand = model.decode(audio_codes=ids).audio_values.flatten()
    np.testing.assert_array_equal(ids[0].T, codes[1].ids)
    sound = codec.decode(codes[1:2])[0].samples  # DAC's decoder ends some samples early
    np.testing.assert_allclose(by_hand[: len(sound)], sound[: len(by_hand)], atol=1e-5)
    assert len(sound) - len(by_hand) < 10
    vectors = codec.code_vectors()
    if name in ("xcodec2", "neucodec"):
        assert vectors is None  # the codes are points of a grid
    else:
        assert vectors.shape[:2] == (codec.num_codebooks, 16)


def test_fewer_codebooks_and_too_many(tmp_path):
    save(tmp_path, "dac")
    codec = opened(tmp_path, num_codebooks=2)
    (codes,) = codec.encode([noise(16_000, 0.2)])
    assert codes.ids.shape == (10, 2) and len(codec.decode([codes])[0].samples) == 3200
    with pytest.raises(ConfigError, match=r"^codec\.num_codebooks: 4 asked for, .* has 3$"):
        opened(tmp_path, num_codebooks=4)


def test_what_is_no_tokenizer_with_codes_is_refused_by_its_class(tmp_path):
    cases = {
        "gpt": (transformers.GPT2Config(), "GPT2Model has no method 'encode'; point codec.path at the folder of an audio"),
        "pocket": (transformers.PocketTTSAudioTokenizerConfig(), "PocketTTSAudioTokenizerModel.decode takes"),
        "mimi": (transformers.MimiConfig(), "it has a codec of its own: set codec.name=mimi"),
    }
    for name, (config, message) in cases.items():
        config.save_pretrained(tmp_path / name)  # no weights: they are not reached
        with pytest.raises(ConfigError, match=message):
            opened(tmp_path / name)
    with pytest.raises(CheckpointError, match="codec.path: not set"):
        opened("")


def test_a_model_that_does_not_do_what_its_configuration_says_is_refused(tmp_path, monkeypatch):
    save(tmp_path, "dac")
    real = transformers.DacModel.encode

    def every_other(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        result.audio_codes = result.audio_codes[..., ::2]
        return result

    monkeypatch.setattr(transformers.DacModel, "encode", every_other)
    with pytest.raises(ConfigError, match="DacModel gives 4 frames of 3 codes .* says 8 of 3 below 16"):
        opened(tmp_path)
    monkeypatch.setattr(transformers.DacModel, "encode", real)
    save(tmp_path, "dac", sampling_rate=24_000, upsampling_ratios=[8, 5, 4, 1])
    with pytest.raises(ConfigError, match="DacModel makes [0-9]+ samples of 8 frames, its configuration says 2560"):
        opened(tmp_path)
