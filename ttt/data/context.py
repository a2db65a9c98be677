"""What a context costs: the report before training.

Examples are never cut silently.  What is longer than a row is left out (or cut at a whole frame, where that is asked for)
and counted; here is told how much that is, and how much a cut at the end would lose: speech, and the end token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttt.errors import ConfigError


@dataclass(frozen=True)
class Context:
    """What a context of ``tokens`` does to examples."""

    tokens: int
    examples: int  # that are longer
    share: float  # of all examples
    dropped: float  # share of all tokens that is lost when the longer ones are left out
    cut: float  # share of all tokens that would lie behind the end of the context

    def line(self) -> str:
        """One line for a report.

        >>> Context(1024, 1, 0.25, 0.5, 0.125).line()
        '1 example (25.00 %) is longer than 1024 tokens: leaving it out loses 50.00 % of the tokens, a cut would lose 12.50 %'
        """
        if not self.examples:
            return f"no example is longer than {self.tokens} tokens"
        them, are = ("it", "example ({}) is") if self.examples == 1 else ("them", "examples ({}) are")
        return (
            f"{self.examples} {are.format(_percent(self.share))} longer than {self.tokens} tokens: leaving {them} out loses "
            f"{_percent(self.dropped)} of the tokens, a cut would lose {_percent(self.cut)}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def context(lengths: np.ndarray, tokens: int) -> Context:
    """What a context of ``tokens`` does to examples of these lengths, i64 [n].

    >>> context(np.array([2, 2, 8]), 4)
    Context(tokens=4, examples=1, share=0.3333333333333333, dropped=0.6666666666666666, cut=0.3333333333333333)
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    longer = lengths[lengths > tokens]
    n, total = max(len(lengths), 1), max(int(lengths.sum()), 1)
    return Context(
        tokens, len(longer), len(longer) / n, int(longer.sum()) / total, int((longer - tokens).sum()) / total
    )


def check_context(lengths: np.ndarray, tokens: int, key: str = "data.row_tokens") -> Context:
    """`context`.  Raises `ConfigError` naming the setting when not even the shortest example fits."""
    if len(lengths) and int(np.min(lengths)) > tokens:
        raise ConfigError(
            f"{key}: {tokens} is shorter than the shortest of {len(lengths)} examples ({int(np.min(lengths))} tokens); "
            f"the longest has {int(np.max(lengths))} ('ttt data stats' shows all)"
        )
    return context(lengths, tokens)
