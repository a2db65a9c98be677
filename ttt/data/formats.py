"""Records of the official TtT data (JSON lists, JSONL) and of `ttt` itself -> `Example`.

Official audio is spelled in the text: ``<|begin_of_audio|><|audio_12|>...<|end_of_audio_new|>``; here it becomes spans.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import DataError
from ttt.types import Example, Span, Turn

_BEGIN = re.compile(r"<\|begin_of_(audio|quad)\|>")
_CODES = re.compile(r"(?:<\|audio_\d+\|>)*")
_CODE = re.compile(r"<\|audio_(\d+)\|>")
_ENDS = {"<|end_of_audio|>": "user", "<|end_of_audio_new|>": "span", "<|end_of_audio_span_last|>": "last"}
_END = re.compile("|".join(re.escape(e) for e in _ENDS))
_SENDERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def parse_content(content: str, where: str) -> tuple[Span, ...]:
    """Text with spelled audio -> spans.  Raises `DataError` for a span without an end or with the wrong one."""
    spans: list[Span] = []
    at = 0
    while at < len(content):
        begin = _BEGIN.search(content, at)
        text = content[at : begin.start() if begin else len(content)]
        stray = _CODE.search(text) or _END.search(text)
        if stray:
            raise DataError(f"{where}: {stray.group()!r} outside a span; open the span with <|begin_of_audio|>")
        if text:
            spans.append(Span("text", text))
        if begin is None:
            break
        run = _CODES.match(content, begin.end())
        assert run is not None
        end = _END.match(content, run.end())
        if end is None:
            found = content[run.end() : run.end() + 24] or "the end of the text"
            raise DataError(f"{where}: span opened by {begin.group()!r} has no end token; found {found!r}")
        style = _ENDS[end.group()]
        if (begin.group(1) == "quad") != (style == "last"):
            raise DataError(f"{where}: span opened by {begin.group()!r} is closed by {end.group()!r}")
        codes = np.asarray([int(c) for c in _CODE.findall(run.group())], dtype=np.int32).reshape(-1, 1)
        spans.append(Span("audio", codes=codes, style=style))
        at = end.end()
    return tuple(spans)


def official_record(record: Mapping[str, Any], uid: str, where: str = "") -> Example:
    """One official record (``messages`` | ``conversations`` | ``prompt`` + ``response`` | ``text``) -> `Example`.

    System message: the first one, an empty one if there is none.  A first turn that is not the user's is dropped, as in
    the reference.  Raises `DataError` naming ``where`` for anything else.
    """
    where = where or f"record {uid!r}"
    if "text" in record and not any(k in record for k in ("messages", "conversations", "prompt")):
        return Example(uid, (Turn("document", parse_content(_text(record["text"], where), where)),), task="document")
    messages = _messages(record, where)
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    if messages and messages[0]["role"] != "user":
        messages = messages[1:]
    turns = [Turn("system", parse_content(system, where))]
    for number, message in enumerate(messages):
        if message["role"] not in ("user", "assistant"):
            raise DataError(
                f"{where}: message {number} has role {message['role']!r}; after the system message only user and assistant"
            )
        turns.append(Turn(message["role"], parse_content(message["content"], f"{where}, message {number}")))
    return Example(uid, tuple(turns), task="chat")


def _messages(record: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    if "messages" in record:
        raw = [{"role": m.get("role"), "content": m.get("content")} for m in record["messages"]]
    elif "conversations" in record:
        raw = [
            {"role": _sender(m["from"], where), "content": m.get("value")} if "from" in m
            else {"role": m.get("role"), "content": m.get("content")}
            for m in record["conversations"]
        ]  # fmt: skip
    elif "prompt" in record and "response" in record:
        raw = [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record["response"]}]
    else:
        raise DataError(
            f"{where}: no 'messages', 'conversations', 'prompt' + 'response' or 'text'; keys: {sorted(record)}"
        )
    return [{"role": str(m["role"]), "content": _text(m["content"], where)} for m in raw]


def _sender(name: Any, where: str) -> str:
    if name not in _SENDERS:
        raise DataError(f"{where}: unknown sender {name!r}; known: {', '.join(_SENDERS)}")
    return _SENDERS[name]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, got {type(value).__name__}")
    return value


def example_to_json(example: Example) -> dict[str, Any]:
    """The JSONL form: audio spans as lists of codes (of lists, with several code books)."""

    def span(s: Span) -> dict[str, Any]:
        if s.kind == "text":
            return {"text": s.text}
        assert s.codes is not None
        codes = s.codes[:, 0].tolist() if s.codes.shape[1] == 1 else s.codes.tolist()
        return {"audio": codes, "style": s.style}

    turns = [{"role": t.role, "spans": [span(s) for s in t.spans]} for t in example.turns]
    return {"uid": example.uid, "task": example.task, "turns": turns, "meta": dict(example.meta)}


def example_from_json(record: Mapping[str, Any], where: str) -> Example:
    """Read what `example_to_json` wrote; raises `DataError` naming ``where``."""
    if "turns" not in record:
        return official_record(record, str(record.get("id", where)), where)

    def span(raw: Mapping[str, Any]) -> Span:
        if "text" in raw:
            return Span("text", _text(raw["text"], where))
        if "audio" not in raw:
            raise DataError(f"{where}: a span needs 'text' or 'audio', got {sorted(raw)}")
        codes = np.asarray(raw["audio"], dtype=np.int32)
        codes = codes.reshape(len(codes), -1) if codes.size else np.zeros((0, 1), dtype=np.int32)
        return Span("audio", codes=codes, style=raw.get("style", "span"))

    try:
        turns = tuple(Turn(t["role"], tuple(span(s) for s in t["spans"])) for t in record["turns"])
        return Example(str(record["uid"]), turns, record.get("task", ""), record.get("meta", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not an example: {type(error).__name__}: {error}") from error
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def read_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of a ``.jsonl`` file or a ``.json`` list; raises `DataError` with the line of broken JSON."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; run the stage that makes it")
    if path.suffix == ".json":
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
        if not isinstance(records, list):
            raise DataError(f"{path}: expected a list of records")
        yield from ((f"{path}[{i}]", r) for i, r in enumerate(records))
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield f"{path}:{number}", json.loads(line)
                    except json.JSONDecodeError as error:
                        raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error
    else:
        raise DataError(f"{path}: unknown file kind {path.suffix!r}; use .json or .jsonl")


def read_examples(path: str | Path) -> list[Example]:
    """All examples of a file; duplicate uids are refused with both lines."""
    seen: dict[str, str] = {}
    examples = []
    for where, record in read_records(path):
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: expected an object, got {type(record).__name__}")
        example = example_from_json(record, where)
        if example.uid in seen:
            raise DataError(f"{where}: uid {example.uid!r} was already used at {seen[example.uid]}")
        seen[example.uid] = where
        examples.append(example)
    return examples


def write_examples(path: Path, examples: list[Example]) -> None:
    """Write JSONL, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        for example in examples:
            out.write(json.dumps(example_to_json(example), ensure_ascii=False) + "\n")
    temporary.replace(path)
