"""What tasks share.  To add a task, write one file that imports this module and name it in ``plugins``.

A corpus item is one line of ``SPLIT.items.jsonl``: ``{"id", "task", "text_in", "text_out", "input", "output", "split",
"kind", "answer_key", "distractors"}``.  ``input`` and ``output`` are ids of utterances; their codes i32 [F, Q] (``F`` frames,
``Q`` codebooks) come in a mapping.  A task builds an example from an item: system message, user turn, assistant turn.

>>> @dataclass(frozen=True)  # above it, in the file: @TASK.register("repeat")
... class Repeat(ChatTask):
...     \"\"\"Speech in, the same speech out; judged by what is heard.\"\"\"
...
...     system: str = "repeat what you hear"
...
...     def build(self, item, codes):
...         heard = codes_of(item, "input", codes)
...         return self.example(item, user=(user_speech(heard),), answer=(final_speech(heard),))
...
...     @property
...     def metrics(self):
...         return named("judged_wer", "length_ratio", *COST)
>>> item = {"id": "i1", "task": "repeat", "input": "u1", "text_out": "hello"}
>>> example = Repeat().build(item, {"u1": np.array([[3], [5]], dtype=np.int32)})
>>> [turn.role for turn in example.turns], example.meta["speech_ref"], len(Repeat().prompt(example).turns)
(['system', 'user', 'assistant'], 'hello', 2)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.data.read.examples import TextUnit, interleave, words_of
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Task
from ttt.registry import NonNegativeInt, PositiveInt
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Span, Turn

# Metrics that several tasks report, by their registered names.
TEXT_OVERLAP = ("exact_match", "bleu", "chrf")
COST = ("rtf", "first_block_latency", "calls_per_second")


@dataclass(frozen=True)
class ChatTask(Task):
    """A task whose example is a chat of three turns: system, user, assistant.

    ``system``: the system message.  ``text_chunk`` tokens and ``audio_chunk`` codes alternate in the answer (`answer`);
    ``text_chunk`` 0 writes all text, then all codes in one span.  ``text_unit``: what ``text_chunk`` counts, tokens of
    the tokenizer as in TtT's data (arXiv 2509.20072), or words.  ``speak``: whether the answer is also spoken.
    """

    system: str = ""
    text_chunk: NonNegativeInt = 0
    audio_chunk: PositiveInt = 26
    speak: bool = True
    text_unit: TextUnit = "tokens"

    @property
    def label(self) -> str:
        """The task's name, followed by its interleaving if it has one: ``asr``, ``asr_2_8``."""
        return f"{super().label}_{self.text_chunk}_{self.audio_chunk}" if self.text_chunk else super().label

    def prompt(self, example: Example) -> Example:
        """Everything before the answer."""
        return without_answer(example)

    def answer(self, text: str, codes: np.ndarray) -> tuple[Span, ...]:
        """Text as written and codes i32 [F, Q] in turn, as ``text_chunk`` and ``audio_chunk`` say."""
        return interleave(self._pieces(text), codes, self.text_chunk, self.audio_chunk)

    def with_tokenizer(self, tokenizer: TextTokenizer) -> Task:
        """The task with the tokenizer whose tokens ``text_chunk`` counts."""
        made = dataclasses.replace(self)
        object.__setattr__(made, "_tokenizer", tokenizer)
        return made

    def _pieces(self, text: str) -> Sequence[str]:
        if not self.text_chunk:
            return [text]
        if self.text_unit == "words":
            return words_of(text)
        tokenizer: TextTokenizer | None = self.__dict__.get("_tokenizer")
        if tokenizer is None:
            raise DataError(f"task {self.label!r}: text_chunk counts tokens of a tokenizer; name one, or set text_unit: words")
        return tokenizer.pieces(text)

    def example(self, item: Mapping[str, Any], user: tuple[Span, ...], answer: tuple[Span, ...]) -> Example:
        """The chat, with what metrics compare with in ``meta``: ``text_out`` as text and as speech, ``answer_key``."""
        turns = (Turn("system", (Span("text", self.system),)), Turn("user", user), Turn("assistant", answer))
        reference = text_of(item, "text_out")
        meta = {
            "text_ref": reference, "speech_ref": reference, "answer_key": item.get("answer_key") or None,
            "split": item.get("split", ""), "kind": item.get("kind", ""), "input": item.get("input"),
        }  # fmt: skip
        if item.get("distractors"):
            meta["distractors"] = item["distractors"]
        suffix = f"#{self.text_chunk}:{self.audio_chunk}" if self.text_chunk else ""
        return Example(f"{item['id']}{suffix}", turns, self.label, meta)


def without_answer(example: Example) -> Example:
    """The example without its last turn, which must be the assistant's (else `DataError`)."""
    if example.turns[-1].role != "assistant":
        raise DataError(f"example {example.uid!r}: the last turn must be the assistant's, got {example.turns[-1].role!r}")
    return Example(example.uid, example.turns[:-1], example.task, example.meta)


def codes_of(item: Mapping[str, Any], field: str, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Codes i32 [F, Q] of the utterance that the item names in ``field``; raises `DataError` where there are none."""
    utterance = item.get(field)
    if utterance is None:
        raise DataError(f"item {item.get('id')!r}: task {item.get('task')!r} needs {field!r}, the item has none")
    if utterance not in codes:
        raise DataError(f"item {item.get('id')!r}: no codes for utterance {utterance!r}; run 'ttt tokenize' on its manifest")
    return codes[utterance]


def text_of(item: Mapping[str, Any], field: str) -> str:
    """Words of an item (``text_in`` or ``text_out``); raises `DataError` where they are empty."""
    if not (item[field] or "").strip():
        raise DataError(
            f"item {item.get('id')!r}: task {item.get('task')!r} reads {field!r}, which is empty; write what utterance "
            f"{item.get('input' if field == 'text_in' else 'output')!r} says, or leave the item out"
        )
    return item[field]


def user_speech(codes: np.ndarray) -> Span:
    """Speech of a user's turn."""
    return Span("audio", codes=codes, style="user")


def final_speech(codes: np.ndarray) -> Span:
    """The last (or only) speech span of an answer."""
    return Span("audio", codes=codes, style="last")


def named(*metrics: Any) -> dict[str, Any]:
    """Metrics, registered names or blocks with ``name``, that are reported under their registered names.

    >>> named("wer", {"name": "auto_bleu", "n": 3})
    {'wer': 'wer', 'auto_bleu': {'name': 'auto_bleu', 'n': 3}}
    """
    unnamed = next((m for m in metrics if not isinstance(m, str) and not (isinstance(m, Mapping) and "name" in m)), None)
    if unnamed is not None:
        raise ConfigError(f"measure: a metric is a name or a block with 'name', got {unnamed!r:.60}")
    return {m if isinstance(m, str) else str(m["name"]): m for m in metrics}
