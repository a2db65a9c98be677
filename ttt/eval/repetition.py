"""Does speech that goes on freely repeat itself?  Metrics that need no reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ttt.eval.metrics import ratio
from ttt.interfaces import Metric
from ttt.registry import PositiveInt
from ttt.registry.families import METRIC


@METRIC.register("auto_bleu")
@dataclass(frozen=True)
class AutoBleu(Metric):
    """Share of n-grams of words that come more than once in what the judge heard of an answer; mean over answers.

    Source: Lakhotia et al., arXiv 2102.01192, section 4.2, as slamkit computes it (``calc_auto_bleu``); words are the
    normaliser's.  An answer with fewer than n words repeats nothing.
    """

    n: PositiveInt = 2  # words of an n-gram

    unit: ClassVar[str] = "rate"
    needs_audio: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: share, 1; None when nobody listened."""
        if scored["judged_text"] is None:
            return None
        words = scored["normalize"](scored["judged_text"]).split()
        grams = Counter(zip(*(words[i:] for i in range(self.n)), strict=False))
        return np.array([sum(c for c in grams.values() if c > 1) / max(1, grams.total()), 1], dtype=np.float64)

    def total(self, statistics: np.ndarray) -> float:
        """Mean over answers."""
        return ratio(statistics[0], statistics[1])
