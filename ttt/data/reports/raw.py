"""What lies in a file of another format: its rows and columns, before it is converted.

Sound and other bytes are not read.  Lists are told by their lengths, lists of numbers also by their range: the codes of a
codebook, for instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ttt.data.convert.core import inputs_of
from ttt.data.convert.sound_tables import table_files
from ttt.data.read.records import RecordError, decode, raw_records
from ttt.data.read.tables import arrow_rows, is_saved, parquet_rows, rows_of, schema_of
from ttt.data.read.token_ids import is_ids
from ttt.data.sources.mix import is_mix
from ttt.data.sources.store import is_store
from ttt.errors import DataError

# What records of examples have: `ttt.data.read.examples`
FORMS = ({"turns"}, {"messages"}, {"conversations"}, {"prompt", "response"}, {"text"})
SHOWN_TEXT, SHOWN_ITEMS = 100, 8  # characters of a text, items of a list that a row shows
UNREAD = ("binary", "large_binary")  # and what holds them: kinds of columns that are not read


@dataclass
class Column:
    """One column: ``kind`` of its values, how many rows have one, and the sizes and numbers among them."""

    kind: str
    read: bool = True
    present: int = 0
    empty: int = 0  # texts without a character but blanks, lists without an item
    sizes: list[int] = field(default_factory=list)  # characters of texts, items of lists
    low: float = np.inf
    high: float = -np.inf

    def add(self, value: Any) -> None:
        """Count the value of a row."""
        self.present += 1
        if isinstance(value, str | list | np.ndarray):
            self.sizes.append(len(value))
            self.empty += not (value.strip() if isinstance(value, str) else len(value))
        numbers = _numbers(value)
        if len(numbers):
            self.low, self.high = min(self.low, float(numbers.min())), max(self.high, float(numbers.max()))

    def line(self, rows: int) -> str:
        """What is known of it, for people."""
        if not self.read:
            return "not read"
        parts = [f"{rows - self.present} without a value"] if self.present < rows else []
        parts += [f"{self.empty} empty"] if self.empty else []
        if self.sizes:
            what = "characters" if self.kind in ("string", "large_string", "text") else "items"
            parts.append(f"{what} {min(self.sizes)} to {max(self.sizes)}, mean {np.mean(self.sizes):.1f}")
        if self.low <= self.high:
            parts.append(f"values {self.low:g} to {self.high:g}")
        return ", ".join(parts) or "no values"


def raw_and_examples(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """(files of rows that are no examples, the others) of paths and globs, in order."""
    files = [file for path in paths for file in inputs_of(path)]
    raw = [file for file in files if is_raw(file)]
    return raw, [file for file in files if file not in raw]


def is_raw(path: Path) -> bool:
    """Does a file, or a folder of tables, hold rows that are no examples?  Its first row tells."""
    if is_store(path) or is_mix(path) or not path.exists():
        return False
    try:
        if _is_table(path):
            first: Any = dict.fromkeys(schema_of(table_files(path)[0]).names)
        else:
            where, raw = next(iter(raw_records(path)))
            first = decode(where, raw)
    except (RecordError, StopIteration):
        return False
    return isinstance(first, Mapping) and not is_ids(first) and not any(form <= set(first) for form in FORMS)


def _is_table(path: Path) -> bool:
    """Is it a parquet file, a saved dataset, or a folder of parquet files?"""
    return path.suffix == ".parquet" or is_saved(path) or (path.is_dir() and next(path.rglob("*.parquet"), None) is not None)


def raw_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, row) of a file, of a folder of parquet shards, or of a saved dataset; columns of bytes are left out."""
    if _is_table(path):
        for file in table_files(path):
            names = [name for name, kind in columns_of(file).items() if kind.read]
            rows = arrow_rows(file, names) if file.suffix == ".arrow" else parquet_rows(file, names)
            yield from ((f"{file}[{i}]", row) for i, row in enumerate(rows))
        return
    for where, raw in raw_records(path):
        row = decode(where, raw)
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: expected an object, got {type(row).__name__}; mend or drop the row")
        yield where, row


def columns_of(file: Path) -> dict[str, Column]:
    """The columns of a table, by name."""
    schema = schema_of(file)
    return {n: Column(str(t), not any(u in str(t) for u in UNREAD)) for n, t in zip(schema.names, schema.types, strict=True)}


def header(path: Path) -> str:
    """Number of rows, then the columns; of lines, the fields of the first one (and no number: that needs reading them all)."""
    if _is_table(path):
        files = table_files(path)
        counts = [rows_of(file) for file in files]
        columns = columns_of(files[0])
        lines = [f"{path}: {sum(counts)} rows in {len(files)} file(s), {len(columns)} columns"]
    else:
        _, row = next(raw_rows(path), ("", {}))
        columns = {name: Column(_kind(value)) for name, value in row.items()}
        lines = [f"{path}: {len(columns)} fields in its first row"]
    return "\n".join([*lines, *(f"  {n}: {c.kind}{'' if c.read else ' (not read)'}" for n, c in columns.items())])


def rows_page(path: Path, limit: int) -> str:
    """The first rows, each field shortened."""
    lines = []
    for where, row in islice(raw_rows(path), limit):
        lines += ["", f"row {where.rpartition('/')[2]}"]
        lines += [f"  {name}: {_shown(value)}" for name, value in row.items()]
    return "\n".join(lines)


def columns_page(path: Path, limit: int = 0) -> tuple[str, int]:
    """(what the columns hold, how many rows lack something) of the first ``limit`` rows (0: all)."""
    found: dict[str, Column] = {}
    rows = faulty = 0
    if _is_table(path):
        found = columns_of(table_files(path)[0])
    for _, row in islice(raw_rows(path), limit or None):
        rows += 1
        for name, value in row.items():
            found.setdefault(name, Column(_kind(value))).add(value)
        lacking = [c for n, c in found.items() if c.read and n not in row]
        faulty += bool(lacking) or any(isinstance(v, str | list | np.ndarray) and not len(v) for v in row.values())
    width = max(map(len, found), default=0)
    lines = [f"{rows} rows"] + [f"  {name:{width}}  {column.line(rows)}" for name, column in found.items()]
    return "\n".join(lines), faulty


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "whole number", float: "number", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def _numbers(value: Any) -> np.ndarray:
    """The numbers of a value, or of a list of numbers or of whole numbers in strings; none of anything else."""
    items = value if isinstance(value, list | np.ndarray) else [value]
    if len(items) and all(isinstance(v, str) and v.lstrip("-").isdecimal() for v in items) and not isinstance(value, str):
        items = [int(v) for v in items]
    if not len(items) or any(isinstance(v, bool) or not isinstance(v, int | float | np.number) for v in items):
        return np.zeros(0)
    return np.asarray(items, dtype=np.float64)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = value.replace("\n", "\\n")
        return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}... ({len(text)} characters)"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence | np.ndarray):
        more = f", ... ({len(value)} items)" if len(value) > SHOWN_ITEMS else ""
        return "[" + ", ".join(_shown(v) for v in value[:SHOWN_ITEMS]) + more + "]"
    return str(value)
