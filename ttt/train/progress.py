"""What a run reports while it runs: ``metrics.jsonl`` and TensorBoard with stable keys, and a progress bar.

Keys: ``train/loss``, ``train/loss/<term>``, ``train/<stat>``, ``train/grad_norm``, ``train/lr``, ``train/tokens``,
``train/tokens_per_s``, ``train/epoch``, ``train/seconds``; ``dev/loss``, ``dev/loss/<term>``, ``dev/<stat>``, and the same
as ``dev_ema/...`` of averaged weights; in float16 ``train/loss_scale`` and ``train/skipped``, the number of updates that
overflowed since the start; callbacks choose their own.  One line per step, ``step`` first;
after a resume no step appears twice.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ttt.errors import MissingExtraError
from ttt.io.metrics_log import ANSWERS_FILE, METRICS_FILE, MetricsLog, cut_back
from ttt.io.system_errors import is_disk_full
from ttt.train.checkpoint import DiskFullError
from ttt.train.step import StepReport

log = logging.getLogger(__name__)

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Window:
    """Means since the last line of the log.  Plain numbers, stored in checkpoints: a resume changes no line."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.means: dict[str, list[float]] = {k: list(v) for k, v in state.get("means", {}).items()}  # [sum, count]
        self.tokens = int(state.get("tokens", 0))
        self.seconds = float(state.get("seconds", 0.0))

    def add(self, report: StepReport, seconds: float) -> None:
        """Count one update in: each update weighs the same, each statistic by its own count."""
        values = {"train/loss": (report.loss, 1.0)}
        if not report.skipped:
            values["train/grad_norm"] = (report.grad_norm, 1.0)
        values.update({f"train/loss/{name}": (value, 1.0) for name, value in report.terms.items()})
        values.update({f"train/{name}": pair for name, pair in report.stats.items()})
        for key, (value, count) in values.items():
            mean = self.means.setdefault(key, [0.0, 0.0])
            mean[0] += value
            mean[1] += count
        self.tokens += report.tokens
        self.seconds += seconds

    def flush(self) -> dict[str, float]:
        """Means by key; starts afresh."""
        values = means(self.means)
        if self.seconds > 0:
            values["train/tokens_per_s"] = self.tokens / self.seconds
        self.means, self.tokens, self.seconds = {}, 0, 0.0
        return values

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"means": self.means, "tokens": self.tokens, "seconds": self.seconds}


def means(pairs: Mapping[str, Any]) -> dict[str, float]:
    """(sum, count) -> mean; what has no count is left out.  Of a key with a part ``ppl`` it is exp of the mean: a perplexity.

    >>> means({"a": (3.0, 2.0), "b": (0.0, 0.0), "dev/ppl/book0": (0.0, 4.0)})
    {'a': 1.5, 'dev/ppl/book0': 1.0}
    """
    found = {key: value / count for key, (value, count) in pairs.items() if count > 0}
    return {key: math.exp(min(v, 700.0)) if "ppl" in key.split("/") else v for key, v in found.items()}


class Tracker:
    """Writes the metrics of rank zero; on other ranks it does nothing."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = True, enabled: bool = True) -> None:
        self.path = folder / METRICS_FILE
        self.enabled = enabled
        self._board: Any = None
        if not enabled:
            return
        self._log = MetricsLog(self.path, step)
        cut_back(folder / ANSWERS_FILE, step)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError(
                    f"train.tensorboard: {error}; 'pip install tensorboard' or train.tensorboard=false"
                ) from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line.  Values that are not finite become null in the file."""
        if not self.enabled or not values:
            return
        try:
            self._log.append(step, values)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(f"{self.path}: the disk is full; make room, then run again") from error
            raise
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def sync(self) -> None:
        """Everything written so far is on the disk."""
        if self.enabled:
            self._log.sync()
            if self._board is not None:
                self._board.flush()

    def close(self) -> None:
        """End the files."""
        if self.enabled:
            self._log.close()
            if self._board is not None:
                self._board.close()


class Progress:
    """A bar on a terminal (`tqdm`); elsewhere one line per record.

    ``steps`` of the run, ``step`` of them done before; ``max_seconds`` (0: none) bounds the time that is left.
    """

    def __init__(
        self, steps: int, max_seconds: float = 0.0, enabled: bool = True, stream: TextIO | None = None, step: int = 0
    ) -> None:
        self.steps, self.max_seconds, self.enabled = steps, max_seconds, enabled
        stream = stream or sys.stderr
        self._recent: list[tuple[float, int, int]] = []  # (time, step, tokens)
        self._bar: Any = None
        if enabled and stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=step, file=stream, mininterval=0.2, dynamic_ncols=True, bar_format=BAR)

    def update(self, step: int, tokens: int, loss: float, elapsed_s: float) -> None:
        """After each update."""
        self._recent = [*self._recent[-50:], (time.monotonic(), step, tokens)]
        if self._bar is not None:
            rate, left = self._rates(step, elapsed_s)
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} tokens/s, ETA {clock(left)}", refresh=False)
            self._bar.update(step - self._bar.n)

    def record(self, step: int, values: Mapping[str, float], elapsed_s: float) -> None:
        """After each line of the log."""
        if not self.enabled or not values:
            return
        if self._bar is not None:
            if not any(k.startswith("dev/") for k in values):
                return
            self._bar.clear()  # the line of the log takes the bar's place, which is drawn again below it
        _, left = self._rates(step, elapsed_s)
        shown = [
            f"{label} {values[key]:.{digits}f}"
            for key, label, digits in (
                ("train/loss", "loss", 4), ("dev/loss", "dev", 4), ("train/grad_norm", "norm", 2),
                ("train/tokens_per_s", "tokens/s", 0),
            ) if key in values
        ]  # fmt: skip
        terms = [f"{k.removeprefix('train/loss/')} {v:.4f}" for k, v in values.items() if k.startswith("train/loss/")]
        log.info("step %d/%d  %s  ETA %s", step, self.steps, "  ".join([*shown[:1], *terms, *shown[1:]]), clock(left))

    def end(self) -> None:
        """Leave the bar's line."""
        if self._bar is not None:
            self._bar.close()

    def _rates(self, step: int, elapsed_s: float) -> tuple[float, float]:
        """Tokens per second, and seconds left."""
        if len(self._recent) < 2:
            return 0.0, math.inf
        (t0, s0, n0), (t1, s1, n1) = self._recent[0], self._recent[-1]
        span = max(t1 - t0, 1e-9)
        left = (self.steps - step) * span / max(s1 - s0, 1)
        if self.max_seconds:
            left = min(left, max(0.0, self.max_seconds - elapsed_s))
        return (n1 - n0) / span, left


def clock(seconds: float) -> str:
    """h:mm:ss.

    >>> clock(3725.4), clock(math.inf)
    ('1:02:05', '?')
    """
    if not math.isfinite(seconds):
        return "?"
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
