"""Order of codes within a frame for codecs whose codebooks run at several rates, as in SNAC (arXiv 2410.14411).

A codebook of stride s has one code per s sub-frames.  A frame is as long as the largest stride S, so it holds S / s
codes of each codebook.  The rest of the toolkit sees codes [F, Q] with Q = the sum of S / s positions, each with its
own range of ids.

Letters: ``F`` frames, ``S`` sub-frames per frame, ``Q`` code positions per frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def positions(strides: Sequence[int]) -> list[tuple[int, int]]:
    """(codebook, number within the frame) of each position: by the sub-frame a code begins at, coarser codebooks first.

    Raises `ValueError` for strides that do not divide the largest one.

    >>> positions([4, 2, 1])
    [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3)]
    >>> positions([1, 1])
    [(0, 0), (1, 0)]
    """
    if not strides or any(s < 1 or max(strides) % s for s in strides):
        raise ValueError(f"strides must be >= 1 and divide the largest of them, got {list(strides)}")
    frame = max(strides)
    places = [(n * stride, codebook, n) for codebook, stride in enumerate(strides) for n in range(frame // stride)]
    return [(codebook, n) for _, codebook, n in sorted(places)]


def join(codebooks: Sequence[np.ndarray], strides: Sequence[int]) -> np.ndarray:
    """Codes of each codebook [F * S / s] -> [F, Q].

    >>> join([np.array([0]), np.array([1, 4]), np.array([2, 3, 5, 6])], [4, 2, 1]).tolist()
    [[0, 1, 2, 3, 4, 5, 6]]
    """
    frame = max(strides)
    rows = [codebook.reshape(-1, frame // stride) for codebook, stride in zip(codebooks, strides, strict=True)]
    return np.stack([rows[codebook][:, n] for codebook, n in positions(strides)], axis=1)


def split(codes: np.ndarray, strides: Sequence[int]) -> list[np.ndarray]:
    """Codes [F, Q] -> codes of each codebook [F * S / s]; the inverse of `join`.

    >>> [codebook.tolist() for codebook in split(np.arange(7)[None], [4, 2, 1])]
    [[0], [1, 4], [2, 3, 5, 6]]
    """
    order = positions(strides)
    columns = [[column for column, (codebook, _) in enumerate(order) if codebook == b] for b in range(len(strides))]
    return [np.ascontiguousarray(codes[:, own_columns]).reshape(-1) for own_columns in columns]
