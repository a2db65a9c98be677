"""What a code pattern owes: every code once, in an order that can be written from left to right without knowing the end.

From this follows the way back (`ttt.text.patterns.codes_of`): of whole grids, and of their first rows.
"""

from __future__ import annotations

import numpy as np

from ttt.check.core import need, prop
from ttt.interfaces import CodePattern

CODEBOOKS = (1, 2, 3, 7)
MOST = 9  # frames


@prop("pattern", "grid", "the grid holds every code once, in a column of its codebook")
def _grid(pattern: CodePattern) -> None:
    for q in CODEBOOKS:
        for frames in range(MOST):
            index, where = pattern.index(frames, q), f"{frames} frames of {q}"
            k = pattern.columns(q)
            need(index.ndim == 2 and index.shape[1] == k and k % q == 0, f"{where}: {list(index.shape)}, {k} columns")
            found = index[index >= 0]
            need(np.array_equal(np.sort(found), np.arange(frames * q)), f"{where}: holds the codes {np.sort(found).tolist()}")
            column = np.nonzero(index >= 0)[1]
            need((found % q == column % q).all(), f"{where}: a code stands in the column of another codebook: {index.tolist()}")
            need(pattern.has_empty or (index >= 0).all(), f"{where}: has empty cells, has_empty says it has none")
            need(not frames or (index[-1] >= 0).any(), f"{where}: the last row holds no code")


@prop("pattern", "order", "a code stands behind the coarser ones of its frame and behind the frame before")
def _order(pattern: CodePattern) -> None:
    for q in CODEBOOKS:
        flat = pattern.index(MOST, q).reshape(-1)
        place = np.argsort(np.where(flat < 0, MOST * q, flat), kind="stable")[: MOST * q].reshape(MOST, q)
        need((np.diff(place, axis=0) > 0).all(), f"{q} codebooks: places by frame {place.tolist()}")
        need((np.diff(place, axis=1) > 0).all(), f"{q} codebooks: places in a frame {place.tolist()}")


@prop("pattern", "later", "where a code stands does not depend on the number of frames")
def _later(pattern: CodePattern) -> None:
    for q in CODEBOOKS:
        whole = pattern.index(MOST, q)
        for frames in range(MOST):
            index = pattern.index(frames, q)
            expected = np.where(whole < frames * q, whole, -1)[: len(index)]
            need(np.array_equal(index, expected), f"{frames} of {MOST} frames of {q}: {index.tolist()}, not {expected.tolist()}")
