"""A task: speech in, the same words spoken in the output voice, without a transcript."""

from __future__ import annotations

from dataclasses import dataclass

from ttt.errors import DataError
from ttt.interfaces import Task
from ttt.registry.families import TASK
from ttt.types import Example, Span, Turn


@TASK.register("revoice")
@dataclass(frozen=True)
class Revoice(Task):
    """Speech -> the same words in the output voice; nothing is written."""

    system: str = "say it again"

    def build(self, item, codes):
        """User: the codes of ``input``.  Assistant: those of ``output``."""
        heard, said = (self._codes(item, codes, field) for field in ("input", "output"))
        turns = (
            Turn("system", (Span("text", self.system),)),
            Turn("user", (Span("audio", codes=heard, style="user"),)),
            Turn("assistant", (Span("audio", codes=said, style="last"),)),
        )
        meta = {"text_ref": None, "speech_ref": item["text_out"], "answer_key": None, "split": item.get("split", "")}
        return Example(str(item["id"]), turns, self.label, meta)

    def _codes(self, item, codes, field):
        utterance = item.get(field)
        if utterance not in codes:
            raise DataError(f"item {item.get('id')!r}: task 'revoice' needs codes of {field!r}, got {utterance!r}")
        return codes[utterance]

    def prompt(self, example):
        """Everything but the answer."""
        return Example(example.uid, example.turns[:-1], example.task, example.meta)

    @property
    def metrics(self):
        """What a judge hears, how long it is, what it costs."""
        return {"judged_wer": "judged_wer", "length_ratio": "length_ratio", "calls_per_second": "calls_per_second"}
