"""Units of a speech encoder: features as transformers gives them, fitting, runs and durations, the unit vocoder, refusals."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from ttt.audio.codecs.units.codec import Units
from ttt.audio.codecs.units.decoder import fit_decoder
from ttt.audio.codecs.units.encoder import FrameSettings, SpeechEncoder
from ttt.audio.codecs.units.vocoder import CodeHifigan, load_vocoder
from ttt.audio.kmeans import kmeans, kmeans_in_batches, nearest
from ttt.audio.wav import read, write
from ttt.check.codecs import noise
from ttt.check.core import check
from ttt.cli.main import main
from ttt.continuation import continue_files
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.rng import generator
from ttt.types import AudioCodes

CONV = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": (16, 16, 16),
    "conv_stride": (5, 8, 8), "conv_kernel": (5, 8, 10), "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
WHISPER = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
KINDS = {
    "hubert": ("Hubert", CONV), "hubert_large": ("Hubert", {**CONV, **LARGE}), "wav2vec2": ("Wav2Vec2", CONV),
    "wavlm": ("WavLM", CONV), "wavlm_large": ("WavLM", {**CONV, **LARGE}), "whisper": ("Whisper", WHISPER),
}  # fmt: skip
FIELDS = {"layer": 1, "num_codes": 12, "normalize": "no", "decoder_steps": 1, "griffin_lim_iterations": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each kind of encoder, and the whole models."""
    made = {}
    for name, (kind, config) in KINDS.items():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            config = getattr(transformers, kind + "Config")(**config)
            model = getattr(transformers, kind + "Model")(config).eval()
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        made[name] = (folder, model)
    return made


@pytest.fixture(scope="module")
def fitted(folders, tmp_path_factory):
    """The folder of a codec fitted on noise, and its fields."""
    fields = {**FIELDS, "encoder": str(folders["hubert"][0])}
    codec = Units(**fields)
    measured = codec.fit([noise(16_000, 0.7, seed) for seed in range(6)], seed=3)
    folder = tmp_path_factory.mktemp("fitted")
    codec.save(folder)
    return {**fields, "path": str(folder)}, codec, measured


def sound(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.tensor(noise(16_000, seconds, seed).samples)


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "whisper"])
def test_features_are_hidden_states_and_the_last_vector_repeats(folders, kind):
    folder, model = folders[kind]
    x = sound(0.5)[:-75]
    for layer, pad in ((1, 0), (2, 0), (2, 40)):
        encoder = SpeechEncoder(folder, FrameSettings(layer, pad, "no"))
        states = encoder.features(x)
        with torch.no_grad():
            padded = torch.nn.functional.pad(x, (pad, pad))[None]
            whole = model(padded, output_hidden_states=True).hidden_states[layer][0]
        assert (encoder.hop, encoder.dim) == (320, 32) and len(states) == 25 and len(whole) == 24
        assert torch.equal(states[:24], whole) and torch.equal(states[24], whole[23])
    assert encoder.features(x[:7]).shape == (1, 32), "shorter than one window"
    first, second = (SpeechEncoder(folder, FrameSettings(layer, 0, "no")).digest for layer in (1, 2))
    assert first != second


def test_whisper_encodes_sound_of_any_length_without_padding_it_to_30_s(folders):
    folder, model = folders["whisper"]
    x = torch.nn.functional.pad(sound(2.0), (0, 28 * 16_000))
    mel = transformers.WhisperFeatureExtractor()(x.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    for layer in (1, 2):
        encoder = SpeechEncoder(folder, FrameSettings(layer))
        with torch.no_grad():
            whole = model.encoder(mel, output_hidden_states=True).hidden_states[layer][0]
        assert torch.allclose(encoder.features(x), whole, atol=1e-5) and encoder.hop == 320
    assert encoder.features(sound(0.5)[:-1]).shape == (25, 32)
    longer = encoder.features(torch.cat([x, x]))  # two pieces of 30 s
    assert len(longer) == 3000 and torch.equal(longer[:1500], encoder.features(x))


def test_a_long_recording_is_cut_into_equal_pieces_that_are_encoded_alone(folders):
    x = sound(1.0)
    short = SpeechEncoder(folders["wavlm"][0], FrameSettings(1, 0, "no", piece_s=0.4))
    whole = SpeechEncoder(folders["wavlm"][0], FrameSettings(1, 0, "no"))
    bounds = [0, 16 * 320, 33 * 320, 50 * 320]
    pieces = [whole.features(x[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    assert torch.equal(short.features(x), torch.cat(pieces))


def test_normalising_is_as_the_folder_says_or_has_to_be_said(folders, tmp_path):
    folder, model = folders["hubert_large"]
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json says.*set codec\.normalize"):
        SpeechEncoder(folder, FrameSettings(1))
    model.save_pretrained(tmp_path)
    for value, same in ((True, "yes"), (False, "no")):
        transformers.Wav2Vec2FeatureExtractor(do_normalize=value).save_pretrained(tmp_path)
        by_folder = SpeechEncoder(tmp_path, FrameSettings(1)).features(sound(0.2))
        assert torch.equal(by_folder, SpeechEncoder(folder, FrameSettings(1, 0, same)).features(sound(0.2)))
    extracted = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)(sound(0.2).numpy(), sampling_rate=16_000)
    by_hand = SpeechEncoder(folder, FrameSettings(1, 0, "no")).features(torch.tensor(extracted["input_values"][0]))
    assert torch.allclose(by_hand, SpeechEncoder(folder, FrameSettings(1, 0, "yes")).features(sound(0.2)), atol=1e-4)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="takes 8000 Hz"):
        SpeechEncoder(tmp_path, FrameSettings(1))


def test_mini_batches_find_the_clusters_and_one_batch_is_lloyd():
    gen = generator(0, "test")
    centres = 10 * torch.randn(6, 4, generator=gen)
    vectors = centres[torch.randint(6, (3000,), generator=gen)] + 0.1 * torch.randn(3000, 4, generator=gen)
    found = kmeans_in_batches(vectors.split(500), 6, 5, generator(1, "test"))
    means = torch.stack([vectors[nearest(vectors, found) == k].mean(0) for k in range(6)])
    assert torch.allclose(found, means, atol=1e-4), "each is the mean of all its vectors, not of the last batch's"
    once = kmeans_in_batches([vectors], 6, 5, generator(1, "test"))
    assert torch.equal(once, kmeans(vectors, 6, 5, generator(1, "test")))


@pytest.mark.parametrize("fields", [{}, {"pool": 2, "dedup": True}], ids=["plain", "pooled"])
def test_it_keeps_a_codecs_promises(folders, fields):
    codec = Units(**{**FIELDS, **fields}, encoder=str(folders["hubert"][0]))
    for result in check("codec", codec):
        assert not result.failed and result.outcome == "ok", f"{result.name}: {result.counter}"
    assert codec.frame_rate_hz == 50 / codec.pool and codec.encode_rate_hz == 16_000


def test_fitting_is_reproducible_and_the_folder_brings_it_back(fitted, folders, caplog):
    fields, codec, measured = fitted
    assert measured["frames"] == 6 * 35 and 1 < measured["perplexity"] <= 12 and measured["mean_duration"] >= 1
    again = Units(**{**fields, "path": ""})
    assert again.fit([noise(16_000, 0.7, seed) for seed in range(6)], seed=3) == measured
    assert again.codec_id == codec.codec_id
    caplog.set_level(logging.WARNING)
    loaded = Units(**{**fields, "num_codes": 500, "layer": 2}).load()
    assert "layer 2 -> 1" in caplog.text and (loaded.codec_id, loaded.num_codes) == (codec.codec_id, 12)
    wave = noise(16_000, 0.5)
    ids = loaded.encode([wave])[0]
    assert np.array_equal(ids.ids, codec.encode([wave])[0].ids)
    assert np.array_equal(loaded.decode([ids])[0].samples, codec.decode([ids])[0].samples)
    deaf = Units(path=fields["path"]).load()
    assert deaf.codec_id == codec.codec_id and len(deaf.decode([ids])[0].samples) == 8000
    with pytest.raises(ConfigError, match=r"^codec\.encoder: not set"):
        deaf.encode([wave])
    with pytest.raises(CheckpointError, match="another encoder"):
        Units(**{**fields, "encoder": str(folders["wavlm"][0])}).load()


@pytest.mark.parametrize("kind", ["hubert", "whisper"])
def test_in_half_precision_features_are_near_and_the_digest_is_the_same(folders, kind):
    settings = FrameSettings(2, 0, "no")
    full, half = (SpeechEncoder(folders[kind][0], settings, "cpu", dtype) for dtype in ("float32", "bfloat16"))
    a, b = full.features(sound(0.3)), half.features(sound(0.3))
    assert b.dtype == torch.float32 and not torch.equal(a, b) and torch.allclose(a, b, atol=0.1) and full.digest == half.digest


def test_a_damaged_folder_is_named(fitted, tmp_path):
    for file in Path(fitted[0]["path"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    info = json.loads((tmp_path / "codec.json").read_text())
    for change, reason in (({"num_codes": 13}, "size mismatch"), ({"hop": 160}, "size mismatch|other shapes"), ({"hop": None}, "")):
        (tmp_path / "codec.json").write_text(json.dumps({**info, **change}))
        with pytest.raises(CheckpointError, match=rf"do not describe a codec 'units' \(.*({reason}).*fit it again"):
            Units(path=str(tmp_path)).load()


def test_the_decoder_learns_the_mels_of_its_units_apart_from_the_voice():
    gen = generator(0, "test")
    table, loudness = torch.randn(5, 2, 3, generator=gen), torch.linspace(-3, 3, 7)
    units = [torch.randint(5, (20,), generator=gen) for _ in range(7)]
    mels = [(table[u].flatten(0, 1) + shift).half() for u, shift in zip(units, loudness, strict=True)]
    decoder, error = fit_decoder(units, mels, 5, 2, 5.0, 40, seed=1)
    assert error < 0.4, "without knowing the voices 0.6"
    with torch.no_grad():
        alone = decoder(units[0][None])
        padded = torch.stack([torch.nn.functional.pad(units[0], (0, 9)), torch.zeros(29, dtype=torch.long)])
        inside = torch.arange(29) < torch.tensor([[20], [1]])
        assert torch.allclose(decoder(padded, inside)[0, :40], alone[0], atol=1e-5), "padding changes nothing"
    assert abs(alone.mean() - mels[0].float().mean() - 3) < 1, "it speaks as the recording in the middle, whatever it reads"


def test_codes_without_runs_last_what_they_lasted_or_what_units_last_on_average(fitted):
    fields, plain, _ = fitted
    codec = Units(**fields, dedup=True).load()
    wave = noise(16_000, 1.0)
    (codes,), (whole,) = codec.encode([wave]), plain.encode([wave])
    assert (np.diff(codes.ids[:, 0]) != 0).all() and np.array_equal(np.repeat(codes.ids, codes.durations, 0), whole.ids)
    assert codes.duration_s == whole.duration_s and codec.codec_id != plain.codec_id and codec.code_rate_hz == 0
    assert np.array_equal(codec.decode([codes])[0].samples, plain.decode([whole])[0].samples)
    (guessed,) = codec.decode([dataclasses.replace(codes, durations=None)])
    expected = codec._weights["durations"][codes.ids[:, 0].astype(int)].round().clamp(min=1).sum()
    assert len(guessed.samples) == int(expected) * 320 == round(codec.duration_s(codes.ids) * 16_000)
    with pytest.raises(DataError, match="durations must be 2 whole numbers"):
        AudioCodes(codes.ids[:2], 50.0, "x", np.array([1, 0], dtype=np.int32))


@pytest.fixture
def published(folders, fitted, tmp_path):
    """Centroids as .npy and a vocoder with durations, as published: weights normalised, pickled under ``generator``."""
    np.save(tmp_path / "km.npy", fitted[1]._weights["centroids"].numpy().astype(np.float64))
    config = {
        "resblock": "1", "upsample_rates": [5, 4, 4, 4], "upsample_kernel_sizes": [11, 8, 8, 8], "upsample_initial_channel": 32,
        "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]], "num_embeddings": 12,
        "embedding_dim": 8, "model_in_dim": 16, "multispkr": "_", "num_speakers": 3, "sampling_rate": 16000, "f0": False,
        "dur_predictor_params": {
            "encoder_embed_dim": 8, "var_pred_hidden_dim": 8, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5,
        },
    }  # fmt: skip
    folder = tmp_path / "vocoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = CodeHifigan(config)
        model.dur_predictor.proj.bias.data.fill_(1.0)
    weights = {}
    for name, value in model.state_dict().items():
        if name.startswith(("conv_p", "ups", "resblocks")) and name.endswith("weight"):
            weights[name + "_g"] = value.flatten(1).norm(dim=1)[:, None, None]
            weights[name + "_v"] = 3 * value
        else:
            weights[name] = value
    torch.save({"generator": weights}, folder / "g_00500000")
    fields = {"encoder": fitted[0]["encoder"], "centroids": str(tmp_path / "km.npy"), "vocoder": str(folder)}
    return {**FIELDS, **fields}, model


def test_published_centroids_and_vocoder_need_no_fitting(published, fitted):
    fields, model = published
    codec = Units(**fields, speaker=2).load()
    wave = noise(16_000, 0.6)
    (codes,) = codec.encode([wave])
    assert np.array_equal(codes.ids, fitted[1].encode([wave])[0].ids)
    with torch.no_grad():
        said = model(torch.tensor(codes.ids[:, 0]).long(), 2).numpy()
    assert np.allclose(codec.decode([codes])[0].samples, said, atol=1e-5) and len(said) == 30 * 320
    for result in check("codec", Units(**fields, path=fitted[0]["path"], dedup=True)):
        assert result.outcome == "ok", f"{result.name}: {result.counter}"
    codec = Units(**fields, dedup=True).load()
    (runs,) = codec.encode([wave])
    lasts = model.durations(torch.tensor(runs.ids[:, 0]).long())
    assert lasts.min() >= 1 and lasts.max() > 1
    assert len(codec.decode([dataclasses.replace(runs, durations=None)])[0].samples) == 320 * int(lasts.sum())
    assert Units(**fields).load().codec_id != Units(**fields, speaker=1).load().codec_id


def test_each_step_of_the_vocoder_is_the_published_one(published):
    """Against weight-normalised layers put together by hand in the order of the published forward pass."""
    fields, model = published
    folder = Path(fields["vocoder"])
    weights = torch.load(folder / "g_00500000", weights_only=True)["generator"]
    ids = torch.tensor([3, 1, 1, 7])

    def conv(name, x, **options):
        v = weights[name + ".weight_v"]
        w = v * (weights[name + ".weight_g"] / v.flatten(1).norm(dim=1)[:, None, None])
        kind = torch.nn.functional.conv_transpose1d if name.startswith("ups") else torch.nn.functional.conv1d
        return kind(x, w, weights[name + ".bias"], **options)

    act = torch.nn.functional.leaky_relu
    x = torch.cat([weights["dict.weight"][ids].T, weights["spkr.weight"][1][:, None].expand(-1, 4)])[None]
    x = conv("conv_pre", x, padding=3)
    for i, (rate, kernel) in enumerate(zip([5, 4, 4, 4], [11, 8, 8, 8], strict=True)):
        x = conv(f"ups.{i}", act(x, 0.1), stride=rate, padding=(kernel - rate) // 2)
        total = 0
        for j, size in enumerate([3, 5]):
            y = x
            for k, dilation in enumerate([1, 3, 5]):
                name = f"resblocks.{2 * i + j}.convs"
                z = conv(f"{name}1.{k}", act(y, 0.1), dilation=dilation, padding=(size - 1) // 2 * dilation)
                y = y + conv(f"{name}2.{k}", act(z, 0.1), padding=(size - 1) // 2)
            total = total + y
        x = total / 2
    expected = torch.tanh(conv("conv_post", act(x), padding=3))[0, 0]
    with torch.no_grad():
        assert torch.allclose(load_vocoder(folder)[0](ids, 1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": ""}, r"^codec\.encoder: not set"),
        ({"encoder": "nowhere"}, r"^nowhere: no speech encoder here"),
        ({"layer": 3}, r"^codec\.layer: 3 asked for, .* has 2 layers"),
        ({"centroids": "km.joblib"}, r"km\.joblib: centroids are read from \.npy only.*cluster_centers_"),
        ({"num_codes": 13}, r"^codec\.num_codes: 13, but .* holds 12 centroids: set it to 12"),
        ({"centroids": "", "vocoder": ""}, r"^codec\.path: not set: fit it"),
        ({"speaker": 3}, r"^codec\.speaker: 3 is none of the vocoder"),
        ({"pool": 2}, r"frames per second: 50, the codec's: 25"),
    ],
)
def test_what_does_not_fit_is_named(published, change, message):
    with pytest.raises((CheckpointError, ConfigError), match=message):
        Units(**{**published[0], **change}).load()


@pytest.mark.parametrize("content", [b"", b"x", b"\x80\x04N."])
def test_centroids_that_are_no_array_are_refused_without_an_offer_to_unpickle_them(published, tmp_path, content):
    (tmp_path / "other.npy").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.npy: cannot be read \(not an array of numbers as numpy"):
        Units(**{**published[0], "centroids": str(tmp_path / "other.npy")}).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f0": True}, "f0 = True: vocoders that need more"), ({"resblock": "2"}, "resblock = '2'"),
        ({"num_speakers": 4}, "do not belong together.*spkr.weight"), ({"upsample_rates": None}, "describes no CodeHiFiGAN"),
    ],
)  # fmt: skip
def test_vocoders_of_other_kinds_are_named(published, change, message):
    path = Path(published[0]["vocoder"]) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_vocoder(path.parent)


def test_without_a_decoder_it_encodes_only(published):
    fields, _ = published
    codec = Units(**{**fields, "vocoder": ""}).load()
    (codes,) = codec.encode([noise(16_000, 0.2)])
    with pytest.raises(ConfigError, match="published centroids alone cannot be decoded"):
        codec.decode([codes])
    codec.dedup = True
    with pytest.raises(ConfigError, match="need a vocoder with a duration predictor, or a fitted"):
        codec.decode([codes])


def test_from_recordings_of_any_rate_to_codes_and_back_by_the_verbs(folders, tmp_path, capsys):
    corpus, lines = tmp_path / "corpus", []
    corpus.mkdir()
    for i, rate in enumerate((16_000, 8_000, 22_050, 16_000)):
        write(corpus / f"{i}.wav", noise(rate, 0.8, i))
        row = {"id": f"u{i}", "wav": f"{i}.wav", "text": "a", "duration_s": 0.8, "speaker": "a", "split": "train", "meta": {}}
        lines.append(json.dumps(row))
    (corpus / "train.jsonl").write_text("\n".join(lines) + "\n")
    fields = {**FIELDS, "encoder": folders["hubert"][0], "path": tmp_path / "codec", "dedup": "true"}
    settings = ["codec.name=units", *(f"codec.{k}={v}" for k, v in fields.items()), f"data.corpus={corpus}"]
    settings += [f"data.dir={tmp_path / 'data'}", "data.splits=[train]"]
    assert main(["fit", "codec", *settings]) == 0 and main(["tokenize", *settings]) == 0
    head, *rows = map(json.loads, (tmp_path / "data" / "codes" / "train.jsonl").read_text().splitlines())
    assert head["codec"].startswith("units-") and [sum(row["durations"]) for row in rows] == [40] * 4
    tokens = {"speech_tokens": rows[0]["codes"], "durations": rows[0]["durations"]}
    (tmp_path / "t.json").write_text(json.dumps(tokens))
    vocode = ["vocode", "--tokens", str(tmp_path / "t.json"), "--out", str(tmp_path / "out.wav"), *settings]
    assert main(vocode) == 0 and read(tmp_path / "out.wav").duration_s == 0.8
    (tmp_path / "t.json").write_text(json.dumps({**tokens, "durations": [1]}))
    assert main([*vocode, "--overwrite"]) == 2 and "durations must be a list of" in capsys.readouterr().err


def test_seconds_are_refused_where_runs_are_removed(fitted):
    codec = Units(**fitted[0], dedup=True).load()
    with pytest.raises(ConfigError, match=r"removes runs.*leave out --hole and --seconds"):
        continue_files(SimpleNamespace(codec=codec), [], [], longest_s=1.0)
