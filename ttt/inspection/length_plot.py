"""A histogram of lengths as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ttt.eval.plots import AUDIO, INK, REST, TEXT, new_figure, write_png

BINS = 60


def length_histogram(
    lengths: np.ndarray, out: str | Path, contexts: Sequence[int] = (), unit: str = "tokens", title: str = ""
) -> bool:
    """Draw how long examples i64 [n] are, with mean, median and the share that is longer than each of ``contexts``.

    The range is that of the data; a context beyond it stands in the legend only.
    """
    lengths = np.asarray(lengths)
    figure = new_figure(7.2, 3.8)
    axes = figure.add_subplot()
    low, high = float(lengths.min()), float(max(lengths.max(), lengths.min() + 1))
    axes.hist(lengths, bins=np.linspace(low, high, BINS + 1), color=TEXT, edgecolor="white", linewidth=0.4)
    mean, median = float(lengths.mean()), float(np.median(lengths))
    axes.axvline(mean, color=INK, linewidth=1, label=f"mean {mean:.0f}")
    axes.axvline(median, color=REST, linewidth=1, linestyle=":", label=f"median {median:.0f}")
    for number, tokens in enumerate(sorted(contexts)):
        share = float((lengths > tokens).mean())
        label = f"context {tokens}: {f'{share:.1%} are' if share else 'none is'} longer"
        if tokens <= high:
            axes.axvline(tokens, color=AUDIO, linewidth=1.4, linestyle=("--", "-.", ":")[number % 3], label=label)
        else:  # no line: it would squeeze the picture
            axes.plot([], [], " ", label=label)
    axes.set_xlabel(f"length ({unit})")
    axes.set_ylabel("examples")
    axes.set_title(title or f"{len(lengths):,} examples", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return write_png(figure, out)
