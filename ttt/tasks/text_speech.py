"""Text question -> text answer, then all of its speech (spec of SLAM-Omni, section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.registry.families import TASK
from ttt.tasks.speech import _codes, _SpeechTask, _text
from ttt.types import Example, Span


@TASK.register("text_then_speech")
@dataclass(frozen=True)
class TextThenSpeech(_SpeechTask):
    """Text question -> the whole answer in text, then all of its codes in one span.

    What stands between them is decided by the form of the tokenizer (``data.form``): nothing, or tags.  Examples of
    ``ttt data convert --from slam_omni`` are of this task.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_chunk or not self.speak:
            raise ValueError("text_then_speech writes all text, then all speech: text_chunk is 0 and speak is true")

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the question.  Assistant: the answer and its speech."""
        spoken = _codes(codes, item, "output")
        answer = (Span("text", _text(item, "text_out")), Span("audio", codes=spoken, style="last"))
        return self._example(item, (Span("text", _text(item, "text_in")),), answer)

    @property
    def metrics(self) -> Mapping[str, str]:
        """Accuracy and overlap of the text, what a judge hears of the speech, cost."""
        return {
            "accuracy": "accuracy", "spoken_accuracy": "spoken_accuracy", "judged_wer": "judged_wer",
            "exact_match": "exact_match", "bleu": "bleu", "chrf": "chrf", "length_ratio": "length_ratio",
            "empty_rate": "empty_rate", "rtf": "rtf", "calls_per_second": "calls_per_second",
        }  # fmt: skip
