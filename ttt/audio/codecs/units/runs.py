"""Runs of equal codes: one code for each, and its length beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ttt.audio.codecs.checks import check_codes
from ttt.interfaces import StreamDecoder


def remove_runs(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes i32 [F, 1] -> the first of each run i32 [R, 1], and how many there were i32 [R].

    >>> [a.tolist() for a in remove_runs(np.array([[7], [7], [3], [7]], dtype=np.int32))]
    [[[7], [3], [7]], [2, 1, 1]]
    """
    starts = np.flatnonzero(np.diff(ids[:, 0], prepend=-1))
    lasts = np.diff(starts, append=len(ids))
    return ids[starts], lasts.astype(np.int32)


class RunStream(StreamDecoder):
    """Stretches codes that come without durations and hands them to a stream of frames.

    ``durations``: frames [F] of codes [F, 1], of which each depends on ``reach`` codes to either side.
    """

    def __init__(
        self, frames: StreamDecoder, durations: Callable[[np.ndarray], np.ndarray], reach: int, num_codes: int
    ) -> None:
        self._frames, self._durations, self._reach, self._num_codes = frames, durations, reach, num_codes
        self._ids = np.zeros((0, 1), dtype=np.int32)  # those that are waiting, and ``reach`` before them
        self._done = 0  # of these, how many were handed on

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Codes [F, 1] -> the samples that are final by now.  Raises `DataError` for codes outside the codebook."""
        check_codes(codes, self._num_codes, 1, "units")
        self._ids = np.concatenate([self._ids, codes.astype(np.int32)])
        return self._hand_on(len(self._ids) - self._reach)

    def finish(self) -> np.ndarray:
        """The rest."""
        rest = self._hand_on(len(self._ids))
        return np.concatenate([rest, self._frames.finish()])

    def _hand_on(self, until: int) -> np.ndarray:
        if until <= self._done:
            return np.zeros(0, dtype=np.float32)
        lasts = self._durations(self._ids)
        frames = np.repeat(self._ids[self._done : until], lasts[self._done : until], axis=0)
        drop = max(0, until - self._reach)
        self._ids, self._done = self._ids[drop:], until - drop
        return self._frames.push(frames)
