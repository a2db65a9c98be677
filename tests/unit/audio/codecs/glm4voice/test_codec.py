"""The codec glm4voice from tiny folders: what a codec owes, encode only, decode only, ids, and the verbs that use it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from tests.glm4voice_folders import changing_sound, make_decoder_folder, make_tokenizer_folder
from ttt.audio.codecs.checks import same_codes
from ttt.audio.streaming import ChunkedSound
from ttt.audio.tokens import token_record
from ttt.audio.wav import read, write
from ttt.check.core import check
from ttt.cli.main import main
from ttt.data.manifest import Utterance, write_manifest
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.eval.measure_floor import measure_floor
from ttt.eval.normalizers import Words
from ttt.registry.families import CODEC
from ttt.tasks.prepare import read_codes
from ttt.types import AudioCodes, Waveform

CODES = 32  # as many as the tiny model of the suite has


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("glm4voice")
    make_tokenizer_folder(root / "tokenizer", quantize_vocab_size=CODES)
    make_decoder_folder(root / "decoder", codes=CODES)
    return {"path": str(root / "tokenizer"), "decoder": str(root / "decoder")}


def build(**fields):
    return CODEC.build({"name": "glm4voice", "steps": 1, **fields}, "codec")


def codes_of(codec, ids) -> AudioCodes:
    return AudioCodes(np.asarray(ids, dtype=np.int32)[:, None], codec.frame_rate_hz, codec.codec_id)


def test_it_owes_nothing(folders):
    results = {r.name: r for r in check("codec", build(**folders))}
    assert {name: r.counter for name, r in results.items() if r.outcome != "ok"} == {}
    assert "company" in results and "vectors" in results


@pytest.mark.parametrize("key, left_out", [("path", {"sound", "stream"}), ("decoder", {"codes", "vectors"})])
def test_one_direction_owes_what_it_does(folders, key, left_out):
    outcomes = {r.name: r.outcome for r in check("codec", build(**{key: folders[key]}))}
    assert {name for name, outcome in outcomes.items() if outcome != "ok"} == left_out
    assert {outcomes[name] for name in left_out} == {"-"}


def test_rates_lengths_and_vectors(folders):
    codec = build(**folders).load()
    assert (codec.encode_rate_hz, codec.rate_hz, codec.frame_rate_hz) == (16_000, 22_050, 12.5)
    assert (codec.num_codes, codec.num_codebooks, codec.exact_stream) == (CODES, 1, False)
    for samples in (150, 1279, 1280, 1281, 5000):
        (codes,) = codec.encode([Waveform(changing_sound(samples), 16_000)])
        assert codes.ids.shape == (-(-samples // 1280), 1)
    (sound,) = codec.decode([codes_of(codec, [1, 2, 3, 4])])
    assert sound.samples.shape == (4 * 1764,) and sound.rate_hz == 22_050
    vectors, stored = codec.code_vectors()[0], codec._tokenizer.codebook.weight.numpy()
    np.testing.assert_allclose(vectors * (stored - stored.mean(0)).std(), stored - stored.mean(0), atol=1e-5)
    with pytest.raises(DataError, match="holds no samples"):
        codec.encode([Waveform(np.zeros(0, dtype=np.float32), 16_000)])
    with pytest.raises(DataError, match="expected 16000 Hz"):
        codec.encode([Waveform(changing_sound(900), 22_050)])


def test_steps_reach_the_decoder(folders):
    ids = list(range(8))
    one, two = (build(**folders, steps=steps).load() for steps in (1, 3))
    whole, other = (c.decode([codes_of(c, ids)])[0].samples for c in (one, two))
    assert np.abs(whole - other).max() > 1e-3
    streams = [c.open_stream() for c in (one, two)]
    first, second = (np.concatenate([s.push(codes_of(one, ids).ids), s.finish()]) for s in streams)
    assert first.shape == whole.shape and np.abs(first - second).max() > 1e-3


def test_one_folder_alone(folders):
    both, encoder, decoder = (
        build(**folders).load(),
        build(path=folders["path"]).load(),
        build(decoder=folders["decoder"]).load(),
    )
    wave = Waveform(changing_sound(9000), 16_000)
    np.testing.assert_array_equal(encoder.encode([wave])[0].ids, both.encode([wave])[0].ids)
    codes = codes_of(decoder, [5, 4, 3])
    np.testing.assert_array_equal(decoder.decode([codes])[0].samples, both.decode([codes])[0].samples)
    assert decoder.code_vectors() is None and decoder.rate_hz == encoder.rate_hz == 22_050
    assert (decoder.num_codes, decoder.frame_rate_hz) == (encoder.num_codes, encoder.frame_rate_hz) == (CODES, 12.5)
    with pytest.raises(ConfigError, match=r"codec\.path: not set, so codec 'glm4voice' cannot encode"):
        decoder.encode([wave])
    for attempt in (lambda: encoder.decode([codes]), encoder.open_stream):
        with pytest.raises(ConfigError, match=r"codec\.decoder: not set, so codec 'glm4voice' cannot decode"):
            attempt()


def test_the_id_names_the_codebook(folders, tmp_path):
    both, encoder, decoder = (
        build(**folders).load(),
        build(path=folders["path"]).load(),
        build(decoder=folders["decoder"]).load(),
    )
    half = build(path=folders["path"]).load(dtype="bfloat16")
    other = build(path=str(make_tokenizer_folder(tmp_path, seed=1, quantize_vocab_size=CODES))).load()
    assert both.codec_id == encoder.codec_id == half.codec_id != other.codec_id
    assert decoder.codec_id == f"glm4voice-{CODES}"
    assert same_codes(encoder.codec_id, decoder.codec_id) and same_codes(decoder.codec_id, other.codec_id)
    assert not same_codes(encoder.codec_id, other.codec_id) and not same_codes("glm4voice-3", decoder.codec_id)


def test_codes_of_another_machine_are_known_by_name_and_size(folders, tmp_path):
    """Who only decodes reads what the tokenizer made elsewhere; another codebook is still refused."""
    encoder, decoder = build(path=folders["path"]).load(), build(decoder=folders["decoder"]).load()
    path = tmp_path / "codes.jsonl"
    path.write_text(f'{{"codec": "{encoder.codec_id}"}}\n{{"id": "a", "codes": [1, 2]}}\n')
    assert read_codes(path, decoder.codec_id, CODES, 1)["a"].tolist() == [[1], [2]]
    with pytest.raises(DataError, match="codes of codec"):
        read_codes(path, "glm4voice-16384", 16_384, 1)


def test_refusals(folders, tmp_path):
    with pytest.raises(CheckpointError, match="neither is set"):
        build().load()
    with pytest.raises(CheckpointError, match="holds no weights yet"):
        build(**folders).encode([])
    with pytest.raises(
        CheckpointError, match=r"knows 32 codes at 12\.5 a second, the tokenizer in .* makes 64 at 12\.5"
    ):
        build(**{**folders, "path": str(make_tokenizer_folder(tmp_path))}).load()


def test_another_process_loads_it_again(folders):
    codec = build(**folders).load(dtype="bfloat16")
    sent = pickle.dumps(codec)
    again = pickle.loads(sent)
    assert len(sent) < 2000 and again.codec_id == codec.codec_id and again._tokenizer.conv1.weight.dtype == torch.bfloat16
    wave = Waveform(changing_sound(9000), 16_000)
    np.testing.assert_array_equal(again.encode([wave])[0].ids, codec.encode([wave])[0].ids)
    assert pickle.loads(pickle.dumps(build(**folders))).codec_id == ""


def test_half_precision(folders):
    codec = build(**folders).load(dtype="bfloat16")
    (codes,) = codec.encode([Waveform(changing_sound(9000), 16_000)])
    (sound,) = codec.decode([codes])
    assert codec._tokenizer.conv1.weight.dtype == torch.bfloat16 and np.isfinite(sound.samples).all()


def test_from_a_recording_to_codes_to_sound(folders, tmp_path):
    """tokenize, vocode, floor, and the pieces of a stream."""
    for number, rate in enumerate((16_000, 48_000)):
        write(tmp_path / "corpus" / f"{number}.wav", Waveform(changing_sound(rate // 2, seed=number), rate))
    lines = [Utterance(f"u{i}", f"{i}.wav", "one two", 0.5, "her", "test") for i in range(2)]
    write_manifest(tmp_path / "corpus" / "test.jsonl", lines)
    settings = ["codec.name=glm4voice", "codec.steps=1", *(f"codec.{key}={value}" for key, value in folders.items())]
    places = [f"data.corpus={tmp_path / 'corpus'}", f"data.dir={tmp_path / 'data'}", "data.splits=[test]"]
    assert main(["tokenize", *settings, *places]) == 0
    codec = build(**folders).load()
    codes = read_codes(tmp_path / "data" / "codes" / "test.jsonl", codec.codec_id, CODES, 1)
    assert {name: len(ids) for name, ids in codes.items()} == {"u0": 7, "u1": 7}

    tokens, out = tmp_path / "tokens.json", tmp_path / "said.wav"
    tokens.write_text(json.dumps(token_record(codes["u0"], CODES, 12.5, codec.codec_id)))
    assert main(["vocode", "--tokens", str(tokens), "--out", str(out), *settings]) == 0
    wave = read(out)
    assert (wave.rate_hz, len(wave.samples)) == (22_050, 7 * 1764)

    heard = []

    class Judge:
        judge_id = "judge"

        def transcribe(self, waves):
            heard.extend((w.rate_hz, round(w.duration_s, 2)) for w in waves)
            return ["one two" for _ in waves]

    measure_floor([tmp_path / "corpus" / "test.jsonl"], codec, Judge(), Words(), tmp_path / "floor.json", resamples=20)
    assert (22_050, 0.56) in heard

    pieces = ChunkedSound(codec, (3,))
    sound = [*pieces.push(codes["u0"]), pieces.finish()]
    assert len(sound) > 1 and sum(map(len, sound)) == 7 * 1764
