"""Code patterns: in which order the codes of several codebooks stand in a sequence (MusicGen, arXiv 2306.05284, section 2.2).

Letters: ``F`` frames, ``Q`` codebooks, ``S`` rows and ``K`` columns of a pattern's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttt.interfaces import CodePattern
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


@PATTERN.register("delay")
@dataclass(frozen=True)
class Delay(CodePattern):
    """Codebook q comes q rows later: row t holds the codes (t - q, q), so each follows the coarser codes of its frame.

    F frames take F + Q - 1 rows; what has no code at the two ends holds the empty code (MusicGen, figure 1).

    >>> Delay().index(2, 3).tolist()
    [[0, -1, -1], [3, 1, -1], [-1, 4, 2], [-1, -1, 5]]
    """

    has_empty = True  # no field

    def index(self, frames: int, codebooks: int) -> np.ndarray:
        """Codebook q moved down by q rows."""
        grid = np.full((frames + codebooks - 1 if frames else 0, codebooks), -1)
        for q in range(codebooks):
            grid[q : q + frames, q] = np.arange(frames) * codebooks + q
        return grid
