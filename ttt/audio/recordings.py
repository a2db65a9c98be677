"""Recordings as a codec needs them: one channel at one rate, with a count of what was converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttt.audio.signal import resample
from ttt.audio.sound import Sound
from ttt.audio.wav import read_channels
from ttt.types import Waveform


class LazyWaves(Sequence[Waveform]):
    """Recordings of files, read when they are asked for and not kept; memory does not grow with their number."""

    def __init__(self, recordings: Recordings, paths: Sequence[Path]) -> None:
        self._recordings, self._paths = recordings, paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LazyWaves(self._recordings, self._paths[index])
        return self._recordings.read(self._paths[index])


@dataclass
class Recordings:
    """Reads sound files at ``rate_hz`` (None: each at its own) and counts those that had to be converted."""

    rate_hz: int | None = None
    files: int = 0
    resampled: Counter[int] = field(default_factory=Counter)  # rate of the file -> files
    mixed: int = 0  # files of several channels, averaged to one

    def read(self, path: str | Path | Sound) -> Waveform:
        """A sound file, or another sound that `ttt.audio.sound` names.  Raises `DataError` naming it."""
        wave, channels = read_channels(path)
        self.files += 1
        self.mixed += channels > 1
        if self.rate_hz is None or wave.rate_hz == self.rate_hz:
            return wave
        self.resampled[wave.rate_hz] += 1
        return resample(wave, self.rate_hz)

    def add(self, other: Recordings) -> None:
        """Count what another process has read."""
        self.files += other.files
        self.resampled += other.resampled
        self.mixed += other.mixed

    def summary(self) -> str:
        """What was converted, for the log; "" if nothing was.

        >>> Recordings(16000, 5, Counter({44100: 2}), 1).summary()
        'of 5 recordings 2 were resampled from 44100 Hz to 16000 Hz, 1 mixed down to one channel'
        """
        parts = [
            f"{n} were resampled from {rate} Hz to {self.rate_hz} Hz" for rate, n in sorted(self.resampled.items())
        ]
        parts += [f"{self.mixed} mixed down to one channel"] if self.mixed else []
        return f"of {self.files} recordings {', '.join(parts)}" if parts else ""
