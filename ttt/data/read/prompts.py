"""Prompts, with their answers or without, in every form that can be answered.

    NAME.txt                                     one prompt a line; blank lines do not count
    {"prompt": "..."}, {"instruction": "..."}    (``system``: a system message); in JSONL also the prompt alone, as a string
    {"input_ids": [...], "prompt_length": n}     token ids, as `ttt.data.read.token_ids` reads them; they are not encoded again
    chats, documents, examples                   as `ttt.data.read.examples` reads them

Files are those of `ttt.data.read.records`: JSON, JSONL, parquet, or the folder of a saved Hugging Face dataset.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ttt.data.encode import encode_example
from ttt.data.read.examples import example_from_json, name_of_record, parse_content, place_in, prompt_turns
from ttt.data.read.records import RecordError, decode, raw_records
from ttt.data.read.token_ids import is_ids, stream_of_ids
from ttt.io.text_input import text_lines
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Prompt, TokenStream, Turn

TASKS = ("chat", "document")  # what a prompt without a task is: a user's turn, or the beginning of a document
IDS = "ids"  # field of ``meta``: the record whose token ids are the prompt
WHOLE = "whole"  # field of ``meta``: all of a document is the prompt


def iter_prompts(path: str | Path, tasks: Collection[str]) -> Iterator[tuple[str, Example]]:
    """(place, example) of a file, one at a time; duplicate uids are the caller's to see.

    ``tasks``: labels; a prompt that says nothing of its task belongs to the first of ``chat`` and ``document`` among them.
    Raises `RecordError` naming the record that cannot be read.
    """
    label = next((task for task in tasks if task in TASKS), TASKS[0])
    for where, record in _records(Path(path)):
        uid = place_in(where)
        asked = _asked(record)
        if asked is None and not is_ids(record):
            yield where, example_from_json(record, where, uid)
            continue
        if isinstance(record, Mapping):
            uid = name_of_record(record, where, uid, ("id", "uid"))
        if asked is None:
            turns: tuple[Turn, ...] = (Turn("user" if label == "chat" else "document", ()),)
            yield where, Example(uid, turns, label, {IDS: record, WHOLE: True})
            continue
        if not asked.strip():
            raise RecordError(where, "empty prompt", "the prompt is empty; mend or drop the record")
        if label == "document":
            yield where, Example(uid, (Turn("document", parse_content(asked, where)),), label, {WHOLE: True})
            continue
        turns = prompt_turns(asked, where)
        if turns[0].role != "system":
            system = record.get("system") if isinstance(record, Mapping) else None
            turns = (Turn("system", parse_content(system, where) if isinstance(system, str) else ()), *turns)
        yield where, Example(uid, turns, label)


def stream_of_example(example: Example, tokenizer: TextTokenizer) -> TokenStream:
    """All of an example, its answer included."""
    record = example.meta.get(IDS)
    if record is None:
        return encode_example(example, tokenizer)
    return stream_of_ids(f"example {example.uid!r}", record, tokenizer.vocab, example.uid)


def prompt_of(example: Example, tokenizer: TextTokenizer, uid: str = "") -> Prompt:
    """An example without its answer, as the model reads it."""
    if IDS not in example.meta:
        return Prompt.of(encode_example(example, tokenizer, open_answer=True), uid)
    stream = stream_of_example(example, tokenizer)
    # Ids that no answer begins in are a document: its first half.
    stop = stream.prompt_length or int(stream.target.argmax()) or max(1, len(stream.ids) // 2)
    return Prompt(uid or example.uid, stream.ids[:stop].tolist())


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".txt":
        for number, line in text_lines(path, "convert the file to UTF-8"):
            if line.strip():
                yield f"{path}:{number}", line.rstrip("\r\n")
        return
    for where, raw in raw_records(path):
        yield where, decode(where, raw)


def _asked(record: Any) -> str | None:
    """The text of a record that is a prompt and nothing else."""
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping) or any(k in record for k in ("turns", "messages", "conversations", "response")):
        return None
    asked = record.get("prompt", record.get("instruction"))
    return asked if isinstance(asked, str) else None
