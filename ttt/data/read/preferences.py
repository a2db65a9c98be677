"""Preference pairs as other tools write them: a prompt and two answers to it, one chosen and one rejected -> `Example`.

    {"prompt": "...", "chosen": "...", "rejected": "..."}                            text; audio may be spelled in it
    {"prompt": [message, ...], "chosen": [message], "rejected": [message]}           TRL's conversational form
    {"chosen": [message, ..., answer], "rejected": [message, ..., answer]}           TRL's form with the prompt inside
    {"prompt": {"audio_repr": "<Un3>..."}, "chosen": {...}, "rejected": {...}}       features of slamkit

A message is ``{"role": ..., "content": ...}``.  `ttt`'s own form has ``turns`` (the prompt's) and lists of spans in
``chosen`` and ``rejected`` (`ttt.data.read.examples.example_to_json`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ttt.data.read.examples import official_record, parse_content, prompt_turns
from ttt.data.read.records import RecordError
from ttt.types import Example, Span, Turn

KEYS = ("chosen", "rejected")
_UNITS = re.compile(r"(?:<Un[0-9]{1,9}>)+")


def preference_record(record: Mapping[str, Any], uid: str, where: str) -> Example:
    """The pair of a record of one of these forms.  Raises `RecordError` naming ``where``."""
    prompt = record.get("prompt")
    if isinstance(prompt, Mapping):
        spans = {key: (_units(record[key], key, where),) for key in ("prompt", *KEYS)}
        turns: tuple[Turn, ...] = (Turn("user", spans["prompt"]), Turn("assistant", spans["chosen"]))
        return Example(uid, turns, "chat", rejected=Turn("assistant", spans["rejected"]))
    (before, chosen), (other, rejected) = (_answer(record[key], key, where) for key in KEYS)
    if before != other:
        raise RecordError(where, "not a pair", "'chosen' and 'rejected' answer different prompts; mend or drop the record")
    if before:  # the answers bring their prompt
        turns = official_record({"messages": [*before, {"role": "assistant", "content": chosen}]}, uid, where).turns
    elif isinstance(prompt, str):
        turns = (*prompt_turns(prompt, where), Turn("assistant", parse_content(chosen, f"{where}, chosen")))
    elif isinstance(prompt, list | tuple | np.ndarray) and len(prompt):
        turns = official_record({"messages": [*prompt, {"role": "assistant", "content": chosen}]}, uid, where).turns
    else:
        raise RecordError(where, "not a pair", "no 'prompt' that the answers belong to; give the record one")
    return Example(uid, turns, "chat", rejected=Turn("assistant", parse_content(rejected, f"{where}, rejected")))


def _answer(value: Any, key: str, where: str) -> tuple[list[Any], str]:
    """(messages before the answer, text of the answer)."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        return [], value
    messages = value if isinstance(value, list | tuple) else []
    last = messages[-1] if messages else None
    if isinstance(last, Mapping) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return list(messages[:-1]), last["content"]
    raise RecordError(
        where, "not a pair", f"{key!r} must be text, or messages that end with the assistant's; mend or drop the record"
    )


def _units(value: Any, key: str, where: str) -> Span:
    text = value.get("audio_repr") if isinstance(value, Mapping) else None
    if not isinstance(text, str) or not _UNITS.fullmatch(text):
        raise RecordError(
            where, "not a pair", f"{key!r} must be {{'audio_repr': '<Un3><Un7>...'}}, features of slamkit; mend the record"
        )
    codes = np.asarray([int(n) for n in re.findall("[0-9]+", text)], dtype=np.int32).reshape(-1, 1)
    return Span("audio", codes=codes, style="user" if key == "prompt" else "last")
