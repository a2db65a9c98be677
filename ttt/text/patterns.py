"""Code patterns: in which order the codes of several codebooks stand in a sequence (MusicGen, arXiv 2306.05284, section 2.2).

Letters: ``F`` frames, ``Q`` codebooks, ``S`` rows and ``K`` columns of a pattern's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttt.interfaces import CodePattern
from ttt.registry import PositiveInt
from ttt.registry.families import PATTERN


def grid_of(pattern: CodePattern, codes: np.ndarray, empty: int) -> np.ndarray:
    """Codes [F, Q] -> the grid [S, K], of the same type; ``empty`` stands where there is no code."""
    index = pattern.index(*codes.shape)
    return np.append(codes, codes.dtype.type(empty))[index]


def codes_of(pattern: CodePattern, grid: np.ndarray, codebooks: int, empty: int) -> np.ndarray:
    """The first rows [S, K] of a grid -> the frames [F, Q] that they determine: all up to the first incomplete one."""
    most = grid.size // codebooks
    index = pattern.index(most, codebooks)[: len(grid)]
    known = (index >= 0) & (grid != empty)
    codes = np.full(most * codebooks, empty, dtype=grid.dtype)
    codes[index[known]] = grid[known]
    codes = codes.reshape(most, codebooks)
    broken = np.flatnonzero((codes == empty).any(1))
    return codes[: broken[0]] if len(broken) else codes


@PATTERN.register("flatten")
@dataclass(frozen=True)
class Flatten(CodePattern):
    """Frame by frame, and in a frame codebook by codebook: F x Q ids.

    >>> Flatten().index(2, 3).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """

    def index(self, frames: int, codebooks: int) -> np.ndarray:
        """Row f is frame f."""
        return np.arange(frames * codebooks).reshape(frames, codebooks)


@PATTERN.register("parallel")
@dataclass(frozen=True)
class Parallel(CodePattern):
    """All codes of a frame at one position of the network, independent of each other given what is before.

    ``frames`` > 1: those of several frames in a row.  With one codebook these are the grouped codes of SLAM-Omni (arXiv
    2412.15649: three a step); the last row is filled up with the empty code.

    >>> Parallel(frames=2).index(3, 1).tolist()
    [[0, 1], [2, -1]]
    """

    frames: PositiveInt = 1

    together = True  # no field

    @property
    def has_empty(self) -> bool:  # type: ignore[override]
        """Where rows hold several frames."""
        return self.frames > 1

    def columns(self, codebooks: int) -> int:
        """One for each codebook of each of the frames."""
        return self.frames * codebooks

    def index(self, frames: int, codebooks: int) -> np.ndarray:
        """Row s holds the frames from s times ``frames`` on."""
        codes = np.arange(-(-frames // self.frames) * self.frames * codebooks).reshape(-1, self.columns(codebooks))
        return np.where(codes < frames * codebooks, codes, -1)


@PATTERN.register("delay")
@dataclass(frozen=True)
class Delay(CodePattern):
    """Codebook q comes q rows later: row t holds the codes (t - q, q), so each follows the coarser codes of its frame.

    F frames take F + Q - 1 rows; what has no code at the two ends holds the empty code (MusicGen, figure 1).  ``together``: a
    row is one position of the network; false: every id has its own, as with ``flatten``.

    >>> Delay().index(2, 3).tolist()
    [[0, -1, -1], [3, 1, -1], [-1, 4, 2], [-1, -1, 5]]
    """

    together: bool = True

    has_empty = True  # no field

    def index(self, frames: int, codebooks: int) -> np.ndarray:
        """Codebook q moved down by q rows."""
        grid = np.full((frames + codebooks - 1 if frames else 0, codebooks), -1)
        for q in range(codebooks):
            grid[q : q + frames, q] = np.arange(frames) * codebooks + q
        return grid
