"""Where a recording is cut into prompt and continuation (specification of AudioLM, section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ttt.errors import ConfigError
from ttt.registry import NonNegativeFloat, PositiveFloat, PositiveInt, Range, checked


@checked
@dataclass(frozen=True)
class Cut:
    """How long prompts are.

    ``fixed``: ``share`` of the recording, at least ``least`` frames, at most half of the longest recording (which wins over
    ``least``).  ``uniform``: a share drawn between ``low`` and ``high``.  ``seconds``: a time drawn between them.
    ``by`` batch: all rows have the shortest of their prompts; ``row``: each its own.
    """

    mode: Literal["stored", "fixed", "uniform", "seconds"] = "stored"  # stored: as the examples have it
    share: Annotated[float, Range(gt=0, lt=1)] = 0.4  # fixed
    least: PositiveInt = 50  # fixed: frames
    low: PositiveFloat = 0.3  # uniform: share; seconds: time
    high: PositiveFloat = 0.5
    frame_rate_hz: NonNegativeFloat = 0.0  # seconds: frames of a second; 0: the codec's, as the tokenizer's vocab.json has it
    by: Literal["batch", "row"] = "batch"  # rows of a batch share the shortest prompt, or each has its own

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"need low <= high, got {self.low} and {self.high}")
        if self.mode == "uniform" and self.high >= 1:
            raise ValueError(f"uniform shares must lie below 1, got high = {self.high}")

    def at_rate(self, frame_rate_hz: float) -> Cut:
        """The cut for codes of so many frames a second (0: unknown); what it says itself wins."""
        return self if self.frame_rate_hz else dataclasses.replace(self, frame_rate_hz=frame_rate_hz)

    def prompts(self, lengths: Sequence[int], draws: Sequence[float]) -> list[int]:
        """Frames of each row's prompt; ``lengths``: of the recordings, >= 2; ``draws``: one number in [0, 1) a row.

        Raises `ConfigError` for mode ``seconds`` where nobody has said how many frames a second has.

        >>> Cut("fixed").prompts([500, 400], [0.0, 0.0])
        [160, 160]
        >>> Cut("fixed").prompts([90], [0.0])
        [45]
        """
        if self.mode == "stored":
            raise ValueError("mode 'stored' takes prompts as they are")
        if self.mode == "seconds" and not self.frame_rate_hz:
            raise ConfigError(
                "cut: mode 'seconds' needs the frames of a second, and the tokenizer does not say which codec made the codes; "
                "set cut.frame_rate_hz, or make the tokenizer with codec= (or data.codes_of, data.codes_hz)"
            )
        longest = max(lengths)
        found = [self._prompt(n, longest, d) for n, d in zip(lengths, draws, strict=True)]
        if self.by == "batch":
            found = [min(found)] * len(found)
        return [min(p, n - 1) for p, n in zip(found, lengths, strict=True)]  # something is left to say

    def _prompt(self, length: int, longest: int, draw: float) -> int:
        if self.mode == "fixed":
            return max(1, min(max(int(self.share * length), self.least), longest // 2))
        wanted = self.low + (self.high - self.low) * draw
        return max(1, int(wanted * (length if self.mode == "uniform" else self.frame_rate_hz)))
