"""Records of data files, one at a time: ``.jsonl``, ``.json`` (a list), ``.parquet``, the first two also as ``.gz``; and
folders that Hugging Face `datasets` saved (`ttt.data.read.tables`).

Memory stays flat: a list in one ``.json`` file is decoded piece by piece, parquet is read in batches of rows.  A line
of a ``.jsonl`` file is handed over unparsed, so that several processes can share the parsing and one broken line spoils
only itself.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ttt.data.read.tables import is_saved, parquet_rows, saved_rows
from ttt.errors import DataError
from ttt.io.json_input import reason

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


def decode(where: str, raw: Any) -> Any:
    """The record of a raw one.  Raises `RecordError` for a broken line."""
    if not isinstance(raw, bytes):
        return raw
    try:
        return json.loads(raw)
    except UnicodeDecodeError as error:
        raise RecordError(where, "not UTF-8", f"{reason(error)}; convert the file") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(where, "not JSON", f"{reason(error)}; mend or drop the line") from error


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _lines(path: Path) -> Iterator[Raw]:
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", line
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}; make the file again") from error


class _Buffer:
    """A window on a text file: what is left to decode, and how many lines went before."""

    def __init__(self, path: Path) -> None:
        self.file = io.TextIOWrapper(_open(path), encoding="utf-8")
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


def _list_items(path: Path) -> Iterator[Any]:
    try:
        yield from _decode_list(path, _Buffer(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason}; convert the file") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}; make the file again") from error


def _decode_list(path: Path, buffer: _Buffer) -> Iterator[Any]:
    def broken(message: str, at: int) -> DataError:
        return RecordError(
            f"{path}:{buffer.line + buffer.text.count(chr(10), 0, at)}", "not JSON", f"not JSON: {message}"
        )

    decoder = json.JSONDecoder()
    if buffer.peek() != "[":
        raise DataError(f"{path}: expected a list of records")
    buffer.at += 1
    if buffer.peek() == "]":
        return
    while True:
        buffer.peek()
        buffer.chunk = CHUNK_CHARS
        while True:
            try:
                item, stop = decoder.raw_decode(buffer.text, buffer.at)
                # A number could go on behind the window: "3." is 3 and a point so far.
                if buffer.ended or len(buffer.text) - stop > NUMBER_CHARS:
                    break
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos >= len(buffer.text) - 16
                if buffer.ended or not cut_off:
                    raise broken(error.msg, error.pos) from error
            buffer.more()
            buffer.chunk *= 2  # a long record costs no more than twice its length
        buffer.at = stop
        yield item
        after = buffer.peek()
        if after == "]":
            return
        if after != ",":
            raise broken("expected ',' or ']' after a record", buffer.at)
        buffer.at += 1
