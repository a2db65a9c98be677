"""Tasks with a written prompt: an answer in text, or in text and then in speech."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.registry.families import TASK
from ttt.tasks.base import TEXT_OVERLAP, ChatTask, codes_of, final_speech, named, text_of
from ttt.types import Example, Span


@TASK.register("text_qa")
@dataclass(frozen=True)
class TextQa(ChatTask):
    """Text question -> text answer: what is left of the language model's own abilities.

    ``items``: the task of the corpus items it is made of, for example ``qa`` (spoken questions, here in writing); empty: its
    own name.
    """

    system: str = "answer the question"
    speak: bool = False
    items: str = ""

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the question.  Assistant: the answer."""
        return self.example(item, (Span("text", text_of(item, "text_in")),), (Span("text", text_of(item, "text_out")),))

    @property
    def metrics(self) -> Mapping[str, str]:
        """Accuracy and overlap with the reference."""
        return named("accuracy", *TEXT_OVERLAP)


@TASK.register("text_then_speech")
@dataclass(frozen=True)
class TextThenSpeech(ChatTask):
    """Text question -> the whole answer in text, then all of its codes in one span (SLAM-Omni, arXiv 2412.15649).

    What stands between text and codes depends on the form of the tokenizer (``data.form``): nothing, or tags.
    ``ttt data convert --from slam_omni`` makes examples of this task.
    """

    def __post_init__(self) -> None:
        if self.text_chunk or not self.speak:
            raise ValueError("text_then_speech writes all text, then all speech: text_chunk is 0 and speak is true")

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the question.  Assistant: the answer and its speech."""
        speech = codes_of(item, "output", codes)
        answer = (Span("text", text_of(item, "text_out")), final_speech(speech))
        return self.example(item, (Span("text", text_of(item, "text_in")),), answer)

    @property
    def metrics(self) -> Mapping[str, str]:
        """Accuracy and overlap of the text, what a judge hears of the speech, cost."""
        return named(
            "accuracy", "spoken_accuracy", "judged_wer", *TEXT_OVERLAP, "length_ratio", "empty_rate", "rtf", "calls_per_second"
        )
