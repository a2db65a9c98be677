"""Text tasks: a text prompt, a text answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.registry.families import TASK
from ttt.tasks.speech import _SpeechTask, _text
from ttt.types import Example, Span


@TASK.register("text_qa")
@dataclass(frozen=True)
class TextQa(_SpeechTask):
    """Text question -> text answer: what is left of the language model's own abilities.

    ``items``: the task of the corpus' items it is made of, for example ``qa`` (spoken questions, here in writing); empty: its
    own.
    """

    system: str = "answer the question"
    speak: bool = False
    items: str = ""

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the question.  Assistant: the answer."""
        return self._example(item, (Span("text", _text(item, "text_in")),), (Span("text", _text(item, "text_out")),))

    @property
    def metrics(self) -> Mapping[str, str]:
        """Accuracy and overlap with the reference."""
        return {"accuracy": "accuracy", "exact_match": "exact_match", "bleu": "bleu", "chrf": "chrf"}
