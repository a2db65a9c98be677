"""Chats in text: the official TtT records, ShareGPT, Alpaca."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.data.convert.core import folder_of, mapping, record, text_of, uid_of
from ttt.data.convert.tokenized import Tokenizers, ids_record
from ttt.data.read.examples import example_to_json, official_record
from ttt.data.read.records import RecordError, raw_records
from ttt.interfaces import Converter
from ttt.registry import PositiveInt
from ttt.registry.families import CONVERTER

SHAREGPT_SENDERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "bing": "assistant",
    "bard": "assistant", "system": "system",
}  # fmt: skip


TURNS = ("conversations", "conversation", "items")


def write_json(folder: Path, name: str, rows: list[Any]) -> Path:
    """A sample file: a list, or lines for ``.jsonl``."""
    path = folder / name
    text = "".join(json.dumps(r) + "\n" for r in rows) if name.endswith("l") else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


@CONVERTER.register("official")
@dataclass(frozen=True)
class Official(Converter):
    """Records of the TtT data: messages, conversations, prompt + response, or text, with audio spelled in the text."""

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """JSON list, JSONL or parquet."""
        return raw_records(path, ("id", "uid", "messages", "conversations", "prompt", "instruction", "response", "text"))

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """Spelled audio becomes spans of codes."""
        found = mapping(where, row)
        return example_to_json(official_record(found, uid_of(found, where), where))

    def sample(self, folder: Path) -> Path:
        """One chat with a spoken answer, one interleaved text."""
        spoken = "yes<|begin_of_quad|><|audio_3|><|audio_1|><|end_of_audio_span_last|>"
        chat = [
            {"role": "user", "content": "<|begin_of_audio|><|audio_2|><|end_of_audio|>"},
            {"role": "assistant", "content": spoken},
        ]
        return write_json(folder, "official.json", [{"messages": chat}, {"text": "once " + spoken}])


@CONVERTER.register("sharegpt")
@dataclass(frozen=True)
class ShareGpt(Tokenizers, Converter):
    """``conversations`` of from/value turns.  Turns before the first user's and after the last answer are left out."""

    first_exchange: bool = False  # keep the first question and answer only (as LLaDA's converter does)
    per_answer: bool = False  # an example for each answer, with all turns before it as its prompt (LLaDA's advice)
    system: str = ""  # system message of chats that have none
    tokenizer: str = ""  # its folder: write ids (input_ids, prompt_length) in its template instead of turns
    max_tokens: PositiveInt = 4096  # with tokenizer: ids of a record; what is longer is cut

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """JSON list, JSONL or parquet; with ``per_answer`` a row comes once for each of its answers."""
        for where, raw in raw_records(path, ("id", "uid", "conversations", "conversation", "items", "system")):
            yield from _each_answer(where, raw) if self.per_answer else [(where, raw)]

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """A chat of text turns."""
        found = mapping(where, row)
        turns = next((found[k] for k in TURNS if k in found), None)
        if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
            raise RecordError(where, "no conversations", f"no list 'conversations'; keys: {sorted(map(str, found))}")
        system = str(found.get("system") or self.system)
        chat: list[tuple[str, list[dict[str, Any]]]] = []
        for number, turn in enumerate(turns):
            sender = turn.get("from", turn.get("role"))
            role = SHAREGPT_SENDERS.get(str(sender).lower())
            if role is None:
                raise RecordError(
                    where,
                    "unknown sender",
                    f"turn {number}: unknown sender {sender!r}; known: {', '.join(SHAREGPT_SENDERS)}",
                )
            words = text_of(turn, "value" if "value" in turn else "content", f"{where}, turn {number}", default="")
            if role == "system":
                system = words
            elif (chat or role == "user") and words.strip():
                chat.append((role, [{"text": words}]))
        if self.first_exchange:
            answers = [i for i, (role, _) in enumerate(chat) if role == "assistant"]
            chat = chat[: answers[0] + 1] if answers else []
        while chat and chat[-1][0] == "user":
            chat.pop()
        if not chat:
            raise RecordError(where, "no answer", "no user turn that is answered; drop the row")
        made = record(uid_of(found, where), [("system", [{"text": system}]), *chat])
        for turn in made["turns"][:-1] if self.per_answer else ():
            if turn["role"] == "assistant":
                turn["history"] = True
        if not self.tokenizer:
            return made
        return ids_record(made, where, self._tokenizer(folder_of(where)), self.max_tokens)

    def sample(self, folder: Path) -> Path:
        """Two chats."""
        turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}, {"from": "human", "value": "bye"}]
        return write_json(
            folder, "sharegpt.json", [{"id": "a", "conversations": turns}, {"id": "b", "conversations": turns[:2]}]
        )


def _each_answer(where: str, raw: Any) -> Iterator[tuple[str, Any]]:
    """A row once for every answer in it, ending there; a row that cannot be read comes as it is, to be refused."""
    try:
        found = mapping(where, raw)
        key = next(k for k in TURNS if k in found)
        senders = [SHAREGPT_SENDERS.get(str(t.get("from", t.get("role"))).lower()) for t in found[key]]
        first = senders.index("user")
        answers = [i for i, sender in enumerate(senders) if sender == "assistant" and i > first]
    except (RecordError, StopIteration, ValueError, AttributeError, TypeError):
        answers = []
    if not answers:
        yield where, raw
    for number, at in enumerate(answers, 1):
        name = {k: f"{found[k]}#{number}" for k in ("id", "uid") if found.get(k) not in (None, "")}
        yield f"{where}#{number}", {**found, **name, key: found[key][: at + 1]}


@CONVERTER.register("alpaca")
@dataclass(frozen=True)
class Alpaca(Tokenizers, Converter):
    """``instruction``, ``input`` (after a blank line, if any), ``output``; also ``history`` pairs and ``system``."""

    system: str = ""  # system message of rows that have none
    tokenizer: str = ""  # its folder: write ids (input_ids, prompt_length) in its template instead of turns
    max_tokens: PositiveInt = 4096  # with tokenizer: ids of a record; what is longer is cut

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """JSON list, JSONL or parquet."""
        return raw_records(path, ("id", "uid", "instruction", "input", "output", "history", "system"))

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """A chat; history comes before the instruction."""
        found = mapping(where, row)
        extra = text_of(found, "input", where, default="")
        question = text_of(found, "instruction", where) + (f"\n\n{extra}" if extra.strip() else "")
        chat: list[tuple[str, list[dict[str, Any]]]] = []
        for pair in found.get("history") or []:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
                raise RecordError(
                    where, "not a history", f"history must be pairs of question and answer, got {str(pair)[:40]}"
                )
            chat += [("user", [{"text": pair[0]}]), ("assistant", [{"text": pair[1]}])]
        chat += [("user", [{"text": question}]), ("assistant", [{"text": text_of(found, "output", where)}])]
        made = record(uid_of(found, where), [("system", [{"text": found.get("system") or self.system}]), *chat])
        if not self.tokenizer:
            return made
        for turn in made["turns"][:-1]:  # earlier answers belong to the prompt
            if turn["role"] == "assistant":
                turn["history"] = True
        return ids_record(made, where, self._tokenizer(folder_of(where)), self.max_tokens)

    def sample(self, folder: Path) -> Path:
        """One row with and one without input."""
        rows = [
            {"instruction": "add", "input": "1 1", "output": "2"},
            {"instruction": "say hi", "input": "", "output": "hi"},
        ]
        return write_json(folder, "alpaca.json", rows)
