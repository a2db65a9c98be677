"""Attention masks as text for a terminal and as PNG, with the kind of every position and the borders of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ttt.errors import DataError
from ttt.io.atomic import file_aside
from ttt.masks.library import run_offsets
from ttt.masks.materialize import dense
from ttt.types import Kind, Layout

NAMES = {".": "padding", "t": "text", "a": "audio", "n": "noisy copy"}
_COLORS = {".": "#e2e8f0", "t": "#2b6cb0", "a": "#dd6b20", "n": "#805ad5"}


def letters(kind: Any, stream: Any = None) -> np.ndarray:
    """The kind of each position as a letter: ``.`` padding, ``t`` text, ``a`` audio, ``n`` the noisy copy of a dual stream.

    >>> "".join(letters(np.array([1, 2, 2, 0]), np.array([0, 0, 1, 0])))
    'tan.'
    """
    kind = np.asarray(kind)
    what = np.where(kind == Kind.AUDIO, "a", np.where(kind == Kind.TEXT, "t", "."))
    return what if stream is None else np.where((np.asarray(stream) == 1) & (kind != Kind.PAD), "n", what)


def mask_text(
    allowed: Tensor, kind: Any, width: int = 64, stream: Any = None, mark: Sequence[tuple[int, int]] = ()
) -> str:
    """Rows are queries, columns keys; ``#`` allowed, ``.`` blocked; longer masks are sampled down to ``width`` rows and columns.

    ``allowed`` bool [T, T]; ``kind`` u8 [T]; ``stream`` [T] of the layout.  The strips above and to the left show `letters`.
    ``mark``: cells (query, key) drawn as ``X`` (allowed) or ``o`` (blocked), always shown.
    """
    t = allowed.shape[0]
    marked = {int(i) for cell in mark for i in cell}
    at = np.union1d(np.linspace(0, t - 1, min(t, width)).round().astype(int), np.array(sorted(marked), dtype=int))
    strip = letters(kind, stream)
    cells = set(mark)
    lines = ["  " + "".join(strip[at])]
    for q in at.tolist():
        row = allowed[q].tolist()
        lines.append(f"{strip[q]} " + "".join((".o", "#X")[row[k]][(q, k) in cells] for k in at.tolist()))
    return "\n".join(lines)


def mask_png(rule: Any, layout: Layout, out: str | Path, row: int = 0, title: str = "") -> None:
    """Draw one row of a layout.  A cell has the colour of its key; the strips above and to the left show the kind of each position.

    Thin lines: borders of audio runs and of blocks (`MaskRule.block_length`); heavy lines: borders of documents and of the
    noisy copy.  The file is written under a temporary name first.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise DataError(f"{out}: no folder {out.parent} to write the picture to")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with file_aside(out) as temporary:
        FigureCanvasAgg(mask_figure(rule, layout, row, title)).print_png(str(temporary), metadata={"Software": "ttt"})


def mask_figure(rule: Any, layout: Layout, row: int = 0, title: str = "") -> Any:
    """The figure of `mask_png`; its axes are the mask, the strip above, the strip to the left."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    allowed = dense(rule, layout)[row].cpu().numpy()
    strip = letters(layout.kind[row].cpu(), layout.stream[row].cpu())
    colors = np.array([to_rgb(_COLORS[x]) for x in strip])  # [T, rgb]
    figure = Figure(figsize=(6.4, 6.9), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 24), height_ratios=(1, 24), wspace=0.02, hspace=0.02)
    body = figure.add_subplot(grid[1, 1])
    body.imshow(np.where(allowed[:, :, None], 0.25 + 0.75 * colors[None], 1.0), interpolation="nearest", aspect="auto")
    thin, heavy = borders(layout, int(rule.block_length), row)
    for at, width, color in ((thin, 0.4, "#718096"), (heavy, 1.3, "#1a202c")):
        for x in at:
            body.axvline(x - 0.5, linewidth=width, color=color)
            body.axhline(x - 0.5, linewidth=width, color=color)
    body.set_xlabel("key position")
    body.set_yticks([])
    top, left = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 0])
    top.imshow(colors[None], interpolation="nearest", aspect="auto")
    left.imshow(colors[:, None], interpolation="nearest", aspect="auto")
    top.set_yticks([])
    left.set_xticks([])
    top.xaxis.tick_top()
    middles, names = labels(strip)
    top.set_xticks(middles, names, fontsize=7)
    left.set_yticks(middles, names, fontsize=7)
    left.set_ylabel("query position")
    if title:
        figure.suptitle(title, fontsize=10)
    patches = [Patch(color=_COLORS[x], label=NAMES[x]) for x in NAMES if (strip == x).any()]
    patches.append(Patch(facecolor="white", edgecolor="#a0aec0", label="blocked"))
    figure.legend(handles=patches, loc="outside lower center", ncol=5, fontsize=8, frameon=False)
    return figure


def labels(strip: np.ndarray, least: float = 0.06) -> tuple[list[float], list[str]]:
    """Centre and name of each run of one letter that covers at least the share ``least`` of the whole.

    >>> labels(np.array(list("tttaaa")))
    ([1.0, 4.0], ['text', 'audio'])
    """
    starts = [0, *(np.flatnonzero(strip[1:] != strip[:-1]) + 1).tolist(), len(strip)]
    wide = [(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True) if b - a >= least * len(strip)]
    return [(a + b - 1) / 2 for a, b in wide], [NAMES[str(strip[a])] for a, _ in wide]


def borders(layout: Layout, block_length: int, row: int = 0) -> tuple[list[int], list[int]]:
    """Positions before which a (thin, heavy) line is drawn: runs and blocks; documents and the noisy copy."""
    kind, span, doc, stream, position = (
        getattr(layout, name)[row].cpu().long() for name in ("kind", "run_id", "doc", "stream", "position")
    )
    differs = (kind[1:] != kind[:-1]) | ((kind[1:] == Kind.AUDIO) & (span[1:] != span[:-1]))
    jumps = (position[1:] != position[:-1] + 1) & (kind[1:] == Kind.AUDIO)  # the next span of a noisy copy
    thin = differs | jumps
    heavy = (doc[1:] != doc[:-1]) | (stream[1:] != stream[:-1])
    if block_length:
        offset = run_offsets(layout)[row].cpu()
        begins = (kind == Kind.AUDIO) & ~layout.prompt[row].cpu() & (offset % block_length == 0)
        thin |= begins[1:]
    positions = [(mask.nonzero().flatten() + 1).tolist() for mask in (thin & ~heavy, heavy)]
    return positions[0], positions[1]
