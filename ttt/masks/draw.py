"""A mask as text for a terminal (plots are in `ttt.eval.plots`)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ttt.types import Kind


def mask_text(allowed: Tensor, kind: np.ndarray, width: int = 64) -> str:
    """Rows are queries, columns keys; ``#`` allowed, ``.`` blocked; longer masks are thinned to ``width``.

    ``allowed`` bool [T, T]; ``kind`` u8 [T].  The strip above and beside shows t(ext) and a(udio).
    """
    t = allowed.shape[0]
    at = np.unique(np.linspace(0, t - 1, min(t, width)).round().astype(int))
    letters = np.where(kind == Kind.AUDIO, "a", "t")
    lines = ["  " + "".join(letters[at])]
    grid = allowed.cpu().numpy()[np.ix_(at, at)]
    lines += [f"{letters[i]} " + "".join("#" if cell else "." for cell in row) for i, row in zip(at, grid, strict=True)]
    return "\n".join(lines)
