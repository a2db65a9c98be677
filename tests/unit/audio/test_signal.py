"""Mel and Griffin-Lim: shapes, agreement with torchaudio, a sound that comes back, rows that do not mix."""

from __future__ import annotations

import builtins
import math

import numpy as np
import pytest
import torch

from ttt.audio import signal
from ttt.audio.signal import MelSettings, griffin_lim, log_mel, mel_filters, mel_to_linear
from ttt.errors import MissingExtraError
from ttt.types import Waveform

MEL = MelSettings(mels=40)


def chirp(samples: int, start_hz: float = 300.0, stop_hz: float = 900.0) -> torch.Tensor:
    t = torch.arange(samples) / MEL.rate_hz
    return 0.3 * torch.sin(2 * math.pi * (start_hz * t + (stop_hz - start_hz) * t**2 / (2 * samples / MEL.rate_hz)))


@pytest.mark.parametrize("samples", [160, 161, 1599, 8000])
def test_log_mel_has_one_frame_per_hop(samples):
    one = log_mel(chirp(samples), MEL)
    assert one.shape == (samples // 160, 40)
    torch.testing.assert_close(log_mel(chirp(samples)[None], MEL)[0], one)


def test_log_mel_equals_torchaudio():
    """Same transform but for the padding at the ends: compare the frames between."""
    torchaudio = pytest.importorskip("torchaudio")
    twin = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=512, win_length=400, hop_length=160, f_min=50.0, f_max=8000.0, n_mels=40, power=1.0
    )(chirp(8000)).T.clamp(min=MEL.min_magnitude).log()  # fmt: skip
    torch.testing.assert_close(log_mel(chirp(8000), MEL)[3:47], twin[3:47], atol=1e-4, rtol=1e-4)


def test_silence_sits_on_the_floor():
    assert torch.equal(log_mel(torch.zeros(800), MEL), torch.full((5, 40), MEL.min_magnitude).log())


def test_mel_to_linear_finds_magnitudes_with_that_mel():
    mel = log_mel(chirp(4000), MEL)
    linear = mel_to_linear(mel, MEL, iterations=30)
    assert linear.shape == (25, 257) and float(linear.min()) >= 0
    again = (linear @ mel_filters(MEL)).clamp(min=MEL.min_magnitude).log()
    assert float((again - mel).abs().mean()) < 0.02


def test_sound_comes_back_and_more_iterations_bring_it_nearer():
    mel = log_mel(chirp(8000), MEL)
    linear = mel_to_linear(mel, MEL)[None]
    errors = []
    for iterations in (1, 16):
        samples = griffin_lim(linear, [50], MEL, iterations)
        assert samples.shape == (1, 8000)
        errors.append(float((log_mel(samples[0], MEL) - mel).abs().mean()))
    assert errors[1] < 0.7 * errors[0] and errors[1] < 0.2


def test_rows_do_not_depend_on_each_other_and_draws_touch_no_global_generator():
    short, long = (mel_to_linear(log_mel(chirp(n), MEL), MEL) for n in (1600, 4800))
    state = torch.random.get_rng_state()
    alone = griffin_lim(short[None], [10], MEL, 4)[0]
    both = griffin_lim(torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True), [10, 30], MEL, 4)
    torch.testing.assert_close(both[0, :1600], alone, atol=1e-5, rtol=1e-4)
    assert not both[0, 1600:].any()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_known_samples_are_kept_and_continued():
    sound = chirp(4800)
    linear = mel_to_linear(log_mel(sound, MEL), MEL)[None]
    samples = griffin_lim(linear, [30], MEL, 16, known=sound[None, :2400])[0]
    assert torch.equal(samples[:2400], sound[:2400])
    step = (samples[1:] - samples[:-1]).abs()
    assert float(step[2395:2405].max()) < 2 * float((sound[1:] - sound[:-1]).abs().max())  # no click at the joint


def test_without_torchaudio_the_error_names_the_mend(monkeypatch):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name == "torchaudio":
            raise OSError("libc10_cuda.so: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(MissingExtraError, match=r"libc10_cuda.so.*tools/env.sh"):
        signal.torchaudio()


def test_magnitude_of_a_full_scale_tone_is_what_the_settings_say():
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(8000) / 16_000)
    spectrum = torch.stft(tone, 512, 160, 400, torch.hann_window(400), return_complex=True).abs()
    assert float(spectrum.max()) == pytest.approx(100, rel=0.01)
    assert np.isfinite(log_mel(tone, MEL).numpy()).all()


def test_no_sound_stays_none_at_another_rate():
    made = signal.resample(Waveform(np.zeros(0, dtype=np.float32), 24_000), 16_000)
    assert made.rate_hz == 16_000 and made.samples.shape == (0,)
