"""Resampling, mel and Griffin-Lim: the one door to torchaudio, imported inside the functions that need it.

Letters: ``S`` wav samples.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ttt.errors import MissingExtraError
from ttt.types import Waveform


def torchaudio() -> Any:
    """The torchaudio package, or an error that says how to make it importable."""
    try:
        import torchaudio
    except (ImportError, OSError) as error:
        raise MissingExtraError(
            f"torchaudio cannot be imported ({type(error).__name__}: {error}): run 'make env', which "
            "installs it beside CPU-only torch"
        ) from error
    return torchaudio


def resample(waveform: Waveform, rate_hz: int) -> Waveform:
    """The same sound at another rate: f32 [S] -> f32 [ceil(S * rate_hz / waveform.rate_hz)].

    Made for thousands of calls: the filter of each pair of rates is kept, and the input is padded with zeros to one of
    a few lengths, because the convolution is planned anew (some 5 ms) for each length it has not met.
    """
    if waveform.rate_hz == rate_hz:
        return waveform
    import torch

    length = len(waveform.samples)
    step = max(waveform.rate_hz // 4, 1)
    padded = torch.zeros(-(-length // step) * step)
    padded[:length] = torch.tensor(waveform.samples)
    with torch.inference_mode():
        samples = _resampler(waveform.rate_hz, rate_hz)(padded)
    wanted = -(-length * rate_hz // waveform.rate_hz)
    return Waveform(samples[:wanted].numpy().copy(), rate_hz)


@lru_cache(maxsize=16)
def _resampler(from_hz: int, to_hz: int) -> Any:
    torchaudio()
    from torchaudio.transforms import Resample

    return Resample(from_hz, to_hz)
