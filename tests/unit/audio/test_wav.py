"""Wav files: what is written comes back, and every kind of bad file is refused with its name and a mend."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile

from ttt.audio import wav
from ttt.audio.signal import resample
from ttt.errors import DataError
from ttt.types import Waveform

RATE_HZ = 16_000


def tone(duration_s: float = 0.2, rate_hz: int = RATE_HZ, level: float = 0.3) -> Waveform:
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    return Waveform((level * np.sin(2 * np.pi * 440 * t)).astype(np.float32), rate_hz)


def test_round_trip_within_one_16_bit_step(tmp_path):
    wav.write(tmp_path / "sub" / "a.wav", tone())
    back = wav.read(tmp_path / "sub" / "a.wav", rate_hz=RATE_HZ)
    assert back.rate_hz == RATE_HZ
    np.testing.assert_allclose(back.samples, tone().samples, atol=1 / 32768)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.wav"]  # no temporary file is left


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.wav", "b.wav"):
        wav.write(tmp_path / name, tone())
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def _float_file(path, samples, rate_hz=RATE_HZ):
    soundfile.write(str(path), np.asarray(samples, dtype=np.float32), rate_hz, subtype="FLOAT", format="WAV")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: None, "no such wav file: check the path"),
        (lambda p: p.write_bytes(b"not a sound"), "not a readable sound file"),
        (lambda p: p.write_bytes(b""), "not a readable sound file"),
        (lambda p: _float_file(p, []), "holds no samples"),
        (lambda p: _float_file(p, tone(0.03).samples), "30 ms long, expected at least 50 ms"),
        (lambda p: _float_file(p, [np.nan, np.inf] + [0.1] * 4000), "2 of 4002 samples are NaN or infinite"),
        (lambda p: _float_file(p, np.full((4000, 2), 0.1)), "2 channels, expected 1"),
        (lambda p: _float_file(p, tone(rate_hz=8000).samples, 8000), "rate is 8000 Hz, expected 16000 Hz"),
    ],
    ids=["missing", "garbage", "zero bytes", "empty", "short", "nan", "stereo", "8 kHz"],
)
def test_bad_file_is_refused_in_one_line_with_its_name(tmp_path, make, expected):
    path = tmp_path / "bad.wav"
    make(path)
    with pytest.raises(DataError) as caught:
        wav.read(path, rate_hz=RATE_HZ)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and expected in message and "\n" not in message


def test_stereo_is_averaged_when_asked(tmp_path):
    left, right = tone(level=0.4).samples, tone(level=0.2).samples
    _float_file(tmp_path / "two.wav", np.stack([left, right], axis=1))
    back = wav.read(tmp_path / "two.wav", mono=True)
    np.testing.assert_allclose(back.samples, (left + right) / 2, atol=1e-6)


def test_the_mend_for_a_wrong_rate_works(tmp_path):
    wav.write(tmp_path / "low.wav", tone(rate_hz=8000))
    wav.write(tmp_path / "right.wav", resample(wav.read(tmp_path / "low.wav"), RATE_HZ))
    assert wav.read(tmp_path / "right.wav", rate_hz=RATE_HZ).duration_s == pytest.approx(0.2)


@pytest.mark.parametrize("length", [1, 441, 5512, 5513, 22050])
@pytest.mark.parametrize(("from_hz", "to_hz"), [(22050, 16000), (8000, 16000)])
def test_resample_equals_torchaudio_at_any_length(length, from_hz, to_hz):
    """The zeros that `resample` adds to meet few lengths change nothing; 1e-6: rounding of the sums."""
    torch, torchaudio = pytest.importorskip("torch"), pytest.importorskip("torchaudio")
    samples = np.random.default_rng(1).standard_normal(length).astype(np.float32)
    twin = torchaudio.transforms.Resample(from_hz, to_hz)(torch.tensor(samples)).numpy()
    found = resample(Waveform(samples, from_hz), to_hz)
    assert found.rate_hz == to_hz
    np.testing.assert_allclose(found.samples, twin, atol=1e-6)


def test_write_refuses_nan_and_keeps_the_old_file(tmp_path):
    wav.write(tmp_path / "a.wav", tone())
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(DataError, match="1 of 3 samples to write are NaN"):
        wav.write(tmp_path / "a.wav", Waveform(np.array([0, np.nan, 0], dtype=np.float32), RATE_HZ))
    with pytest.raises(DataError, match="nothing to write"):
        wav.write(tmp_path / "a.wav", Waveform(np.zeros(0, dtype=np.float32), RATE_HZ))
    assert (tmp_path / "a.wav").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_clipping_on_write_is_logged_with_its_count(tmp_path, caplog):
    loud = Waveform(np.array([0.5, 1.5, -1.5] * 1000, dtype=np.float32), RATE_HZ)
    with caplog.at_level(logging.WARNING):
        wav.write(tmp_path / "loud.wav", loud)
    assert "2000 of 3000 samples lie beyond" in caplog.text
    assert np.abs(wav.read(tmp_path / "loud.wav").samples).max() <= 1.0
    assert loud.samples.max() == 1.5  # the caller's array is left alone


def test_check_speech_refuses_silence_only():
    wav.check_speech(tone())
    with pytest.raises(DataError, match="item 3: silent all through"):
        wav.check_speech(Waveform(np.full(16000, 1e-4, dtype=np.float32), RATE_HZ), "item 3")
    with pytest.raises(DataError, match="level -inf dB"):
        wav.check_speech(Waveform(np.zeros(16000, dtype=np.float32), RATE_HZ))
