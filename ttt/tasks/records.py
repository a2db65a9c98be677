"""Tasks of records that bring their own answers: chats (TtT's, LLaDA's, anybody's) and pre-training documents.

Other tasks make examples from the items of a corpus.  These take a file as it is: what metrics compare with comes from the
record itself (`Task.with_reference`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np

from ttt.data.read.examples import words_of
from ttt.data.read.prompts import WHOLE
from ttt.errors import DataError
from ttt.interfaces import Task
from ttt.registry import PositiveInt, Range
from ttt.registry.families import TASK
from ttt.tasks.base import COST, codes_of, final_speech, named, text_of, user_speech, without_answer
from ttt.types import Example, Span, Turn, written_text


@TASK.register("chat")
@dataclass(frozen=True)
class Chat(Task):
    """Any chat: the prompt is everything before the last turn of the assistant's, and that turn is the reference.

    Where the answer holds speech, what a judge hears is compared with its text.  A chat that ends with the user's turn can
    be answered, but not scored.
    """

    speech_is_optional: ClassVar[bool] = True

    measure: list[Any] = field(default_factory=list)  # further metrics, names or blocks: gen_ppl, token_entropy, ...

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the input's codes, or else the text.  Assistant: the text, and the output's codes if there are any."""
        asked = user_speech(codes_of(item, "input", codes)) if item.get("input") else Span("text", text_of(item, "text_in"))
        spoken = (final_speech(codes_of(item, "output", codes)),) if item.get("output") else ()
        answer = Turn("assistant", (Span("text", text_of(item, "text_out")), *spoken))
        meta = {"split": item.get("split", ""), "kind": item.get("kind", "")}
        return self.with_reference(Example(str(item["id"]), (Turn("user", (asked,)), answer), self.label, meta))

    def prompt(self, example: Example) -> Example:
        """Everything before the answer; all of a chat that ends with the user's turn."""
        return example if example.turns[-1].role == "user" else without_answer(example)

    def with_reference(self, example: Example) -> Example:
        """``text_ref`` is the answer's text, ``speech_ref`` the same if the answer is spoken."""
        answer = example.turns[-1]
        if answer.role != "assistant" or "text_ref" in example.meta:
            return example
        text = written_text(answer.spans).strip() or None
        spoken = any(span.kind == "audio" for span in answer.spans)
        meta = {**example.meta, "text_ref": text, "speech_ref": text if spoken else None}
        return dataclasses.replace(example, meta=meta)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The text against the answer's, what a judge hears of the speech, its length, cost; and ``measure``."""
        listed = ("exact_match", "contained", "wer", "cer", "judged_wer", "length_ratio", "empty_rate", *COST)
        return named(*listed, *self.measure)


@TASK.register("document")
@dataclass(frozen=True)
class Document(Task):
    """Text or interleaved pre-training data, which has no answer: the beginning is the prompt, the model goes on.

    ``share`` of the words and frames are the prompt, which ends between words and never inside speech.  A document can go
    on in many ways, so ``chrf`` against the true rest tells little; ``ttt likelihood`` gives the model's -log p of all.
    """

    share: Annotated[float, Range(gt=0, lt=1)] = 0.5
    longest: PositiveInt = 500  # words and frames of a prompt, at most
    measure: list[Any] = field(default_factory=list)  # further metrics, names or blocks: gen_ppl, ...

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """The text, and the output's codes behind it if there are any."""
        spoken = (final_speech(codes_of(item, "output", codes)),) if item.get("output") else ()
        turn = Turn("document", (Span("text", text_of(item, "text_out")), *spoken))
        meta = {"split": item.get("split", ""), "kind": item.get("kind", "")}
        return self.with_reference(Example(str(item["id"]), (turn,), self.label, meta))

    def prompt(self, example: Example) -> Example:
        """The first ``share`` of the document."""
        return dataclasses.replace(example, turns=(Turn("document", self._halves(example)[0]),))

    def with_reference(self, example: Example) -> Example:
        """``text_ref`` is the text behind the prompt; None for a prompt that stands alone."""
        text = written_text(self._halves(example)[1]).strip() or None
        return dataclasses.replace(example, meta={**example.meta, "text_ref": text})

    def _halves(self, example: Example) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """Spans of the prompt, at least a word or a span of speech, and those that follow."""
        if example.turns[0].role != "document":
            raise DataError(f"example {example.uid!r}: task {self.label!r} needs a document, got a chat; name task chat")
        spans = example.turns[0].spans
        if example.meta.get(WHOLE):
            return spans, ()
        sizes = [len(words_of(s.text)) if s.codes is None else len(s.codes) for s in spans]
        room = min(self.longest, max(1, int(self.share * sum(sizes))))
        for number, (span, size) in enumerate(zip(spans, sizes, strict=True)):
            if size > room:
                if span.codes is not None:
                    place = max(number, 1)  # speech that would be cut belongs to the rest, unless it is all there is before
                    return spans[:place], spans[place:]
                words = words_of(span.text)
                first, rest = "".join(words[:room]), "".join(words[room:])
                return (*spans[:number], *_text(first)), (*_text(rest), *spans[number + 1 :])
            room -= size
        return spans, ()

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Overlap of the text with the true rest, time to the first speech; and the metrics of ``measure``."""
        return named("chrf", "first_block_latency", *self.measure)


def by_label(tasks: Iterable[Task]) -> dict[str, Task]:
    """Tasks by label, and `Chat` and `Document` where they are not among them: what a file brings by itself needs no setting."""
    found = {task.label: task for task in tasks}
    return {**found, **{task.label: task for task in (Chat(), Document()) if task.label not in found}}


def _text(text: str) -> tuple[Span, ...]:
    return (Span("text", text),) if text else ()
