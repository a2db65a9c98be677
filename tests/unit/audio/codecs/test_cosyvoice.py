"""The CosyVoice adapter on a stub of its program: what it hands over, the model's own rates, clear refusals; token files."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from ttt.audio.tokens import read_tokens, token_record
from ttt.audio.wav import read, write
from ttt.check.codecs import noise
from ttt.cli.main import main
from ttt.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

# Shaped as the published program: rates and sizes live in the model, sound comes in parts, mel frames have 256 samples.
STUB = """
import torch

class _Flow:
    vocab_size, input_frame_rate = {codes}, {frames}

class _Job:
    flow = _Flow()
    def {job}(self, text=None, source_speech_token=None, flow_prompt_speech_token=None, prompt_speech_feat=None,
              flow_embedding=None, stream=False, speed=1.0):
        self.seen = dict(token=source_speech_token, prompt=flow_prompt_speech_token, feat=prompt_speech_feat, voice=flow_embedding)
        mels = int(int(source_speech_token.shape[1] / {frames} * {rate} / 256) / speed)
        tone = source_speech_token.float().mean() / {codes}
        yield {{"tts_speech": torch.full((1, mels * 128), float(tone))}}
        yield {{"tts_speech": torch.full((1, mels * 128), 3.0)}}

class _Frontend:
    def frontend_vc(self, {vc}):
        frames = 0 if isinstance({first}, str) else {first}.shape[1]
        return dict(source_speech_token=None, flow_prompt_speech_token=torch.tensor([[frames]]),
                    prompt_speech_feat=torch.zeros(1, {feat}, 80), flow_embedding=torch.ones(1, 192), more=0)

class {name}:
    sample_rate = {rate}
    def __init__(self, folder):
        if "damaged" in folder:
            raise RuntimeError("flow.pt is cut short")
        self.model, self.frontend = _Job(), _Frontend()
"""
V1 = {"name": "CosyVoice", "codes": 4096, "frames": 50, "rate": 22050, "job": "vc",
      "vc": "source_speech_16k, prompt_speech_16k, resample_rate", "first": "prompt_speech_16k",
      "feat": "resample_rate"}  # fmt: skip
V2 = {"name": "CosyVoice2", "codes": 6561, "frames": 25, "rate": 24000, "job": "tts",
      "vc": "source_speech_16k, prompt_wav, resample_rate", "first": "prompt_wav", "feat": "resample_rate"}  # fmt: skip


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Builds (fields of the codec) for a version; the program is forgotten afterwards."""

    def make(version: dict = V1, file: str = "cosyvoice.yaml", model: str = "model") -> dict:
        package = tmp_path / "program" / "cosyvoice" / "cli"
        package.mkdir(parents=True, exist_ok=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "cosyvoice.py").write_text(STUB.format(**version))
        (tmp_path / model).mkdir(exist_ok=True)
        (tmp_path / model / file).touch()
        (tmp_path / model / "flow.pt").write_bytes(b"weights")
        t = np.arange(4 * 24000) / 24000
        write(tmp_path / "prompt.wav", Waveform(np.sin(700 * t).astype(np.float32) * 0.5, 24000))
        return {
            "name": "cosyvoice", "path": str(tmp_path / model), "code": str(tmp_path / "program"),
            "prompt": str(tmp_path / "prompt.wav"),
        }  # fmt: skip

    before = list(sys.path)
    yield make
    sys.path[:] = before
    for name in [n for n in sys.modules if n.partition(".")[0] == "cosyvoice"]:
        del sys.modules[name]


def codes(n: int, codec) -> AudioCodes:
    return AudioCodes(np.arange(n, dtype=np.int32)[:, None] % codec.num_codes, codec.frame_rate_hz, codec.codec_id)


def test_rates_are_the_models_and_438_tokens_of_v1_last_8_76_seconds(world):
    codec = CODEC.build(world(), "codec").load()
    assert (codec.rate_hz, codec.frame_rate_hz, codec.num_codes, codec.num_codebooks) == (22050, 50.0, 4096, 1)
    (wave,) = codec.decode([codes(438, codec)])
    assert wave.rate_hz == 22050 and wave.duration_s == pytest.approx(438 / 50)
    assert wave.samples.max() == 1.0, "clipped"
    seen = codec._model.seen
    assert seen["token"].tolist() == [list(range(438))] and seen["voice"].shape == (1, 192)
    assert seen["prompt"].tolist() == [[64000]], "four seconds at 16 kHz, resampled from 24"
    assert seen["feat"].shape[1] == 22050, "the prompt's mels are made at the model's own rate"
    assert not len(codec.decode([codes(0, codec)])[0].samples)
    faster = CODEC.build({**world(), "speed": 2.0}, "codec").load()
    assert faster.decode([codes(438, codec)])[0].duration_s == pytest.approx(438 / 100, rel=0.01)
    with pytest.raises(ConfigError, match=r"^codec\.speed: 2 cannot be streamed"):
        faster.open_stream()


def test_later_versions_have_other_rates_and_read_the_prompt_from_a_file(world):
    codec = CODEC.build(world(V2, "cosyvoice2.yaml"), "codec").load()
    assert (codec.rate_hz, codec.frame_rate_hz, codec.num_codes) == (24000, 25.0, 6561)
    assert codec.decode([codes(50, codec)])[0].duration_s == pytest.approx(2.0)
    assert codec._model.seen["prompt"].tolist() == [[0]], "handed over as a path"


def test_streams_as_long_as_the_whole(world):
    codec = CODEC.build(world(), "codec").load()
    said, decoder = codes(130, codec), codec.open_stream()
    parts = [decoder.push(said.ids[at : at + 25]) for at in range(0, 130, 25)] + [decoder.finish()]
    assert sum(map(len, parts)) == len(codec.decode([said])[0].samples) and len(parts[1])


def test_what_is_missing_is_named(world, tmp_path):
    good = world()

    def refused(error, message, **changes):
        with pytest.raises(error, match=message):
            CODEC.build({**good, **changes}, "codec").load()

    refused(CheckpointError, r"^codec\.path: not set: no CosyVoice model here; name a folder with cosyvoice", path="")
    refused(CheckpointError, r"^codec\.path: .*: no CosyVoice model here", path=str(tmp_path))
    refused(ConfigError, r"^codec\.prompt: not set: no such file; name a wav of the voice", prompt="")
    refused(ConfigError, r"^codec\.code: .*no folder 'cosyvoice' in it", code=str(tmp_path))
    refused(MissingExtraError, r"^codec: cosyvoice needs the CosyVoice program \(No module named 'cosyvoice", code="")
    write(tmp_path / "short.wav", Waveform(np.zeros(8000, dtype=np.float32), 16000))
    refused(DataError, r"short\.wav: 0\.5 s; a prompt lasts 1 to 30 s", prompt=str(tmp_path / "short.wav"))
    refused(
        CheckpointError,
        r"damaged: CosyVoice cannot load it: RuntimeError: flow\.pt is cut short",
        path=world(model="damaged")["path"],
    )
    refused(ConfigError, r"^codec\.speed: must be >= 0\.25 and <= 4", speed=9.0)
    codec = CODEC.build(good, "codec").load()
    with pytest.raises(ConfigError, match=r"^codec: cosyvoice encodes with codec\.tokenizer .* its tokens come with the data"):
        codec.encode([])
    with pytest.raises(DataError, match="4096"):
        codec.decode([AudioCodes(np.array([[4096]], dtype=np.int32), 50.0, "")])


class Tokenizer:
    """Stands for a class of s3tokenizer: notes what it is made of; a token is the sum of its mel frames, four for one."""

    made: ClassVar[list] = []

    def __init__(self, name: str) -> None:
        self.name, self.every = name, 2 if name == "speech_tokenizer_v1" else 4
        Tokenizer.made.append((type(self).__name__, name))

    def init_from_onnx(self, path: str) -> None:
        if Path(path).read_bytes() != b"onnx":
            raise KeyError("encoder.conv1.weight")

    def eval(self):
        return self

    def to(self, device):
        self.device = device
        return self

    def quantize(self, mels, frames):
        counts = -(-frames // self.every)
        sums = torch.nn.functional.pad(mels.sum(1), (0, -mels.shape[2] % self.every)).unflatten(1, (-1, self.every)).sum(2)
        return sums.long() % 4096, counts


@pytest.fixture
def s3tokenizer(monkeypatch, tmp_path):
    def padding(mels):
        frames = torch.tensor([m.shape[1] for m in mels])
        return torch.nn.utils.rnn.pad_sequence([m.T for m in mels], batch_first=True).transpose(1, 2), frames

    package = types.ModuleType("s3tokenizer")
    for name in ("S3Tokenizer", "S3TokenizerV2", "S3TokenizerV3"):
        setattr(package, name, type(name, (Tokenizer,), {}))
    package.log_mel_spectrogram = lambda x: x.reshape(-1, 160).abs().sum(1)[None].repeat(2, 1) * 100
    package.padding = padding
    monkeypatch.setitem(sys.modules, "s3tokenizer", package)
    monkeypatch.setattr(Tokenizer, "made", [])
    (tmp_path / "v2_v3.onnx").write_bytes(b"onnx")  # no version is read off the name
    return {"name": "cosyvoice", "tokenizer": str(tmp_path / "v2_v3.onnx")}


@pytest.mark.parametrize(
    "version, made, facts",
    [
        ("v1", ("S3Tokenizer", "speech_tokenizer_v1"), (22_050, 50.0, 4096)),
        ("v1_25hz", ("S3Tokenizer", "speech_tokenizer_v1_25hz"), (22_050, 25.0, 4096)),
        ("v2", ("S3TokenizerV2", "speech_tokenizer_v2_25hz"), (24_000, 25.0, 6561)),
        ("v3", ("S3TokenizerV3", "speech_tokenizer_v3_25hz"), (24_000, 25.0, 6561)),
    ],
)
def test_the_tokenizer_is_the_one_that_is_named_and_needs_no_decoder(s3tokenizer, version, made, facts):
    codec = CODEC.build({**s3tokenizer, "tokenizer_version": version}, "codec").load()
    assert Tokenizer.made == [made] and (codec.rate_hz, codec.frame_rate_hz, codec.num_codes) == facts
    assert codec.encode_rate_hz == 16_000 and codec.codec_id.startswith(f"cosyvoice-{version}-")
    waves = [noise(16_000, s, i) for i, s in enumerate((0.003, 0.5, 0.5021, 2.0))]
    together = codec.encode(waves)
    assert [len(c.ids) for c in together] == [int(np.ceil(len(w.samples) * facts[1] / 16_000)) for w in waves]
    for wave, codes in zip(waves, together, strict=True):
        np.testing.assert_array_equal(codec.encode([wave])[0].ids, codes.ids)
        assert codes.ids.dtype == np.int32 and codes.codec == codec.codec_id
    assert len({i for c in together for i in c.ids[:, 0].tolist()}) > 5
    with pytest.raises(ConfigError, match=r"^codec\.path: not set; cosyvoice decodes with"):
        codec.decode([])
    with pytest.raises(ConfigError, match=r"^codec\.path: not set"):
        codec.open_stream()
    with pytest.raises(DataError, match="22050 Hz, expected 16000 Hz"):
        codec.encode([noise(22_050, 0.5)])


def test_tokenizer_and_decoder_together(s3tokenizer, world):
    both = {**world(), **s3tokenizer}
    codec = CODEC.build({**both, "tokenizer_version": "v1"}, "codec").load()
    (codes,) = codec.encode([noise(16_000, 1.0)])
    assert codec.decode([codes])[0].duration_s == 1.0 and codec.rate_hz == 22_050
    assert codec.codec_id == CODEC.build({**s3tokenizer, "tokenizer_version": "v1"}, "codec").load().codec_id
    with pytest.raises(ConfigError, match=r"^codec\.tokenizer_version: v2 makes 25 tokens of 6561 .* takes 50 of 4096"):
        CODEC.build({**both, "tokenizer_version": "v2"}, "codec").load()


def test_what_a_tokenizer_lacks_is_named(s3tokenizer, tmp_path, monkeypatch):
    def refused(error, message, **changes):
        with pytest.raises(error, match=message):
            CODEC.build({**s3tokenizer, "tokenizer_version": "v2", **changes}, "codec").load()

    refused(ConfigError, r"^codec\.tokenizer_version: not set; to encode, name the file", tokenizer_version="")
    refused(ConfigError, r"^codec\.tokenizer: not set; to encode, name the file", tokenizer="")
    other = tmp_path / "other.onnx"
    refused(CheckpointError, r"^codec\.tokenizer: .*: no such file; name the speech_tokenizer_v1", tokenizer=str(other))
    other.write_bytes(b"another")
    refused(CheckpointError, r"other\.onnx does not hold a speech_tokenizer_v2_25hz \(KeyError", tokenizer=str(other))
    monkeypatch.setitem(sys.modules, "s3tokenizer", None)
    refused(MissingExtraError, r"^codec: cosyvoice encodes with the package s3tokenizer .*pip install 's3tokenizer>=0\.3'")


def test_token_files_and_the_verb(world, tmp_path, capsys):
    fields = world()
    settings = [f"codec.{k}={v}" for k, v in fields.items()]
    said = np.arange(438, dtype=np.int32)[:, None]
    record = token_record(said, 4096, 50.0, "cosyvoice-x")
    assert {k: v for k, v in record.items() if k != "speech_tokens"} == {
        "num_tokens": 438, "vocab_size": 4096, "frame_rate_hz": 50.0, "duration_seconds": 8.76, "codec": "cosyvoice-x",
    }  # fmt: skip
    path, out = tmp_path / "tokens.json", tmp_path / "out" / "said.wav"
    slamomni = {"speech_tokens": record["speech_tokens"], "num_tokens": 438, "vocab_size": 8192, "frame_rate_hz": 25,
                "duration_seconds": 17.52}  # fmt: skip
    for contents in (record, record["speech_tokens"], {"speech_tokens": record["speech_tokens"]}, slamomni):
        path.write_text(json.dumps(contents))
        assert main(["vocode", "--tokens", str(path), "--out", str(out), "--overwrite", *settings]) == 0
        wave = read(out)
        assert wave.rate_hz == 22050 and wave.duration_s == pytest.approx(8.76)
    assert main(["vocode", "--tokens", str(path), "--out", str(out), *settings]) == 2
    assert "was not made by ttt; name another file, or give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "contents, message",
    [
        ("{", "not JSON"), ("{}", "expected a list of whole numbers"), ("[]", "not an empty one"), ("[1, 2.5]", "whole numbers"),
        ("[true]", "whole numbers"), ("[0, 151673]", r"speech_tokens\[1\] is 151673, codes go from 0 to 4095; subtract the offset"),
        ('{"speech_tokens": [1], "vocab_size": 8192}', "vocab_size is 8192, the codec's is 4096"),
        ('{"speech_tokens": [1], "frame_rate_hz": 25}', "frame_rate_hz is 25, the codec's is 50"),
        ('{"speech_tokens": [1, 2], "num_tokens": 3}', "num_tokens is 3, but it holds 2"),
    ],
)  # fmt: skip
def test_token_files_that_do_not_fit_are_refused(contents, message, tmp_path):
    path = Path(tmp_path / "t.json")
    path.write_text(contents)
    with pytest.raises(DataError, match=message):
        read_tokens(path, 4096, 1, 50.0)
