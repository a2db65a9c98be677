"""A small network that turns units into log-mels, in the voice of one recording; fitted in minutes on a CPU.

Letters: ``B`` rows, ``F`` frames of units, ``T`` mel frames, ``M`` mel channels, ``W`` width of the network.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, l1_loss

from ttt.rng import derive_seed, generator

log = logging.getLogger(__name__)

WIDTH = 192
DILATIONS = (1, 2, 4, 1, 2, 4)
KERNEL = 5
REACH = KERNEL // 2 * sum(DILATIONS)  # mel frames to either side that a mel frame depends on
BATCH, SEGMENT_S = 16, 1.5
LEARNING_RATE = 1e-3


class UnitDecoder(nn.Module):
    """Embedded units, repeated to the mel rate, through residual convolutions: i64 [B, F] -> log-mels f32 [B, T, M].

    T = F * ``stretch``.  In training it is told each recording's voice (mean and deviation of every mel channel), so that units
    need not explain it; it then speaks with the ``voice`` of one recording.  What neither says (melody) comes out averaged.
    """

    mean: Tensor
    spread: Tensor
    voice: Tensor

    def __init__(self, num_codes: int, stretch: int, mels: int) -> None:
        super().__init__()
        self.stretch = stretch
        self.units = nn.Embedding(num_codes, WIDTH)
        self.places = nn.Parameter(torch.zeros(stretch, WIDTH))  # where in its frame a mel frame stands
        self.hear = nn.Linear(2 * mels, WIDTH)  # takes a voice
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in DILATIONS)
        self.spreads = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, KERNEL, dilation=d, padding=KERNEL // 2 * d) for d in DILATIONS
        )
        self.mixes = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in DILATIONS)
        self.last = nn.LayerNorm(WIDTH)
        self.mels = nn.Linear(WIDTH, mels)
        self.register_buffer("mean", torch.zeros(mels))
        self.register_buffer("spread", torch.ones(mels))
        self.register_buffer("voice", torch.zeros(2 * mels))

    def forward(self, ids: Tensor, inside: Tensor | None = None, voices: Tensor | None = None) -> Tensor:
        """``inside`` bool [B, F]: frames that belong to their row; what stands in the others changes nothing.

        ``voices`` f32 [B, 2 * M]: of each row, instead of its own.
        """
        x = (self.units(ids)[:, :, None] + self.places).flatten(1, 2)  # [B, T, W]
        x = x + self.hear(self.voice[None] if voices is None else voices)[:, None]
        keep = None if inside is None else inside.repeat_interleave(self.stretch, 1)[..., None]
        for norm, spread, mix in zip(self.norms, self.spreads, self.mixes, strict=True):
            y = norm(x) if keep is None else norm(x) * keep
            x = x + mix(gelu(spread(y.transpose(1, 2)).transpose(1, 2)))
        return self.mels(self.last(x)) * self.spread + self.mean


def new_decoder(num_codes: int, stretch: int, mels: int, seed: int = 0) -> UnitDecoder:
    """A decoder with the random weights of a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "codec", 1))
        return UnitDecoder(num_codes, stretch, mels)


def fit_decoder(
    units: Sequence[Tensor], mels: Sequence[Tensor], num_codes: int, stretch: int, rate_hz: float, steps: int, seed: int,
    device: torch.device | str = "cpu",
) -> tuple[UnitDecoder, float]:  # fmt: skip
    """Fit a decoder to units i64 [F] and log-mels f16 [T, M] of recordings, ``rate_hz`` frames per second.

    It speaks with the voice nearest to the average of all.  -> the decoder and its mean absolute error (log units) over the last
    tenth of the ``steps``.
    """
    decoder = new_decoder(num_codes, stretch, mels[0].shape[1], seed).to(device).train()
    total = sum(len(m) for m in mels)
    mean = torch.stack([m.double().sum(0) for m in mels]).sum(0) / total
    variance = torch.stack([(m.double() - mean).square().sum(0) for m in mels]).sum(0) / total
    decoder.mean.copy_(mean)
    decoder.spread.copy_(variance.sqrt().clamp(min=1e-3))
    voices = torch.stack([_voice(m.float(), mean.float(), decoder.spread.cpu()) for m in mels])
    decoder.voice.copy_(voices[(voices - voices.mean(0)).square().sum(1).argmin()])
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    gen = generator(seed, "codec", 2)
    lengths = torch.tensor([float(len(u)) for u in units])
    width = max(1, round(SEGMENT_S * rate_hz))
    late: list[float] = []
    for step in range(steps):
        ids = torch.zeros(BATCH, width, dtype=torch.long)
        inside = torch.zeros(BATCH, width, dtype=torch.bool)
        target = torch.zeros(BATCH, width * stretch, len(mean))
        picks = torch.multinomial(lengths, BATCH, replacement=True, generator=gen)
        for row, pick in enumerate(picks.tolist()):
            start = int(torch.randint(max(1, len(units[pick]) - width + 1), (1,), generator=gen))
            part = units[pick][start : start + width]
            ids[row, : len(part)], inside[row, : len(part)] = part, True
            target[row, : len(part) * stretch] = mels[pick][start * stretch : (start + len(part)) * stretch].float()
        ids, inside, target = ids.to(device), inside.to(device), target.to(device)
        made, counted = decoder(ids, inside, voices[picks].to(device)), inside.repeat_interleave(stretch, 1)
        loss = l1_loss(made[counted] / decoder.spread, target[counted] / decoder.spread)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step >= steps - max(1, steps // 10):
            late.append(float((made.detach()[counted] - target[counted]).abs().mean()))
        if (step + 1) % max(1, steps // 10) == 0:
            log.info("codec: decoder: %d of %d steps, error %.3f", step + 1, steps, loss.item())
    return decoder.eval(), sum(late) / len(late)


def _voice(mels: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Mean and deviation of each mel channel of a recording, in the corpus' units: f32 [T, M] -> f32 [2 * M]."""
    return torch.cat([(mels.mean(0) - mean) / spread, mels.std(0, correction=0) / spread])
