"""A trace as a picture: position to the right, network calls downwards.

Letters: ``P`` positions, ``N`` network calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ttt.eval.plots import AUDIO, INK, REST, TEXT, new_figure, write_png
from ttt.sampling.trace.record import TraceRecord
from ttt.sampling.trace.trace_frames import frames

EMPTY, MASKED, TAKEN_BACK = "#ffffff", "#e4e4e4", "#f56565"


def states(record: TraceRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What stands where after each call.

    -> ``confidence`` f32 [N, P] of tokens (NaN: no token, or one without a score); ``what`` u8 [N, P]: 0 nothing there,
    1 mask, 2 token, 3 token written in this call, 4 predicted and masked again; ``call`` [N], the calls' numbers.
    """
    pictures = list(frames(record))
    width = max((len(p.cells) for p in pictures), default=0)
    # A call that has two pictures (its own, and what is left of the answer) is one row.
    calls = sorted({p.call for p in pictures})
    rows = {call: n for n, call in enumerate(calls)}
    confidence = np.full((len(calls), width), np.nan, dtype=np.float32)
    what = np.zeros((len(calls), width), dtype=np.uint8)
    seen: set[int] = set()
    for picture in pictures:
        if picture.call in seen:
            continue
        seen.add(picture.call)
        for p, cell in enumerate(picture.cells):
            row = rows[picture.call]
            what[row, p] = 1 if cell.state == "mask" else 4 if cell.state == "remasked" else 3 if cell.new else 2
            if cell.confidence is not None and cell.state != "remasked":
                confidence[row, p] = cell.confidence
    return confidence, what, np.asarray(calls)


def trace_picture(record: TraceRecord, head: Mapping[str, Any], out: str | Path) -> bool:
    """Position x call, coloured by confidence; below, the confidence and the call of every final token.

    Tokens are bright in the call that wrote them and pale afterwards; masks are grey; what a call predicted and masked
    again is red.  Returns False, and writes nothing, when the record holds no steps.
    """
    confidence, what, calls = states(record)
    if not len(calls):
        return False
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgb
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    known = confidence[np.isfinite(confidence)]
    probabilities = not known.size or (known.min() >= 0 and known.max() <= 1)
    scale = Normalize(0, 1) if probabilities else Normalize(float(known.min()), float(known.max()))
    ramp = colormaps["viridis"]
    shown = np.where(np.isfinite(confidence), scale(np.nan_to_num(confidence)), 1.0)
    color = ramp(np.asarray(shown))[..., :3]  # [N, P, rgb]
    color[(what >= 2) & ~np.isfinite(confidence)] = to_rgb(REST)
    color = np.where((what == 2)[..., None], 0.6 * color + 0.4, color)
    for value, name in ((0, EMPTY), (1, MASKED), (4, TAKEN_BACK)):
        color[what == value] = to_rgb(name)

    n, width = what.shape
    plot = new_figure(float(np.clip(0.045 * width + 2.2, 5.5, 16)), float(np.clip(0.035 * n + 2.8, 4.0, 12)))
    grid = plot.add_gridspec(3, 1, height_ratios=(max(3.0, 0.035 * n), 0.22, 1.0), hspace=0.02)
    body = plot.add_subplot(grid[0])
    # Rows are calls of the answer's own count; text and blocks alternate without gaps.
    body.imshow(
        color, aspect="auto", interpolation="nearest", extent=(-0.5, width - 0.5, calls[-1] + 0.5, calls[0] - 0.5)
    )
    body.set_ylabel("network call", fontsize=8)
    ended = f"{len(record.ids)} tokens, {sum(record.calls.values())} calls, stopped: {record.stopped}"
    body.set_title(f"{record.uid}: {ended}", fontsize=9)
    body.tick_params(labelbottom=False)
    patches = [Patch(facecolor=MASKED, label="mask")] if (what == 1).any() else []
    if (what == 4).any():
        patches.append(Patch(facecolor=TAKEN_BACK, label="masked again"))
    if ((what >= 2) & (what != 4) & ~np.isfinite(confidence)).any():
        patches.append(Patch(facecolor=REST, label="not predicted"))
    if patches:
        plot.legend(handles=patches, fontsize=7, loc="outside lower center", ncol=3, frameon=False)

    strip = plot.add_subplot(grid[1], sharex=body)
    vocabulary = head.get("vocabulary", {})
    codes = range(vocabulary.get("code_start", 0), vocabulary.get("code_stop", 0))
    ends = set(vocabulary.get("close", ()))
    kinds = np.array([to_rgb(AUDIO if i in codes or i in ends else TEXT) for i in record.ids] or [to_rgb(EMPTY)])
    strip.imshow(
        kinds[None], aspect="auto", interpolation="nearest", extent=(-0.5, max(len(record.ids), 1) - 0.5, 0, 1)
    )
    strip.set_yticks([])
    strip.set_ylabel("kind", fontsize=7, rotation=0, ha="right", va="center")
    strip.tick_params(labelbottom=False)

    settled = plot.add_subplot(grid[2], sharex=body)
    positions = np.arange(min(len(record.ids), width))
    written = [calls[np.flatnonzero(what[:, p] == 3)[-1]] if (what[:, p] == 3).any() else np.nan for p in positions]
    settled.plot(positions, written, ".", color=INK, markersize=2.5)
    settled.set_ylabel("written in", fontsize=7)
    settled.set_xlabel("position in the answer (blue: text, orange: audio)", fontsize=8)
    settled.set_xlim(-0.5, width - 0.5)
    settled.grid(alpha=0.25)
    for axes in (body, strip, settled):
        axes.tick_params(labelsize=7)
    for axis in (body.yaxis, settled.yaxis, settled.xaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    rule = head.get("confidence", {}).get("c") or "score"
    bar = plot.colorbar(ScalarMappable(scale, ramp), ax=[body, strip, settled], fraction=0.025, pad=0.01)
    bar.set_label(f"confidence ({rule}; text: probability)", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return write_png(plot, out)
