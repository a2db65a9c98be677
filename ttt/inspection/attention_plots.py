"""Attention as pictures: the maps of layers or heads, and the measures over layers.

Letters: ``L`` layers, ``H`` heads, ``T`` positions, ``n`` panels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttt.inspection.attention import KINDS
from ttt.io.atomic import file_aside

COLOURS = {"prompt": "#718096", "text": "#2b6cb0", "audio": "#dd6b20", "mask": "#805ad5"}
_UNSEEN, _INK = "#e2e8f0", "#1a202c"
_FLOOR = 1.0e-3  # everything below is drawn like this: a linear scale would show the brightest cell only
_COLUMNS = 4


def pixels(figure: Any) -> np.ndarray:
    """The figure, drawn: u8 [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_pixels(image: np.ndarray, out: str | Path) -> None:
    """Write what `pixels` gave as a PNG (drawing takes long, so it is done once)."""
    from matplotlib.image import imsave

    no_version: dict[str, Any] = {"Software": "ttt"}  # without the version, so that the same picture is the same bytes
    with file_aside(out) as temporary:
        imsave(temporary, image, format="png", metadata=no_version)


def map_figure(maps: np.ndarray, allowed: np.ndarray, kinds: np.ndarray, names: Sequence[str], title: str = "") -> Any:
    """One panel per map f32 [n, T, T] (rows look at columns), on one logarithmic scale.

    ``allowed`` bool [T, T]: what the mask forbids is grey.  ``kinds`` i64 [T]: index into `KINDS`, drawn as strips above and to
    the left.
    """
    from matplotlib.colors import LogNorm, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = min(_COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    side = 2.4 if columns > 2 else 3.6
    figure = Figure(figsize=(side * columns + 1.1, (side + 0.25) * rows + 0.9), dpi=120, layout="constrained")
    strip = np.array([to_rgb(COLOURS[KINDS[k]]) if k >= 0 else (1, 1, 1) for k in kinds])  # [T, rgb]
    norm = LogNorm(_FLOOR, 1.0)
    panels = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    t = len(kinds)
    width = max(1.0, t / 28)  # of the strips, in cells
    for number, axes in enumerate(panels.flat):
        axes.set_xticks([])
        axes.set_yticks([])
        if number >= len(maps):
            axes.axis("off")
            continue
        shown = np.ma.masked_where(~allowed, np.maximum(maps[number], _FLOOR))
        axes.set_facecolor(_UNSEEN)
        image = axes.imshow(shown, norm=norm, cmap="magma", interpolation="nearest", aspect="equal")
        axes.imshow(strip[None], extent=(-0.5, t - 0.5, -0.5, -0.5 - width), aspect="equal", interpolation="nearest")
        axes.imshow(strip[:, None], extent=(-0.5 - width, -0.5, t - 0.5, -0.5), aspect="equal", interpolation="nearest")
        axes.set_xlim(-0.5 - width, t - 0.5)
        axes.set_ylim(t - 0.5, -0.5 - width)
        for edge in axes.spines.values():
            edge.set_visible(False)
        axes.set_title(names[number], fontsize=9, pad=3)
    panels[-1, 0].set_xlabel("looked at (key)", fontsize=8)
    panels[-1, 0].set_ylabel("who looks (query)", fontsize=8)
    bar = figure.colorbar(image, ax=panels, shrink=0.7, pad=0.01)
    bar.set_label("attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    there = [k for i, k in enumerate(KINDS) if (kinds == i).any()]
    patches = [Patch(color=COLOURS[k], label=k) for k in there]
    patches.append(Patch(facecolor=_UNSEEN, edgecolor="#a0aec0", label="not seen"))
    figure.legend(handles=patches, loc="outside lower center", ncol=5, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def layers_figure(found: Mapping[str, Any], title: str = "") -> Any:
    """Measures over layers, one row of panels per kind of query: entropy, distance, share ahead (dots: heads), shares.

    ``found``: `ttt.inspection.attention.summary`.  Dashes in the last panel: what looking at everything allowed alike would give.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    names = [k for k in KINDS if k in found]
    panels = (("entropy", "entropy (nats)"), ("distance", "distance (tokens)"), ("ahead", "share looking ahead"))
    figure = Figure(figsize=(12.0, 2.5 * len(names) + 0.9), dpi=120, layout="constrained")
    grid = figure.subplots(len(names), len(panels) + 1, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        layers = found[name]["layers"]
        x = np.arange(len(layers))
        for axes, (key, label) in zip(row, panels, strict=False):
            for number, layer in enumerate(layers):
                dots = [h[key] for h in layer["heads"]]
                axes.plot([number] * len(dots), dots, ".", color=COLOURS[name], alpha=0.35, markersize=5, zorder=1)
            axes.plot(x, [layer["mean"][key] for layer in layers], "-o", color=COLOURS[name], markersize=4, zorder=2)
            axes.set_ylim(0, 1.02 if key == "ahead" else None)
            axes.set_title(label, fontsize=9)
        row[0].set_ylabel(f"{name} looks\n({found[name]['queries']} positions)", fontsize=9, color=_INK)
        _shares(row[-1], found[name], x)
        for axes in row:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlim(-0.5, len(layers) - 0.5)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("layer", fontsize=8)
    patches = [Patch(color=COLOURS[k], label=f"to {k}") for k in KINDS]
    figure.legend(handles=patches, loc="outside lower center", ncol=4, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _shares(axes: Any, part: Mapping[str, Any], x: np.ndarray) -> None:
    bottom, level = np.zeros(len(x)), 0.0
    for k in KINDS:
        share = np.array([layer["mean"]["to"][k] for layer in part["layers"]])
        axes.bar(x, share, bottom=bottom, color=COLOURS[k], width=0.8)
        bottom = bottom + share
        level += part["uniform"][k]
        if 0.001 < level < 0.999:
            axes.axhline(level, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1)
    axes.set_title("where to (dashes: all alike)", fontsize=9)
