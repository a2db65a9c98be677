"""Speech tasks: recognition, synthesis, spoken question answering.

A corpus item names the utterances of its input and output; a task turns it into a chat.  Answers follow the paper's
interleaving: n text tokens, then m audio codes between ``<|begin_of_audio|>`` and ``<|end_of_audio_new|>``, again and
again; the last chunk holds the remaining text and *all* remaining codes in a quad span (spec of TtT, section 2.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.data.read.examples import interleave
from ttt.errors import DataError
from ttt.interfaces import Task
from ttt.registry.families import TASK
from ttt.types import Example, Span, Turn


@dataclass(frozen=True)
class _SpeechTask(Task):
    """Shared by the speech tasks.

    ``system``: the system message.  ``text_chunk`` words : ``audio_chunk`` codes is the interleaving; text_chunk 0 writes
    all text, then one quad span.  ``speak``: whether the answer is also spoken.
    """

    system: str = ""
    text_chunk: int = 0
    audio_chunk: int = 26
    speak: bool = True

    def __post_init__(self) -> None:
        if self.text_chunk < 0 or self.audio_chunk < 1:
            raise ValueError(f"need text_chunk >= 0 and audio_chunk >= 1, got {self.text_chunk} and {self.audio_chunk}")

    def prompt(self, example: Example) -> Example:
        """Everything before the last assistant turn."""
        if example.turns[-1].role != "assistant":
            raise DataError(
                f"example {example.uid!r}: the last turn must be the assistant's, got {example.turns[-1].role!r}"
            )
        return Example(example.uid, example.turns[:-1], example.task, example.meta)

    def _example(self, item: Mapping[str, Any], user: tuple[Span, ...], answer: tuple[Span, ...]) -> Example:
        turns = (Turn("system", (Span("text", self.system),)), Turn("user", user), Turn("assistant", answer))
        meta = {
            "text_ref": (said := _text(item, "text_out")), "speech_ref": said, "answer_key": item.get("answer_key") or None,
            "split": item.get("split", ""), "kind": item.get("kind", ""), "input": item.get("input"),
            **({"distractors": item["distractors"]} if item.get("distractors") else {}),
        }  # fmt: skip
        suffix = f"#{self.text_chunk}:{self.audio_chunk}" if self.text_chunk else ""
        return Example(f"{item['id']}{suffix}", turns, self.label, meta)

    @property
    def label(self) -> str:
        """What results are reported under: the task's name, with its interleaving if it has one."""
        name = getattr(type(self), "registered_name", type(self).__name__)
        return f"{name}_{self.text_chunk}_{self.audio_chunk}" if self.text_chunk else name


def _codes(codes: Mapping[str, np.ndarray], item: Mapping[str, Any], field: str) -> np.ndarray:
    utterance = item.get(field)
    if utterance is None:
        raise DataError(f"item {item.get('id')!r}: task {item.get('task')!r} needs {field!r}, the item has none")
    if utterance not in codes:
        raise DataError(
            f"item {item.get('id')!r}: no codes for utterance {utterance!r}; run 'ttt tokenize' on its manifest"
        )
    return codes[utterance]


def _text(item: Mapping[str, Any], field: str) -> str:
    """Words of an item; recordings may be without any, tasks that read them are not."""
    if not item[field].strip():
        raise DataError(
            f"item {item.get('id')!r}: task {item.get('task')!r} reads {field!r}, which is empty; write what utterance "
            f"{item.get('input' if field == 'text_in' else 'output')!r} says, or leave the item out"
        )
    return item[field]


class _HeardTask(_SpeechTask):
    """Speech in, text and (with ``speak``) speech out."""

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the input's codes.  Assistant: the text (and its speech)."""
        spoken = _codes(codes, item, "output") if self.speak else np.zeros((0, 1), dtype=np.int32)
        user = (Span("audio", codes=_codes(codes, item, "input"), style="user"),)
        answer = interleave(_text(item, "text_out").split(), spoken, self.text_chunk, self.audio_chunk)
        return self._example(item, user, answer)


@TASK.register("asr")
@dataclass(frozen=True)
class Asr(_HeardTask):
    """Speech -> text, answered with the transcript and, with ``speak``, copy-synthesis in the output voice."""

    system: str = "write what you hear"

    @property
    def metrics(self) -> Mapping[str, str]:
        """Word and character error rates of the text; judged error rate of the speech if there is any."""
        spoken = {"judged_wer": "judged_wer"} if self.speak else {}
        return {"wer": "wer", "cer": "cer", **spoken, "rtf": "rtf", "calls_per_second": "calls_per_second"}


@TASK.register("tts")
@dataclass(frozen=True)
class Tts(_SpeechTask):
    """Text -> speech.  With interleaving (``text_chunk`` > 0) the answer repeats the text chunk by chunk."""

    system: str = "read this aloud"

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the text.  Assistant: its speech."""
        words = item["text_out"].split() if self.text_chunk else []
        answer = interleave(words, _codes(codes, item, "output"), self.text_chunk, self.audio_chunk)
        return self._example(item, (Span("text", _text(item, "text_in")),), answer)

    @property
    def metrics(self) -> Mapping[str, str]:
        """What a judge hears, how long it is, what it costs."""
        return {
            "judged_wer": "judged_wer", "judged_cer": "judged_cer", "length_ratio": "length_ratio",
            "empty_rate": "empty_rate", "rtf": "rtf", "first_block_latency": "first_block_latency",
            "calls_per_second": "calls_per_second",
        }  # fmt: skip


@TASK.register("qa")
@dataclass(frozen=True)
class SpokenQa(_HeardTask):
    """Spoken question -> text answer and the answer spoken."""

    system: str = "answer the question"

    @property
    def metrics(self) -> Mapping[str, str]:
        """Accuracy of the text and of what a judge hears; text overlap; cost."""
        spoken = {"spoken_accuracy": "spoken_accuracy", "judged_wer": "judged_wer"} if self.speak else {}
        return {
            "accuracy": "accuracy", **spoken, "exact_match": "exact_match", "bleu": "bleu", "chrf": "chrf", "rtf": "rtf",
            "first_block_latency": "first_block_latency", "calls_per_second": "calls_per_second",
        }  # fmt: skip
