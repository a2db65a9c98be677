"""Where a recording is cut into the prompt and the continuation that is to be predicted (as in AudioLM, arXiv 2209.03143)."""

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

    ``mode``: ``stored``: as in the examples.  ``fixed``: ``share`` of the recording, at least ``least`` frames, but at
    most half of the longest recording of the batch.  ``uniform``: a share drawn between ``low`` and ``high``.
    ``seconds``: a number of seconds drawn between ``low`` and ``high``.  ``by``: ``batch``: every row gets the shortest
    prompt of its batch; ``row``: each row gets its own.
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
        """The same with this frame rate, unless one is set already (0: unknown)."""
        return self if self.frame_rate_hz else dataclasses.replace(self, frame_rate_hz=frame_rate_hz)

    def prompts(self, lengths: Sequence[int], draws: Sequence[float]) -> list[int]:
        """Frames of each row's prompt; ``lengths``: of the recordings, >= 2; ``draws``: one number in [0, 1) a row.

        Raises `ConfigError` for mode ``seconds`` when the frame rate is unknown.

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
        frames = [self._prompt(n, longest, d) for n, d in zip(lengths, draws, strict=True)]
        if self.by == "batch":
            frames = [min(frames)] * len(frames)
        return [min(p, n - 1) for p, n in zip(frames, lengths, strict=True)]  # at least one frame is left to predict

    def _prompt(self, length: int, longest: int, draw: float) -> int:
        if self.mode == "fixed":
            return max(1, min(max(int(self.share * length), self.least), longest // 2))
        drawn = self.low + (self.high - self.low) * draw
        return max(1, int(drawn * (length if self.mode == "uniform" else self.frame_rate_hz)))
