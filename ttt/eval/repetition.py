"""Does speech that goes on freely repeat itself?  Metrics of words and of codes that need no reference."""

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
    needs_reference: ClassVar[bool] = False

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


@METRIC.register("token_entropy")
@dataclass(frozen=True)
class TokenEntropy(Metric):
    """Entropy, in bits, of the audio codes (first codebook) within an answer; mean over answers, 0 for silent ones.

    -sum p log2 p, p the share of each code among the answer's frames.  A model that repeats itself can have a low perplexity
    (``gen_ppl``); this number then falls too.  Source: Zheng et al., arXiv 2409.02908, who give it in nats for text.
    """

    unit: ClassVar[str] = "score"
    rests_on: ClassVar[tuple[str, ...]] = ()
    higher_is_better: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """f64 [2]: bits, 1; None when the answer need not be spoken."""
        codes = scored.get("codes")
        if codes is None:
            return None
        _, counts = np.unique(codes[:, 0], return_counts=True)
        shares = counts / max(1, len(codes))
        return np.array([-(shares * np.log2(shares)).sum() + 0.0, 1], dtype=np.float64)

    def total(self, statistics: np.ndarray) -> float:
        """Mean over answers."""
        return ratio(statistics[0], statistics[1])
