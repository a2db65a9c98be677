"""Records of the official TtT data and of `ttt` itself -> `Example` (`ttt.data.read.records` reads the files).

Official audio is spelled in the text: ``<|begin_of_audio|><|audio_12|>...<|end_of_audio_new|>``; here it becomes spans.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ttt.data.read.records import RecordError, decode, raw_records
from ttt.data.read.records import read_records as read_records  # for callers that know one module only
from ttt.errors import DataError, suggest
from ttt.io.atomic import write_json_lines
from ttt.io.json_input import load, reason
from ttt.text.template import IM_START
from ttt.types import AUDIO_STYLES, ROLES, Example, Span, Turn

_BEGIN = re.compile(r"<\|begin_of_(audio|quad)\|>")
_CODES = re.compile(r"(?:<\|audio_\d+\|>)*")
_CODE = re.compile(r"<\|audio_(\d+)\|>")
_LARGEST = int(np.iinfo(np.int32).max)
_ENDS = {"<|end_of_audio|>": "user", "<|end_of_audio_new|>": "span", "<|end_of_audio_span_last|>": "last"}
_END = re.compile("|".join(re.escape(e) for e in _ENDS))
_CHINESE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\s*(?:[{_CHINESE}]|[^\s{_CHINESE}]+)")
TextUnit = Literal["tokens", "words"]  # what the chunks of an interleaved text count
_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)(?:<\|im_end\|>\s*|\Z)", re.DOTALL)
_CHATS = ("messages", "conversations")
_META_TEXTS = ("text_ref", "speech_ref", "split", "kind")  # of ``meta``: texts that metrics read
PAIR = {"chosen", "rejected"}  # answers of a preference pair
CHAT_ROLES = ("system", "user", "assistant")
SENDERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def parse_content(content: str, where: str) -> tuple[Span, ...]:
    """Text with spelled audio -> spans.  Raises `DataError` for a span without an end or with the wrong one."""
    spans: list[Span] = []
    at = 0
    while at < len(content):
        begin = _BEGIN.search(content, at)
        text = content[at : begin.start() if begin else len(content)]
        stray = _CODE.search(text) or _END.search(text)
        if stray:
            raise RecordError(
                where,
                "audio token outside a span",
                f"{stray.group()!r} outside a span; open the span with <|begin_of_audio|>",
            )
        if text:
            spans.append(Span("text", text))
        if begin is None:
            break
        run = _CODES.match(content, begin.end())
        assert run is not None
        end = _END.match(content, run.end())
        if end is None:
            found = content[run.end() : run.end() + 24] or "the end of the text"
            raise RecordError(
                where, "span without an end",
                f"span opened by {begin.group()!r} has no end token; found {found!r}; close it or drop the record",
            )  # fmt: skip
        style = _ENDS[end.group()]
        if (begin.group(1) == "quad") != (style == "last"):
            raise RecordError(
                where, "span with a wrong end",
                f"span opened by {begin.group()!r} is closed by {end.group()!r}; quad spans end with "
                "<|end_of_audio_span_last|>, others do not",
            )  # fmt: skip
        spans.append(Span("audio", codes=_spelled(run.group(), where), style=style))
        at = end.end()
    return tuple(spans)


def prompt_turns(prompt: str, where: str) -> tuple[Turn, ...]:
    """Turns of a prompt as it is written: the user's, or all of a ChatML prompt (``<|im_start|>ROLE`` newline text ``<|im_end|>``).

    The header of the answer at the end (``<|im_start|>assistant``) is left out.  Raises `DataError` as `parse_content` does.

    >>> [(t.role, t.spans[0].text) for t in prompt_turns("<|im_start|>user\\nwhy<|im_end|>\\n<|im_start|>assistant\\n", "here")]
    [('user', 'why')]
    """
    if not prompt.lstrip().startswith(IM_START):
        return (Turn("user", parse_content(prompt, where)),)
    turns: list[Turn] = []
    at = len(prompt) - len(prompt.lstrip())
    while at < len(prompt):
        found = _TURN.match(prompt, at)
        if found is None:
            raise RecordError(
                where, "not a prompt",
                f"expected {IM_START} and one of {', '.join(CHAT_ROLES)}, got {prompt[at : at + 24]!r}; mend the prompt",
            )  # fmt: skip
        turns.append(Turn(found[1], parse_content(found[2], where)))
        at = found.end()
    return tuple(turns[:-1] if turns[-1].role == "assistant" and not turns[-1].spans else turns)


def _spelled(run: str, where: str) -> np.ndarray:
    """Codes i32 [F, 1] of a run of ``<|audio_N|>``."""
    digits = _CODE.findall(run)
    # Digits are counted before they are read: Python refuses to read thousands of them.
    large = next((d for d in digits if len(d.lstrip("0")) > 10 or int(d) > _LARGEST), None)
    if large is not None:
        shown = large if len(large) <= 20 else f"{large[:20]}..."
        raise RecordError(
            where, "not codes", f"audio token <|audio_{shown}|> is no code of any codebook; mend or drop the record"
        )
    return np.asarray([int(d) for d in digits], dtype=np.int32).reshape(-1, 1)


def official_record(record: Mapping[str, Any], uid: str, where: str = "") -> Example:
    """One official record (``messages`` | ``conversations`` | ``prompt`` + ``response`` | ``text``) -> `Example`.

    LLaDA's ``instruction`` + ``response`` is read like ``prompt`` + ``response``.

    System message: the first one, an empty one if there is none.  A first turn of the assistant is dropped, as in the
    official program; messages are counted as the record has them.  Raises `DataError` naming ``where`` for anything else.
    """
    where = where or f"record {uid!r}"
    if "text" in record and not any(k in record for k in (*_CHATS, "prompt", "instruction", "response")):
        return Example(uid, (Turn("document", parse_content(_text(record["text"], where), where)),), task="document")
    messages = _messages(record, where)
    if not messages:
        raise RecordError(where, "no turns", "no turns; drop the record")
    system = next((i for i, m in enumerate(messages) if m["role"] == "system"), None)
    turns = [Turn("system", () if system is None else parse_content(messages[system]["content"], f"{where}, message {system}"))]
    for number, message in enumerate(messages):
        _check_role(message["role"], CHAT_ROLES, f"{where}, message {number}", where)
        if number == 0 and message["role"] != "user":
            continue
        if message["role"] == "system":
            raise RecordError(
                where, "unknown role",
                f"message {number} has role 'system', which only the first message may have; move or drop it",
            )  # fmt: skip
        turns.append(Turn(message["role"], parse_content(message["content"], f"{where}, message {number}")))
    return Example(uid, tuple(turns), task="chat")


def _check_role(role: Any, known: Sequence[str], place: str, where: str) -> None:
    """Raise `RecordError` for a role that is none of ``known``, whatever it is."""
    if not isinstance(role, str) or role not in known:
        at = place.removeprefix(where).lstrip(", ")
        near = suggest(role.lower(), known) if isinstance(role, str) else ""
        shown = str(role) if len(str(role)) <= 40 else f"{str(role)[:40]}..."
        raise RecordError(
            where, "unknown role", f"{at}: unknown role {shown!r}.{near} Roles: {', '.join(known)}; mend the record"
        )


def _messages(record: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    if "messages" in record:
        raw = [(m.get("role"), m.get("content")) for m in _turns(record["messages"], where)]
    elif "conversations" in record:
        raw = [
            (_sender(m["from"], f"turn {number}", where), m.get("value")) if "from" in m else (m.get("role"), m.get("content"))
            for number, m in enumerate(_turns(record["conversations"], where))
        ]  # fmt: skip
    elif "response" in record and ("prompt" in record or "instruction" in record):
        asked = record["prompt"] if "prompt" in record else record["instruction"]
        raw = [("user", asked), ("assistant", record["response"])]
    elif half := PAIR & record.keys():
        raise RecordError(
            where, "not a pair", f"{min(half)!r} without {min(PAIR - half)!r}: a preference pair has both; mend or drop the record"
        )
    else:
        raise RecordError(
            where, "unknown fields",
            f"no 'messages', 'conversations', 'prompt' (or 'instruction') + 'response' or 'text'; keys: {sorted(map(str, record))}",
        )  # fmt: skip
    return [
        {"role": role or "", "content": _text(content, where, f"message {number}: ")} for number, (role, content) in enumerate(raw)
    ]


def _turns(value: Any, where: str) -> list[Mapping[str, Any]]:
    """A list of turns; tables hold it as an array, or as JSON in a string."""
    if isinstance(value, str):
        try:
            value = load(value)
        except (ValueError, RecursionError) as error:
            raise RecordError(where, "not a list of turns", f"turns are a string: {reason(error)}; mend the record") from error
    turns = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(turns, list | tuple) or not all(isinstance(t, Mapping) for t in turns):
        raise RecordError(
            where, "not a list of turns", f"expected a list of turns, got {type(value).__name__}; mend the record"
        )
    return list(turns)


def _sender(name: Any, at: str, where: str) -> str:
    if not isinstance(name, str) or name not in SENDERS:
        near = suggest(name.lower(), SENDERS) if isinstance(name, str) else ""
        raise RecordError(
            where, "unknown sender", f"{at}: unknown sender {name!r}.{near} Known: {', '.join(SENDERS)}; mend the record"
        )
    return SENDERS[name]


def _text(value: Any, where: str, at: str = "") -> str:
    if not isinstance(value, str):
        raise RecordError(where, "not text", f"{at}expected text, got {type(value).__name__}; mend or drop the record")
    return value


def example_to_json(example: Example) -> dict[str, Any]:
    """The JSONL form: audio spans as lists of codes (of lists, with several codebooks).

    In a preference pair ``turns`` are the prompt's, and the spans of the answers are ``chosen`` and ``rejected``.
    """

    def span(s: Span) -> dict[str, Any]:
        if s.kind == "text":
            return {"text": s.text}
        assert s.codes is not None
        codes = s.codes[:, 0].tolist() if s.codes.shape[1] == 1 else s.codes.tolist()
        return {"audio": codes, "style": s.style}

    turns = [
        {"role": t.role, "spans": [span(s) for s in t.spans], **({"history": True} if t.history else {})}
        for t in example.turns
    ]
    record: dict[str, Any] = {"uid": example.uid, "task": example.task, "turns": turns, "meta": dict(example.meta)}
    if example.rejected is not None:
        record |= {"chosen": turns.pop()["spans"], "rejected": [span(s) for s in example.rejected.spans]}
    return record


def codes_array(value: Any, where: str) -> np.ndarray:
    """Codes i32 [F, Q] of a list of whole numbers, or of lists of them (several codebooks)."""
    try:
        codes = np.asarray(value)
    except ValueError:  # rows of several lengths
        codes = np.asarray(None)
    if not isinstance(value, list | tuple | np.ndarray):
        codes = np.asarray(None)
    if codes.size == 0:
        return np.zeros((0, 1), dtype=np.int32)
    if codes.dtype.kind not in "iu" or codes.ndim > 2 or codes.min() < 0 or codes.max() > np.iinfo(np.int32).max:
        raise RecordError(
            where, "not codes", f"audio is no list of codes (whole numbers >= 0): {str(value)[:40]}; mend the record"
        )
    return codes.astype(np.int32).reshape(len(codes), -1)


def example_from_json(record: Any, where: str, uid: str = "") -> Example:
    """An example from what `example_to_json` wrote, or from an official record.

    ``uid``: for records that have none.  Raises `RecordError` naming ``where``.
    """
    if not isinstance(record, Mapping):
        raise RecordError(
            where, "not an object", f"expected an object, got {type(record).__name__}; mend or drop the record"
        )
    if "turns" not in record and record.keys() >= PAIR:
        from ttt.data.read.preferences import preference_record

        return preference_record(record, name_of_record(record, where, uid or where, ("id", "uid")), where)
    if "turns" not in record:
        return official_record(record, name_of_record(record, where, uid or where, ("id", "uid")), where)
    name = name_of_record(record, where, uid)
    if not name:
        raise RecordError(where, "not an example", "no 'uid'; give the record one")
    turns = [_turn(turn, f"turn {number}", where) for number, turn in enumerate(_turns(record["turns"], where))]
    rejected = None
    if record.keys() & PAIR:
        chosen, rejected = (_turn({"role": "assistant", "spans": record.get(key)}, key, where) for key in sorted(PAIR))
        turns.append(chosen)
    task, meta = record.get("task", ""), record.get("meta", {})
    if not isinstance(task, str):
        raise _wrong("task", "text", task, where)
    if not isinstance(meta, Mapping):
        raise _wrong("meta", "an object", meta, where)
    for key in _META_TEXTS:
        if not isinstance(meta.get(key, ""), str | None):
            raise _wrong(f"meta.{key}", "text", meta[key], where)
    try:
        return Example(name, tuple(turns), task, meta, rejected)
    except DataError as error:
        raise RecordError(where, "not an example", str(error)) from error


def name_of_record(record: Mapping[str, Any], where: str, default: str, keys: Sequence[str] = ("uid", "id")) -> str:
    """The first of ``keys`` that the record has, else ``default``.  Raises `RecordError` for a name that is no text or number."""
    for key in keys:
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise _wrong(key, "text or a whole number", value, where)
        return str(value)
    return default


def _turn(turn: Mapping[str, Any], at: str, where: str) -> Turn:
    _check_role(turn.get("role"), ROLES, f"{where}, {at}", where)
    spans, history = turn.get("spans"), turn.get("history", False)
    if isinstance(spans, np.ndarray):
        spans = spans.tolist()
    if not isinstance(spans, list | tuple):
        raise _wrong(f"spans of {at}", "a list", spans, where)
    if not isinstance(history, bool):
        raise _wrong(f"history of {at}", "true or false", history, where)
    return Turn(turn["role"], tuple(_span(span, f"{at}, span {n}", where) for n, span in enumerate(spans)), history)


def _span(span: Any, at: str, where: str) -> Span:
    if not isinstance(span, Mapping):
        raise _wrong(at, "an object", span, where)
    if "text" in span:
        return Span("text", _text(span["text"], where, f"{at}: "))
    if "wav" in span:
        raise RecordError(
            where, "sound without codes", f"span is still a sound file ({span['wav']}); run 'ttt data encode' first"
        )
    if "audio" not in span:
        raise RecordError(where, "unknown span", f"{at}: a span needs 'text' or 'audio', got {sorted(map(str, span))}")
    style = span.get("style", "span")
    if not isinstance(style, str) or style not in AUDIO_STYLES:
        near = suggest(style, AUDIO_STYLES) if isinstance(style, str) else ""
        raise RecordError(
            where, "unknown style", f"{at}: unknown style {style!r}.{near} Styles: {', '.join(AUDIO_STYLES)}; mend the record"
        )
    try:
        return Span("audio", codes=codes_array(span["audio"], where), style=style)
    except RecordError:
        raise
    except DataError as error:
        raise RecordError(where, "not an example", str(error)) from error


def _wrong(field: str, wanted: str, value: Any, where: str) -> RecordError:
    found = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]}"
    return RecordError(where, "wrong type", f"{field} must be {wanted}, got {found}; mend or drop the record")


def place_in(where: str, source: str = "") -> str:
    """What a record without an id is called: its place in ``source`` (default: the file's name).

    >>> place_in("/data/a/x.jsonl:7"), place_in("/data/a/x.jsonl:7", "a/x.jsonl")
    ('x.jsonl:7', 'a/x.jsonl:7')
    """
    name = where.rpartition("/")[2]
    return source + name[len(source.rpartition("/")[2]) :] if source else name


def example_of(where: str, raw: Any, source: str = "") -> Example:
    """The example of a raw record.  One without an id is called by its place in ``source`` (default: the file's name)."""
    name = place_in(where, source)
    record = decode(where, raw)
    try:
        return example_from_json(record, where, name)
    except RecordError as error:
        uid = record.get("uid", record.get("id")) if isinstance(record, Mapping) else None
        if uid is None:
            raise
        raise RecordError(error.where, error.reason, f"uid {uid!r}: {error.message}") from error


def iter_examples(path: str | Path) -> Iterator[tuple[str, Example]]:
    """(place, example) of a file, one at a time; duplicate uids are the caller's to see."""
    for where, raw in raw_records(path):
        yield where, example_of(where, raw)


def distinct(examples: Iterable[tuple[str, Example]]) -> Iterator[Example]:
    """Examples without their places; duplicate uids are refused with both lines."""
    seen: dict[str, str] = {}
    for where, example in examples:
        if example.uid in seen:
            raise RecordError(
                where, "duplicate uid", f"uid {example.uid!r} was already used at {seen[example.uid]}; rename one"
            )
        seen[example.uid] = where
        yield example


def read_examples(path: str | Path) -> list[Example]:
    """All examples of a file; see `distinct`."""
    return list(distinct(iter_examples(path)))


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write JSONL, complete or not at all."""
    write_json_lines(path, (example_to_json(example) for example in examples))


def interleave(pieces: Sequence[str], codes: np.ndarray, text_chunk: int, audio_chunk: int) -> tuple[Span, ...]:
    """Spans of an answer that alternates between ``text_chunk`` pieces of text and ``audio_chunk`` codes [F, Q], as in TtT's data.

    ``pieces``: the tokens of the text (`TextTokenizer.pieces`), or its words (`words_of`); joined they are the text.
    Chunks are cut while more than ``text_chunk`` pieces and more than ``audio_chunk`` codes remain; the rest follows as
    one text span and one span of style ``last``.  0 pieces a chunk: all text first.

    >>> spans = interleave(["a", " b", " c"], np.zeros((5, 1), dtype=np.int32), 2, 2)
    >>> [(s.text or len(s.codes), s.style) for s in spans]
    [('a b', 'span'), (2, 'span'), (' c', 'span'), (3, 'last')]
    """
    spans: list[Span] = []
    first = at = 0
    while text_chunk and len(pieces) - first > text_chunk and len(codes) - at > audio_chunk:
        stop = first + text_chunk
        while stop < len(pieces) and not any(pieces[first:stop]):  # tokens of a character that is not complete
            stop += 1
        spans.append(Span("text", "".join(pieces[first:stop])))
        spans.append(Span("audio", codes=codes[at : at + audio_chunk], style="span"))
        first, at = stop, at + audio_chunk
    rest = "".join(pieces[first:])
    if rest:
        spans.append(Span("text", rest))
    if len(codes) - at:
        spans.append(Span("audio", codes=codes[at:], style="last"))
    return tuple(spans)


def words_of(text: str) -> list[str]:
    """The words of a text, each with the blanks before it (the last: and behind it); a Chinese character is a word.

    >>> words_of("so it\\nis"), words_of("我用 it")
    (['so', ' it', '\\nis'], ['我', '用', ' it'])
    """
    words = _WORD.findall(text)
    behind = text[sum(map(len, words)) :]
    return [*words[:-1], words[-1] + behind] if words else [text] if text else []
