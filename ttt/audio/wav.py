"""Waveform files: checked when read, written completely or not at all.

Letters: ``S`` wav samples, ``C`` channels.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ttt.errors import DataError
from ttt.io.atomic import file_aside
from ttt.types import Waveform

log = logging.getLogger(__name__)

MIN_DURATION_S = 0.05
SILENCE_DB = -60.0


def read(path: str | Path, rate_hz: int | None = None, mono: bool = False) -> Waveform:
    """Read a sound file -> f32 [S].  ``rate_hz``: the rate it must have; ``mono``: average the channels if several.

    Raises `DataError` naming the file and what to do.
    """
    waveform, channels = read_channels(path)
    if channels > 1 and not mono:
        raise DataError(f"{path}: {channels} channels, expected 1: convert the file to mono, or read it with mono=True")
    if rate_hz is not None and waveform.rate_hz != rate_hz:
        raise DataError(
            f"{path}: rate is {waveform.rate_hz} Hz, expected {rate_hz} Hz: resample it with ttt.audio.signal.resample"
        )
    return waveform


def read_channels(path: str | Path) -> tuple[Waveform, int]:
    """(the average of a file's channels f32 [S], how many there were).  Raises like `read`."""
    import soundfile

    if not Path(path).is_file():
        raise DataError(f"{path}: no such wav file: check the path, or make the file again")
    try:
        samples, file_hz = soundfile.read(str(path), dtype="float32", always_2d=True)  # [S, C]
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"{path}: not a readable sound file ({error}): make or convert it again") from error
    if samples.shape[0] == 0:
        raise DataError(f"{path}: the file holds no samples: make it again or drop the item")
    if samples.shape[0] < MIN_DURATION_S * file_hz:
        raise DataError(
            f"{path}: {1000 * samples.shape[0] / file_hz:.0f} ms long, expected at least "
            f"{1000 * MIN_DURATION_S:.0f} ms: drop the item or record it again"
        )
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise DataError(f"{path}: {bad} of {samples.size} samples are NaN or infinite: make the file again")
    mono_samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return Waveform(np.ascontiguousarray(mono_samples, dtype=np.float32), int(file_hz)), samples.shape[1]


def write(path: str | Path, waveform: Waveform) -> None:
    """Write 16-bit PCM, whole or not at all.

    Samples beyond [-1, 1] are clipped and the log says how many; NaN and infinity are refused.
    """
    import soundfile

    path = Path(path)
    samples = waveform.samples
    if len(samples) == 0:
        raise DataError(f"{path}: nothing to write, the waveform holds no samples: check what made it")
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise DataError(f"{path}: {bad} of {samples.size} samples to write are NaN or infinite: check what made them")
    over = int((np.abs(samples) > 1.0).sum())
    if over:
        log.warning("%s: %d of %d samples lie beyond [-1, 1] and are clipped", path, over, samples.size)
        samples = np.clip(samples, -1.0, 1.0)
    with file_aside(path) as temporary:
        soundfile.write(str(temporary), samples, waveform.rate_hz, subtype="PCM_16", format="WAV")


def level_db(waveform: Waveform) -> float:
    """Root-mean-square level in dB relative to full scale; -inf for digital silence."""
    mean_square = float(np.mean(np.square(waveform.samples, dtype=np.float64))) if len(waveform.samples) else 0.0
    return 10.0 * float(np.log10(mean_square)) if mean_square > 0 else float("-inf")


def check_speech(waveform: Waveform, place: str = "waveform") -> None:
    """Raise `DataError` for a waveform that is silent throughout (level below -60 dB of full scale)."""
    level = level_db(waveform)
    if level < SILENCE_DB:
        raise DataError(
            f"{place}: silent all through (level {level:.0f} dB, expected above {SILENCE_DB:.0f} dB): "
            "make it again or drop the item"
        )
