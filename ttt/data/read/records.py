"""Records of data files, one at a time: ``.jsonl``, ``.json`` (a list), ``.parquet``, the first two also as ``.gz``; and
folders that Hugging Face `datasets` saved (`ttt.data.read.tables`).

A field that is null is a field that the record does not have: in tables nothing else is possible.

Memory stays flat: a list in one ``.json`` file is decoded piece by piece, parquet is read in batches of rows.  A line
of a ``.jsonl`` file is handed over unparsed, so that several processes can share the parsing and one broken line spoils
only itself.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.data.read.tables import is_saved, parquet_rows, saved_rows, without_nulls
from ttt.errors import DataError
from ttt.io.json_input import Reader, kind_of_fault, load, reason
from ttt.io.text_input import EncodingFault, decode_text

CHUNK_CHARS = 1 << 20
NUMBER_CHARS = 32
KINDS = (".jsonl", ".json", ".parquet")
REASONS = {
    "outside the codebook": "code out of range", "special token": "special token in text", "has no tokens": "no tokens",
    "expected codes [F": "other number of codebooks",
}  # fmt: skip
Raw = tuple[str, Any]  # (place, bytes of a line | decoded record)


class RecordError(DataError):
    """One record that cannot be used: ``where`` ("file:line"), ``reason`` (short, to be counted), and the whole message."""

    def __init__(self, where: str, reason: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where, self.reason, self.message = where, reason, message

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordError, (self.where, self.reason, self.message)


def reason_of(error: DataError) -> str:
    """What an error is counted under; those that are raised below this package are told by their words."""
    if isinstance(error, RecordError):
        return error.reason
    return next((reason for words, reason in REASONS.items() if words in str(error)), "not usable")


def kind_of(path: Path) -> str:
    """``.jsonl``, ``.json``, ``.parquet``, or ``arrow`` (a saved dataset).  Raises `DataError` for anything else."""
    if is_saved(path):
        return "arrow"
    name = path.name.removesuffix(".gz")
    kind = Path(name).suffix
    if kind not in KINDS or (kind == ".parquet" and name != path.name):
        raise DataError(
            f"{path}: unknown file kind {path.suffix!r}; use .json, .jsonl (also .gz), .parquet, or a folder of save_to_disk"
        )
    return kind


def read_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of a data file; raises `DataError` with the line of broken JSON."""
    for where, raw in raw_records(path):
        yield where, decode(where, raw)


def raw_records(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Raw]:
    """(place, raw record) of a data file, in order; `decode` makes the record.

    The place is ``path:line`` (JSONL) or ``path[number]`` counted from 0.  ``columns``: of tables, read these only.
    Raises `DataError` when the file as a whole cannot be read.
    """
    path = Path(path)
    if is_saved(path):
        yield from ((f"{path}[{i}]", r) for i, r in enumerate(saved_rows(path, columns)))
        return
    if path.is_dir():
        raise DataError(
            f"{path}: a folder (a store?), expected a file of examples ({', '.join(KINDS)}) or a folder of save_to_disk"
        )
    kind = kind_of(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; run the stage that makes it")
    if kind == ".jsonl":
        yield from _lines(path)
    elif kind == ".json":
        yield from ((f"{path}[{i}]", r) for i, r in enumerate(_list_items(path)))
    else:
        yield from ((f"{path}[{i}]", r) for i, r in enumerate(parquet_rows(path, columns)))


def list_or_lines(path: Path) -> Iterator[Raw]:
    """`raw_records`, where a ``.json`` file may also hold one object a line, as some programs write them."""
    if path.suffix == ".json" and path.is_file():
        with path.open("rb") as file:
            if file.read(64).lstrip()[:1] == b"{":
                file.seek(0)
                yield from ((f"{path}:{n}", line) for n, line in enumerate(file, 1) if line.strip())
                return
    yield from raw_records(path)


@dataclass(frozen=True)
class _Faulty:
    """A record of a list that is JSON for Python, but may not be used."""

    reason: str


def decode(where: str, raw: Any) -> Any:
    """The record of a raw one.  Raises `RecordError` for a broken line."""
    if isinstance(raw, _Faulty):
        raise RecordError(where, "not JSON", f"{raw.reason}; mend or drop the record")
    if not isinstance(raw, bytes):
        return raw
    try:
        record = load(raw)
    except (ValueError, RecursionError) as error:
        mend = "convert the file to UTF-8" if isinstance(error, EncodingFault) else "mend or drop the line"
        raise RecordError(where, kind_of_fault(error), f"{reason(error)}; {mend}") from error
    return without_nulls(record) if b"null" in raw else record


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _lines(path: Path) -> Iterator[Raw]:
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; make the file again") from error


class _Buffer:
    """A window on a text file: what is left to decode, and how many lines went before."""

    def __init__(self, path: Path) -> None:
        self.file = io.TextIOWrapper(_open(path), encoding="utf-8-sig")
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self.chunk = CHUNK_CHARS

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        new = self.file.read(self.chunk)
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at, self.ended = self.text[self.at :] + new, 0, not new
        return bool(new)

    def peek(self) -> str:
        """The next character that is no blank, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]


def _list_items(path: Path, key: str = "") -> Iterator[Any]:
    try:
        with _open(path) as file:
            start = file.read(64)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
            decode_text(start)
        yield from _decode_list(path, _Buffer(path), key)
    except EncodingFault as error:
        raise DataError(f"{path}: {error}; convert the file to UTF-8") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; make the file again") from error


def _not_utf8(path: Path) -> DataError:
    """Where the text stops being UTF-8, said by line."""
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                decode_text(line)
            except EncodingFault as fault:
                return DataError(f"{path}:{number}: {fault}; convert the file to UTF-8")
    return DataError(f"{path}: not UTF-8; convert the file to UTF-8")


def list_in_object(path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """(place, item) of the list under ``key`` of the one object that a ``.json`` file holds, one item at a time.

    What the object holds before the list is read over, what it holds after it is not read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; name the folder of the corpus")
    yield from ((f"{path}[{i}]", item) for i, item in enumerate(_list_items(path, key)))


def _decode_list(path: Path, buffer: _Buffer, key: str = "") -> Iterator[Any]:
    """The items of a list; ``key``: of the list that an object holds under that name."""

    def broken(message: str, at: int) -> DataError:
        return RecordError(
            f"{path}:{buffer.line + buffer.text.count(chr(10), 0, at)}", "not JSON", f"{message}; mend the file"
        )

    def value() -> Any:
        """The next value."""
        buffer.peek()
        buffer.chunk = CHUNK_CHARS
        while True:
            try:
                item, stop = reader.read(buffer.text, buffer.at)
                # A number could go on behind the window: "3." is 3 and a point so far.
                if buffer.ended or len(buffer.text) - stop > NUMBER_CHARS:
                    break
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos >= len(buffer.text) - 16
                if buffer.ended or not cut_off:
                    raise broken(f"not JSON: {error.msg}", error.pos) from error
            except RecursionError as error:
                raise broken(reason(error), buffer.at) from error
            buffer.more()
            buffer.chunk *= 2  # a long record costs no more than twice its length
        nulls = "null" in buffer.text[buffer.at : stop]
        buffer.at = stop
        return _Faulty(reader.faults[0]) if reader.faults else without_nulls(item) if nulls else item

    def pass_mark(marks: str, what: str) -> str:
        """The next character, which must be one of ``marks``."""
        mark = buffer.peek()
        if not mark or mark not in marks:
            raise broken(f"not JSON: expected {what}", buffer.at)
        buffer.at += 1
        return mark

    reader = Reader()
    if key:
        if buffer.peek() != "{":
            raise DataError(f"{path}: expected an object with the list {key!r}; is it the corpus's own file?")
        buffer.at += 1
        missing = DataError(f"{path}: the object has no list {key!r}; is it the corpus's own file?")
        if buffer.peek() == "}":
            raise missing
        while True:
            name = value()
            pass_mark(":", "':' after a name")
            if name == key:
                break
            value()
            if pass_mark(",}", "',' or '}' after a field") == "}":
                raise missing
    if buffer.peek() != "[":
        found = "an object" if buffer.peek() == "{" else "an empty file" if not buffer.peek() else "something else"
        raise DataError(
            f"{path}: expected a list of records, got {found}; name a list, or call a file of one record a line .jsonl"
        )
    buffer.at += 1
    if buffer.peek() == "]":
        return
    while True:
        yield value()
        if pass_mark(",]", "',' or ']' after a record") == "]":
            return
