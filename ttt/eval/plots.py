"""PNG plots for reports, drawn without a display and without touching matplotlib's global state.

Letters: ``T`` positions, ``M`` mel bands, ``F`` frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import DataError
from ttt.io.atomic import file_aside
from ttt.types import Kind

TEXT, AUDIO, REST, INK = "#2b6cb0", "#dd6b20", "#718096", "#1a202c"
_KIND_COLORS = {int(Kind.PAD): "#e2e8f0", int(Kind.TEXT): TEXT, int(Kind.AUDIO): AUDIO}
_TWIN = "unseen_voice/"
_MODALITY = {"ar": ("text (ar)", TEXT), "nar": ("audio (nar)", AUDIO)}


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Key -> (steps, values) of every loss in a log: keys with a part ``loss`` or ``loss_..``; null becomes NaN."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        step = record.get("step")
        if not isinstance(step, (int, float)):
            continue
        for key, value in record.items():
            parts = key.split("/")
            if isinstance(value, (int, float, type(None))) and any(p == "loss" or p.startswith("loss_") for p in parts):
                steps, values = series.setdefault(key, ([], []))
                steps.append(step)
                values.append(float("nan") if value is None else value)
    return {k: (np.asarray(s), np.asarray(v)) for k, (s, v) in series.items()}


def loss_curves(records: Sequence[Mapping[str, Any]], out: str | Path) -> bool:
    """Losses over steps, one panel per modality: training thin with its running mean, validation with dots.

    A key's modality is its last part: ``.../ar`` is text, ``.../nar`` audio, anything else (the total) its own panel.
    Returns False, and writes nothing, when the log holds no loss.
    """
    panels: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    for key, (steps, values) in curves(records).items():
        last = key.rsplit("/", 1)[-1].removeprefix("loss_")
        title = _MODALITY.get(last, ("total" if last == "loss" else last, REST))[0]
        panels.setdefault(title, []).append((key, steps, values))
    if not panels:
        return False
    order = {"total": 0, "text (ar)": 1, "audio (nar)": 2}
    titles = sorted(panels, key=lambda t: (order.get(t, 3), t))
    figure = new_figure(3.6 * len(titles) + 0.6, 3.0)
    colors = dict(_MODALITY.values())
    for number, title in enumerate(titles):
        axes = figure.add_subplot(1, len(titles), number + 1)
        color = colors.get(title, REST)
        for key, steps, values in sorted(panels[title]):
            held_out = key.split("/")[0] not in ("train", "loss")
            if held_out:
                axes.plot(steps, values, "o-", color=INK, markersize=3, linewidth=1, label=key)
            else:
                axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
                axes.plot(steps, _running_mean(values), color=color, linewidth=1.6, label=key)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nat)" if number == 0 else "")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    return write_png(figure, out)


def mel_pair(mels: Sequence[tuple[str, np.ndarray]], out: str | Path, frame_s: float, title: str = "") -> bool:
    """Mel spectrograms one above the other on one time axis and one colour scale.  Each: title, log mel f32 [M, F]."""
    shown = [(name, mel) for name, mel in mels if mel.size]
    if not shown:
        return False
    low = min(float(np.quantile(mel, 0.02)) for _, mel in shown)
    high = max(float(mel.max()) for _, mel in shown)
    longest_s = max(mel.shape[1] for _, mel in shown) * frame_s
    width, height = float(np.clip(2.2 * longest_s + 1.5, 5, 12)), 1.7 * len(shown) + 0.7
    figure = new_figure(width, height, layout=None)  # placed by hand: twice as fast, and many are drawn
    figure.subplots_adjust(0.6 / width, 0.45 / height, 1 - 0.15 / width, 1 - 0.5 / height, hspace=0.25)
    for number, (name, mel) in enumerate(shown):
        axes = figure.add_subplot(len(shown), 1, number + 1)
        axes.set_facecolor("#f7fafc")
        axes.imshow(
            mel, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest",
            extent=(0.0, mel.shape[1] * frame_s, 0.0, float(len(mel))),
        )  # fmt: skip
        axes.set_xlim(0, longest_s)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_ylabel("mel band", fontsize=8)
        axes.tick_params(labelsize=7)
        if number + 1 < len(shown):
            axes.set_xticklabels([])
    figure.axes[-1].set_xlabel("seconds", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return write_png(figure, out)


def mask_picture(allowed: np.ndarray, kind: np.ndarray, out: str | Path, title: str = "attention mask") -> bool:
    """The attention mask.  ``allowed`` bool [T, T] (rows are queries, columns are keys), ``kind`` u8 [T].

    A cell has the colour of its key's modality; the strips above and to the left show the modality of each position.
    """
    allowed, kind = np.asarray(allowed, dtype=bool), np.asarray(kind)
    if allowed.ndim != 2 or allowed.shape != (len(kind), len(kind)):
        raise DataError(
            f"mask_picture: expected allowed [T, T] and kind [T], got {list(allowed.shape)} and {list(kind.shape)}"
        )
    if not len(kind):
        return False
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    palette = np.array([to_rgb(_KIND_COLORS[k]) for k in sorted(_KIND_COLORS)])  # [3, rgb]
    strip = palette[kind.astype(int)]  # [T, rgb]
    cells = np.where(allowed[:, :, None], 0.35 + 0.65 * strip[None], 1.0)  # [T, T, rgb]
    figure = new_figure(5.4, 5.8)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 24), height_ratios=(1, 24), wspace=0.02, hspace=0.02)
    body = figure.add_subplot(grid[1, 1])
    body.imshow(cells, interpolation="nearest", aspect="auto")
    body.set_xlabel("key position")
    body.set_yticks([])
    top, left = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 0])
    top.imshow(strip[None], interpolation="nearest", aspect="auto")
    top.set_xticks([])
    top.set_yticks([])
    top.set_title(f"{title}, {len(kind)} positions", fontsize=10)
    left.imshow(strip[:, None], interpolation="nearest", aspect="auto")
    left.set_xticks([])
    left.set_ylabel("query position")
    names = {Kind.TEXT: "text", Kind.AUDIO: "audio", Kind.PAD: "padding"}
    patches = [Patch(color=_KIND_COLORS[int(k)], label=n) for k, n in names.items() if (kind == int(k)).any()]
    patches.append(Patch(facecolor="white", edgecolor="#a0aec0", label="blocked"))
    figure.legend(handles=patches, loc="outside lower center", ncol=4, fontsize=8, frameon=False)
    return write_png(figure, out)


def metric_bars(values: Mapping[str, Mapping[str, Any]], out: str | Path, title: str = "") -> bool:
    """Rates with their intervals as bars in per cent.  ``values``: key -> {value, low, high, n, higher_is_better}.

    Error rates and shares have a panel each; a key and the same key under ``unseen_voice/`` share one line.
    """
    known = {k: v for k, v in values.items() if v.get("value") is not None}
    panels = [
        (name, own)
        for name, good in (("lower is better", False), ("higher is better", True))
        if (own := {k: v for k, v in known.items() if bool(v.get("higher_is_better")) is good})
    ]
    if not panels:
        return False
    heights = [len({k.removeprefix(_TWIN) for k in own}) for _, own in panels]
    figure = new_figure(7.0, 0.42 * sum(heights) + 0.9 * len(panels))
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    widest = max(100.0 * (v.get("high") or v["value"]) for v in known.values())
    for number, (name, own) in enumerate(panels):
        axes = figure.add_subplot(grid[number, 0])
        _bars(axes, own)
        axes.set_xlim(0, max(1.12 * widest, 1.0))
        axes.set_title(name, fontsize=9, loc="left")
    if any(k.startswith(_TWIN) for k in known):
        figure.axes[0].legend(fontsize=8, frameon=False, loc="best")
    figure.axes[-1].set_xlabel("per cent, with 95 % intervals", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return write_png(figure, out)


def _bars(axes: Any, known: Mapping[str, Mapping[str, Any]]) -> None:
    rows = list(dict.fromkeys(k.removeprefix(_TWIN) for k in known))
    twins = any(k.startswith(_TWIN) for k in known)
    height = 0.36 if twins else 0.6
    for offset, before, color, label in ((-1, "", TEXT, "seen voices"), (1, _TWIN, AUDIO, "unseen voices")):
        shown = [(i, known[before + key]) for i, key in enumerate(rows) if before + key in known]
        if not shown:
            continue
        at = np.array([i for i, _ in shown]) + (offset * height / 2 if twins else 0)
        value, low, high = (
            np.array([100.0 * (v[part] if v.get(part) is not None else v["value"]) for _, v in shown])
            for part in ("value", "low", "high")
        )
        errors = np.maximum(np.stack([value - low, high - value]), 0)
        axes.barh(at, value, height, color=color, alpha=0.85, label=label, xerr=errors, ecolor=INK, capsize=2)
        for y, v, h in zip(at, value, high):
            axes.annotate(f"{v:.1f}", (max(v, h), y), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.25)


def new_figure(width: float, height: float, layout: Any = "constrained") -> Any:
    """A figure of ``width`` x ``height`` inches without a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout=layout)


def write_png(figure: Any, out: str | Path) -> bool:
    """Write the file completely or not at all; always True."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with file_aside(out) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary), metadata={"Software": "ttt"})
    return True


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a window of 1/20 of the curve, shorter at its ends; NaN counts as absent."""
    half = max(1, len(values) // 40)
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    lo = np.maximum(np.arange(len(values)) - half, 0)
    hi = np.minimum(np.arange(len(values)) + half + 1, len(values))
    number = counts[hi] - counts[lo]
    return np.where(number > 0, (sums[hi] - sums[lo]) / np.maximum(number, 1), np.nan)
