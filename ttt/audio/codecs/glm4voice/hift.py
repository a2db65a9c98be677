"""Mel to sound: the vocoder of GLM-4-Voice's ``hift.pt``, a HiFT generator.

HiFTNet (arXiv 2309.09493): a network predicts the pitch, sines at its multiples and noise are the source, and a generator of
HiFi-GAN's kind with snake activations (arXiv 2006.08195) shapes it into the magnitude and phase of a small inverse STFT.
Official program: ``cosyvoice/hifigan/generator.py`` (HiFTGenerator, SineGen, SourceModuleHnNSF),
``cosyvoice/hifigan/f0_predictor.py`` (ConvRNNF0Predictor).  Modules are named as the arrays of the published file, whose weight
normalisation is resolved when it is read.

Letters: ``M`` mel bins, ``F`` mel frames, ``S`` samples (256 per frame as published), ``h`` harmonics.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.audio.codecs.glm4voice.files import HiftConfig


class Hift(nn.Module):
    """Mel [1, M, F] to sound [1, S], S = F * `samples_per_frame`."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        stft, rates = config.istft_params, config.upsample_rates
        self.samples_per_frame = math.prod(rates) * stft.hop_len
        self.m_source = nn.ModuleDict({"l_linear": nn.Linear(config.nb_harmonics + 1, 1)})
        self.f0_predictor = F0Predictor(config.f0_predictor.in_channels, config.f0_predictor.cond_channels)
        self.conv_pre = nn.Conv1d(config.in_channels, config.base_channels, 7, padding=3)
        widths = [config.base_channels >> i for i in range(len(rates) + 1)]
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(a, b, kernel, rate, (kernel - rate) // 2)
            for a, b, kernel, rate in zip(widths, widths[1:], config.upsample_kernel_sizes, rates)
        )
        self.source_downs = nn.ModuleList()
        for i, width in enumerate(widths[1:]):
            rate = math.prod(rates[i + 1 :])  # from the frames of the source's STFT down to those of this level
            kernel = 2 * rate if rate > 1 else 1
            self.source_downs.append(nn.Conv1d(stft.n_fft + 2, width, kernel, rate, rate // 2))
        self.source_resblocks = nn.ModuleList(
            ResBlock(*sizes)
            for sizes in zip(widths[1:], config.source_resblock_kernel_sizes, config.source_resblock_dilation_sizes)
        )
        self.resblocks = nn.ModuleList(
            ResBlock(width, *sizes)
            for width in widths[1:]
            for sizes in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes)
        )
        self.conv_post = nn.Conv1d(widths[-1], stft.n_fft + 2, 7, padding=3)

    def forward(self, mel: Tensor, generator: torch.Generator, source_start: Tensor) -> tuple[Tensor, Tensor]:
        """Sound and source, both f32 [1, S].

        ``source_start`` [1, n] takes the place of the source's first n samples (of the sound before, in a stream); the rest
        is made with the draws of ``generator``, which lives on the CPU.
        """
        phase, noise = self.draws(mel.shape[-1], generator)
        source = self.source(self.f0_predictor(mel), phase.to(mel), noise.to(mel))
        source[:, : source_start.shape[1]] = source_start
        return self.sound(mel, source), source

    def draws(self, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Phases [1, h, 1], uniform between -pi and pi, and normal noise [1, h, S], in the official program's order."""
        harmonics = self.config.nb_harmonics + 1
        phase = torch.rand(1, harmonics, 1, generator=generator) * (2 * math.pi) - math.pi
        return phase, torch.randn(1, harmonics, frames * self.samples_per_frame, generator=generator)

    def source(self, f0: Tensor, phase: Tensor, noise: Tensor) -> Tensor:
        """Sines at 1, 2, ... times the pitch ``f0`` [1, F] (Hz) where it is voiced, noise everywhere, mixed: [1, S].

        ``phase`` [1, h, 1]: where the sines start; the first starts at 0.  ``noise`` [1, h, S].
        """
        config, n = self.config, self.samples_per_frame
        turns = f0.double()[:, None] * torch.arange(1, phase.shape[1] + 1, device=f0.device)[:, None] / config.sampling_rate
        # Turns per sample, constant in a frame: summed in double precision and kept below 1, so that long sounds stay exact.
        before = (turns.cumsum(-1) - turns) * n
        within = torch.arange(1, n + 1, device=f0.device) * turns[..., None]
        angle = ((before[..., None] + within) % 1.0).flatten(2).float() * (2 * math.pi)  # [1, h, S]
        phase = torch.cat([torch.zeros_like(phase[:, :1]), phase[:, 1:]], 1)
        voiced = (f0 > config.nsf_voiced_threshold).float().repeat_interleave(n, 1)[:, None]
        loudness = voiced * config.nsf_sigma + (1 - voiced) * (config.nsf_alpha / 3)
        waves = config.nsf_alpha * torch.sin(angle + phase) * voiced + loudness * noise
        return torch.tanh(self.m_source["l_linear"](waves.mT))[..., 0]

    def sound(self, mel: Tensor, source: Tensor) -> Tensor:
        """Sound f32 [1, S] of a mel [1, M, F] and a source [1, S]."""
        config, stft = self.config, self.config.istft_params
        window = torch.hann_window(stft.n_fft, device=source.device)
        spectrum = torch.stft(source, stft.n_fft, stft.hop_len, window=window, return_complex=True)
        spectrum = torch.cat([spectrum.real, spectrum.imag], 1)  # [1, n_fft + 2, S / hop + 1]
        x = self.conv_pre(mel)
        kernels = len(config.resblock_kernel_sizes)
        for i, (up, down) in enumerate(zip(self.ups, self.source_downs)):
            x = up(F.leaky_relu(x, config.lrelu_slope))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[i](down(spectrum))
            blocks = self.resblocks[i * kernels : (i + 1) * kernels]
            x = _sum(block(x) for block in blocks) / kernels
        x = self.conv_post(F.leaky_relu(x))
        bins = stft.n_fft // 2 + 1
        magnitude, phase = x[:, :bins].exp().clamp(max=100.0), x[:, bins:].sin()
        sound = torch.istft(torch.polar(magnitude, phase), stft.n_fft, stft.hop_len, window=window)
        return sound.clamp(-config.audio_limit, config.audio_limit)


def _sum(parts: Any) -> Any:
    total = next(parts)
    for part in parts:
        total = total + part
    return total


class F0Predictor(nn.Module):
    """Mel [1, M, F] -> pitch [1, F], Hz."""

    def __init__(self, mels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in in (mels, *[width] * 4):
            layers += [nn.Conv1d(width_in, width, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)

    def forward(self, mel: Tensor) -> Tensor:
        return self.classifier(self.condnet(mel).mT)[..., 0].abs()


class ResBlock(nn.Module):
    """Pairs of convolutions behind snakes, the first of each pair dilated, each pair beside a residual."""

    def __init__(self, width: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            return nn.Conv1d(width, width, kernel, padding=(kernel - 1) * dilation // 2, dilation=dilation)

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations1, self.activations2 = (nn.ModuleList(Snake(width) for _ in dilations) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for snake1, conv1, snake2, conv2 in zip(self.activations1, self.convs1, self.activations2, self.convs2):
            x = x + conv2(snake2(conv1(snake1(x))))
        return x


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with one ``a`` per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        wave = torch.sin(x * alpha)
        return torch.addcmul(x, wave, wave / (alpha + 1e-9))
