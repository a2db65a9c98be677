"""The CosyVoice adapter on a stub of its program: what it hands over, the model's own rates, clear refusals; token files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ttt.audio.tokens import read_tokens, token_record
from ttt.audio.wav import read, write
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
    with pytest.raises(ConfigError, match="^codec: cosyvoice only decodes; its tokens come with the data"):
        codec.encode([])
    with pytest.raises(DataError, match="4096"):
        codec.decode([AudioCodes(np.array([[4096]], dtype=np.int32), 50.0, "")])


def test_token_files_and_the_verb(world, tmp_path, capsys):
    fields = world()
    settings = [f"codec.{k}={v}" for k, v in fields.items()]
    said = np.arange(438, dtype=np.int32)[:, None]
    record = token_record(said, 4096, 50.0, "cosyvoice-x")
    assert {k: v for k, v in record.items() if k != "speech_tokens"} == {
        "num_tokens": 438, "vocab_size": 4096, "frame_rate_hz": 50.0, "duration_seconds": 8.76, "codec": "cosyvoice-x",
    }  # fmt: skip
    path, out = tmp_path / "tokens.json", tmp_path / "out" / "said.wav"
    for contents in (record, record["speech_tokens"]):
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
    ],
)  # fmt: skip
def test_token_files_that_do_not_fit_are_refused(contents, message, tmp_path):
    path = Path(tmp_path / "t.json")
    path.write_text(contents)
    with pytest.raises(DataError, match=message):
        read_tokens(path, 4096, 1, 50.0)
