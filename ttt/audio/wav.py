"""Waveform files: checked when read, written completely or not at all.

Letters: ``S`` wav samples, ``C`` channels.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ttt.audio.sound import Sound, opened
from ttt.errors import DataError
from ttt.io.atomic import file_aside
from ttt.types import Waveform

log = logging.getLogger(__name__)

MIN_DURATION_S = 0.05
SILENCE_DB = -60.0
_LEAD_S = 0.3  # decoded before a stretch, and not used


def read(path: str | Path | Sound, rate_hz: int | None = None, mono: bool = False) -> Waveform:
    """Read a sound (`ttt.audio.sound`) -> f32 [S].  ``rate_hz``: the rate it must have; ``mono``: average several channels.

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


def read_channels(path: str | Path | Sound) -> tuple[Waveform, int]:
    """(the average of a sound's channels f32 [S], how many there were).  Raises like `read`."""
    sound = Sound.of(path)
    with opened(sound) as file:
        file_hz = int(file.samplerate)
        stop = file.frames if sound.stop_s is None else min(file.frames, round(sound.stop_s * file_hz))
        start = min(stop, round(sound.start_s * file_hz))
        # decoders of mp3 are right only a few frames after a seek
        lead = min(start, round(_LEAD_S * file_hz))
        if start:
            file.seek(start - lead)
        samples = file.read(lead + stop - start, dtype="float32", always_2d=True)[lead:]  # [S, C]
    if samples.shape[0] < stop - start:
        raise DataError(
            f"{path}: {stop - start} samples are declared, {samples.shape[0]} are there: the file was cut off, copy it again"
        )
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
    return Waveform(np.ascontiguousarray(mono_samples, dtype=np.float32), file_hz), samples.shape[1]


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
