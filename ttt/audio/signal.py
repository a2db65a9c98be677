"""Resampling, mel spectrograms and Griffin-Lim.  Only this module imports torchaudio, inside the functions that need it.

Letters: ``B`` rows, ``S`` wav samples, ``T`` mel frames, ``M`` mel channels, ``K`` linear frequency channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ttt.errors import MissingExtraError
from ttt.rng import generator
from ttt.types import Waveform

if TYPE_CHECKING:
    from torch import Tensor


def torchaudio() -> Any:
    """The torchaudio package, or an error that says how to make it importable."""
    try:
        import torchaudio
    except (ImportError, OSError) as error:
        raise MissingExtraError(
            f"torchaudio cannot be imported ({type(error).__name__}: {error}): run 'make env' (tools/env.sh), which "
            "installs it beside CPU-only torch"
        ) from error
    return torchaudio


def resample(waveform: Waveform, rate_hz: int) -> Waveform:
    """The same sound at another rate: f32 [S] -> f32 [ceil(S * rate_hz / waveform.rate_hz)].

    Fast for many calls: the filter of each pair of rates is cached, and the input is zero-padded to one of a few
    lengths, because the first convolution of each new length costs about 5 ms of planning.
    """
    if waveform.rate_hz == rate_hz:
        return waveform
    length = len(waveform.samples)
    if not length:
        return Waveform(waveform.samples, rate_hz)
    import torch

    step = max(waveform.rate_hz // 4, 1)
    padded = torch.zeros(-(-length // step) * step)
    padded[:length] = torch.tensor(waveform.samples)
    with torch.inference_mode():
        samples = _resampler(waveform.rate_hz, rate_hz)(padded)
    target_length = -(-length * rate_hz // waveform.rate_hz)
    return Waveform(samples[:target_length].numpy().copy(), rate_hz)


@lru_cache(maxsize=16)
def _resampler(from_hz: int, to_hz: int) -> Any:
    torchaudio()
    from torchaudio.transforms import Resample

    return Resample(from_hz, to_hz)


@dataclass(frozen=True)
class MelSettings:
    """A mel spectrogram of magnitudes.  Frame t is centred on sample ``t * hop_samples``; the log is taken above ``min_magnitude``.

    ``min_magnitude`` is a mel magnitude; with Hann windows of 400 samples a full-scale sine has a magnitude of about
    100.
    """

    rate_hz: int = 16_000
    fft_samples: int = 512
    window_samples: int = 400
    hop_samples: int = 160
    mels: int = 80
    low_hz: float = 50.0
    high_hz: float = 8_000.0
    min_magnitude: float = 0.01


def log_mel(samples: Tensor, settings: MelSettings) -> Tensor:
    """Natural log of the mel magnitudes: f32 [S] or [B, S] -> f32 [T, M] or [B, T, M] with T = S // hop_samples."""
    magnitude = _stft(samples, settings).abs()[..., : samples.shape[-1] // settings.hop_samples]  # [..., K, T]
    mel = magnitude.transpose(-1, -2) @ mel_filters(settings).to(samples.device)
    return mel.clamp(min=settings.min_magnitude).log()


@lru_cache(maxsize=16)
def mel_filters(settings: MelSettings) -> Tensor:
    """Triangular filters f32 [K, M]."""
    functional = torchaudio().functional
    return functional.melscale_fbanks(
        settings.fft_samples // 2 + 1, settings.low_hz, settings.high_hz, settings.mels, settings.rate_hz
    )


def mel_to_linear(log_mels: Tensor, settings: MelSettings, iterations: int = 8) -> Tensor:
    """Linear magnitudes >= 0 whose mel is nearest: f32 [..., T, M] -> f32 [..., T, K].

    Non-negative least squares: the clipped pseudo-inverse, then ``iterations`` multiplicative updates.
    """
    filters, inverse = (m.to(log_mels.device) for m in _inverse(settings))
    mel = log_mels.exp()
    linear = (mel @ inverse).clamp(min=1e-4)
    target = mel @ filters.T  # [..., T, K]
    for _ in range(iterations):
        linear = linear * target / ((linear @ filters) @ filters.T + 1e-8)
    return linear


@lru_cache(maxsize=16)
def _inverse(settings: MelSettings) -> tuple[Tensor, Tensor]:
    import torch

    filters = mel_filters(settings)
    return filters, torch.linalg.pinv(filters)


def griffin_lim(
    magnitude: Tensor, frames: Sequence[int], settings: MelSettings, iterations: int = 32, momentum: float = 0.99,
    known: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Samples whose short-time magnitudes come near ``magnitude``: f32 [B, T, K] -> f32 [B, T * hop_samples].

    Row b has ``frames[b]`` <= T frames and is zero after ``frames[b] * hop_samples`` samples; its result does not
    depend on the other rows.  Fast Griffin-Lim (Perraudin et al. 2013) of our own, because torchaudio's draws its first
    phase from the global generator and cannot continue a sound: ``known`` f32 [B, P] holds samples that were already
    output.
    """
    import torch

    rows, width, channels = magnitude.shape
    hop = settings.hop_samples
    # Windows of frames after the end reach into the sound.  The first such frame repeats the last one, because otherwise
    # only the tail of one window would cover the last hop; the others are empty.  Shorter rows are padded in the same way.
    behind = -(-(settings.window_samples // 2) // hop)
    length = (width + behind - 1) * hop
    spectrum = torch.zeros(rows, width + behind, channels, device=magnitude.device)
    inside = torch.zeros(rows, length, dtype=torch.bool, device=magnitude.device)
    for row, count in enumerate(frames):
        if count:
            spectrum[row, :count] = magnitude[row, :count]
            spectrum[row, count] = magnitude[row, count - 1]
            inside[row, : count * hop] = True
    spectrum = spectrum.transpose(1, 2)  # [B, K, T + behind]
    turn = torch.rand(width + behind, channels, generator=generator(0, "griffin_lim")).T.to(magnitude.device)
    phase = torch.polar(torch.ones_like(turn), 2 * torch.pi * turn)[None]
    if known is not None:
        start = torch.nn.functional.pad(known, (0, length - known.shape[1]))
        num_known = known.shape[1] // hop  # frames whose centre is known keep the phase they have
        phase = phase.repeat(rows, 1, 1)
        phase[:, :, :num_known] = _unit(_stft(start, settings))[:, :, :num_known]
    before: Tensor | float = 0.0
    samples = magnitude.new_zeros(rows, length)
    for step in range(iterations + 1):
        samples = _istft(spectrum * phase, length, settings) * inside
        if known is not None:
            samples = torch.cat([known, samples[:, known.shape[1] :]], dim=1)
        if step == iterations:
            break
        spectrum_now = _stft(samples, settings)
        phase = _unit(spectrum_now + momentum * (spectrum_now - before)) if step else _unit(spectrum_now)
        before = spectrum_now
    return samples[:, : width * hop]


def _unit(spectrum: Tensor) -> Tensor:
    return spectrum / spectrum.abs().clamp(min=1e-12)


@lru_cache(maxsize=16)
def _window(settings: MelSettings, device: Any) -> Tensor:
    import torch

    return torch.hann_window(settings.window_samples, device=device)


def _stft(samples: Tensor, settings: MelSettings) -> Tensor:
    import torch

    return torch.stft(
        samples, settings.fft_samples, settings.hop_samples, settings.window_samples,
        _window(settings, samples.device), center=True, pad_mode="constant", return_complex=True,
    )  # fmt: skip


def _istft(spectrum: Tensor, length: int, settings: MelSettings) -> Tensor:
    import torch

    return torch.istft(
        spectrum, settings.fft_samples, settings.hop_samples, settings.window_samples,
        _window(settings, spectrum.device), center=True, length=length,
    )  # fmt: skip
