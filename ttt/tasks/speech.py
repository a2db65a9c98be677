"""Speech tasks: recognition, synthesis, spoken question answering.

Answers follow the interleaving of TtT (arXiv 2509.20072): n text tokens, then m audio codes between ``<|begin_of_audio|>``
and ``<|end_of_audio_new|>``, repeated; the last chunk holds the remaining text and *all* remaining codes in a quad span.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.registry.families import TASK
from ttt.tasks.base import COST, TEXT_OVERLAP, ChatTask, codes_of, named, text_of, user_speech
from ttt.types import Example, Span


class _HeardTask(ChatTask):
    """Speech in, text and (with ``speak``) speech out."""

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the input's codes.  Assistant: the text (and its speech)."""
        speech = codes_of(item, "output", codes) if self.speak else np.zeros((0, 1), dtype=np.int32)
        user = (user_speech(codes_of(item, "input", codes)),)
        return self.example(item, user, self.answer(text_of(item, "text_out"), speech))


@TASK.register("asr")
@dataclass(frozen=True)
class Asr(_HeardTask):
    """Speech -> text.  With ``speak`` the transcript is also spoken, in the output voice."""

    system: str = "write what you hear"

    @property
    def metrics(self) -> Mapping[str, str]:
        """Word and character error rates of the text; judged error rate of the speech if there is any."""
        return named("wer", "cer", *(["judged_wer"] if self.speak else []), "rtf", "calls_per_second")


@TASK.register("tts")
@dataclass(frozen=True)
class Tts(ChatTask):
    """Text -> speech.  With interleaving (``text_chunk`` > 0) the answer repeats the text chunk by chunk."""

    system: str = "read this aloud"

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the text.  Assistant: its speech."""
        answer = self.answer(item["text_out"] if self.text_chunk else "", codes_of(item, "output", codes))
        return self.example(item, (Span("text", text_of(item, "text_in")),), answer)

    @property
    def metrics(self) -> Mapping[str, str]:
        """What a judge hears, the length of the speech, cost."""
        return named("judged_wer", "judged_cer", "length_ratio", "empty_rate", *COST)


@TASK.register("qa")
@dataclass(frozen=True)
class SpokenQa(_HeardTask):
    """Spoken question -> answer in text and speech."""

    system: str = "answer the question"

    @property
    def metrics(self) -> Mapping[str, str]:
        """Accuracy of the text and of what a judge hears; text overlap; cost."""
        return named("accuracy", *(["spoken_accuracy", "judged_wer"] if self.speak else []), *TEXT_OVERLAP, *COST)
