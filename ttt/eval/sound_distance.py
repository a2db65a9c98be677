"""Comparing sounds: the mel distance of an answer to the true one, the similarity of its voice to the prompt's.

Letters: ``T``, ``U`` mel frames of the two sounds, ``M`` mel channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.interfaces import SpeakerEncoder
from ttt.types import Waveform

_DB = 20 / np.log(10)  # of a natural log of magnitudes
_SILENT_DB = -60.0  # a sound whose loudest frame is below this is silence (mel magnitudes; speech lies above -20)
_MIN_S = 0.1  # shorter sounds are padded with silence to this length


@dataclass(frozen=True)
class Comparison:
    """``mel_distance_db``: of the answer to the true one; ``speaker_similarity``: cosine of answer and prompt, in [-1, 1]."""

    mel_distance_db: float | None = None
    speaker_similarity: float | None = None


def compare(
    made: Sequence[Waveform], true: Sequence[Waveform | None], prompts: Sequence[Waveform | None],
    encoder: SpeakerEncoder | None,
) -> list[Comparison]:  # fmt: skip
    """One comparison per answer.  An answer without sound has similarity 0 and the distance of silence."""
    similarity: list[float | None] = [None] * len(made)
    if encoder is not None:
        pairs = [
            (i, m, p) for i, (m, p) in enumerate(zip(made, prompts, strict=True)) if p is not None and len(p.samples)
        ]
        for i, _, _ in pairs:
            similarity[i] = 0.0
        spoken = [(i, m, p) for i, m, p in pairs if len(m.samples)]
        answers, asked = encoder.embed([m for _, m, _ in spoken]), encoder.embed([p for _, _, p in spoken])
        for (i, _, _), a, b in zip(spoken, answers, asked, strict=True):
            similarity[i] = float(a @ b)
    distance = [None if t is None or not len(t.samples) else mel_distance(m, t) for m, t in zip(made, true, strict=True)]
    return [Comparison(d, s) for d, s in zip(distance, similarity, strict=True)]


def mel_distance(made: Waveform, true: Waveform) -> float:
    """Root mean square difference of log-mels in dB along the best alignment (dynamic time warping).

    Both sounds are normalised to their loudest frame; everything 60 dB below it counts as silence.
    """
    a, b = _log_mels(made), _log_mels(true)
    cost = np.square(a[:, None] - b[None]).mean(-1)  # [T, U]
    total, steps = warp(cost)
    return float(np.sqrt(total / steps))


def warp(cost: np.ndarray) -> tuple[float, int]:
    """(sum, number of cells) of the cheapest path through ``cost`` f64 [T, U]; steps go down, right, or both.

    >>> warp(np.array([[0.0, 9.0], [9.0, 1.0]]))
    (1.0, 2)
    """
    t, u = cost.shape
    total = np.full((t, u), np.inf)
    steps = np.zeros((t, u), dtype=np.int64)
    for diagonal in range(t + u - 1):  # cells of an anti-diagonal depend on the two before it only
        i = np.arange(max(0, diagonal - u + 1), min(t, diagonal + 1))
        j = diagonal - i
        if diagonal == 0:
            total[0, 0], steps[0, 0] = cost[0, 0], 1
            continue
        before = np.full((3, len(i)), np.inf)
        length = np.zeros((3, len(i)), dtype=np.int64)
        for k, (di, dj) in enumerate(((1, 1), (1, 0), (0, 1))):
            ok = (i >= di) & (j >= dj)
            before[k, ok], length[k, ok] = total[i[ok] - di, j[ok] - dj], steps[i[ok] - di, j[ok] - dj]
        best = before.argmin(0)
        at = np.arange(len(i))
        total[i, j], steps[i, j] = before[best, at] + cost[i, j], length[best, at] + 1
    return float(total[-1, -1]), int(steps[-1, -1])


def _log_mels(wave: Waveform) -> np.ndarray:
    """Log-mels in dB, f64 [T, M], from 0 (the loudest frame's mean) down to -60."""
    import torch

    from ttt.audio.signal import MelSettings, log_mel, resample

    settings = MelSettings(mels=40, min_magnitude=1e-4)
    samples: Any = torch.tensor(resample(wave, settings.rate_hz).samples)
    min_samples = round(_MIN_S * settings.rate_hz)
    if len(samples) < min_samples:
        samples = torch.nn.functional.pad(samples, (0, min_samples - len(samples)))
    x = _DB * log_mel(samples, settings).double().numpy()
    peak = x.mean(1).max()
    if peak < _SILENT_DB:  # silence has no level
        return np.full(x.shape, -60.0)
    return np.clip(x - peak, -60.0, None)
