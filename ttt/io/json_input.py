"""JSON that was written elsewhere.  Every fault is one line: file, line, what is wrong, how to mend it.

Refused besides text that is no JSON: NaN and infinity, numbers of thousands of digits, half surrogate pairs (no file can
hold them as UTF-8), a key that comes twice in one object, nesting deeper than `MAX_DEPTH`, and any encoding but UTF-8.
A byte order mark at the start is accepted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttt.errors import DataError, TttError
from ttt.io.text_input import EncodingFault, decode_text, why_unreadable

MAX_DEPTH = 100  # lists and objects in each other
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a pair
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_CONTAINERS = (dict, list)


class JsonFault(ValueError):
    """Text that is JSON for Python, but that no file of ours may hold."""


class Reader:
    """A JSON decoder that notes such faults of a value in ``faults`` and reads on behind it."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        hooks: dict[str, Any] = {
            "object_pairs_hook": self._object, "parse_constant": self._constant, "parse_float": self._float,
        }  # fmt: skip
        self._decoder = json.JSONDecoder(**hooks)
        self._with_large = json.JSONDecoder(**hooks, parse_int=self._int)

    def read(self, text: str, at: int = 0) -> tuple[Any, int]:
        """(value, where it ends) of the JSON that begins at ``at``.  Raises `json.JSONDecodeError` or `RecursionError`."""
        self.faults = []
        try:
            value, stop = self._decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a number that Python does not read
            self.faults = []
            value, stop = self._with_large.raw_decode(text, at)
        if not self.faults:
            self._check(text[at:stop] if at or stop < len(text) else text, value)
        return value, stop

    def _check(self, text: str, value: Any) -> None:
        if _HALF.search(text) and any(_is_half(s) for s in _strings(value)):
            self.faults.append("half a surrogate pair in a text (\\ud800 to \\udfff alone)")
        elif _may_be_deep(text) and _depth(value) > MAX_DEPTH:
            self.faults.append(f"nested too deeply (more than {MAX_DEPTH} levels)")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            self.faults.append(f"key {_short(twice)} comes twice in one object")
        return made

    def _constant(self, name: str) -> None:
        self.faults.append(f"{name} is no JSON value")

    def _float(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            self.faults.append(f"number {digits[:20]} is too large")
        return value

    def _int(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:
            self.faults.append(f"a number of {len(digits.lstrip('-'))} digits")
            return 0


def load(text: str | bytes) -> Any:
    """The value of a JSON text.  Raises a `ValueError` or `RecursionError` whose `reason` says what is wrong."""
    text = decode_text(text) if isinstance(text, bytes) else text
    reader = Reader()
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, stop = reader.read(text, start)
    rest = len(text) - len(text[stop:].lstrip(" \t\r\n"))
    if rest < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)
    if reader.faults:
        raise JsonFault(reader.faults[0])
    return value


def parse_json(text: str | bytes, where: str, mend: str = "mend or drop the line", error: type[TttError] = DataError) -> Any:
    """The value of a JSON text.  Raises ``error`` (one that takes a message) saying "``where``: reason; ``mend``"."""
    try:
        return load(text)
    except (ValueError, RecursionError) as fault:
        raise error(f"{where}: {reason(fault)}; {mend}") from fault


def read_json(path: str | Path, mend: str, kind: type | None = dict, error: type[TttError] = DataError) -> Any:
    """The value in a JSON file, of type ``kind`` (None: any).  Raises ``error`` saying file, line, reason and ``mend``."""
    path = Path(path)
    try:
        value = load(path.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        raise error(f"{path}{_line(fault)}: {reason(fault)}; {mend}") from fault
    if kind is not None and not isinstance(value, kind):
        raise error(f"{path}: expected {NAMES[kind]}, got {type(value).__name__}; {mend}")
    return value


def read_json_lines(
    path: str | Path, mend: str, may_end_early: bool = False, error: type[TttError] = DataError
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON lines file, one at a time; blank lines are skipped.

    ``may_end_early``: the file may still be written, so a last line that is no object ends it.
    Raises ``error`` saying file, line, reason and ``mend``.
    """
    path = Path(path)
    held: TttError | None = None  # the fault of a line that may be the last
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if held is not None:
                    raise held
                if not line.strip():
                    continue
                try:
                    value = parse_json(line, f"{path}:{number}", mend, error)
                    if not isinstance(value, dict):
                        raise error(f"{path}:{number}: expected an object, got {type(value).__name__}; {mend}")
                except TttError as fault:
                    if not may_end_early:
                        raise
                    held = fault
                else:
                    yield number, value
    except OSError as fault:
        raise error(f"{path}: {reason(fault)}; {mend}") from fault


NAMES: dict[type, str] = {dict: "an object", list: "a list"}


def reason(fault: Exception) -> str:
    """Why a JSON text could not be read, in a few words without a line's end."""
    if isinstance(fault, json.JSONDecodeError):
        return f"not JSON: {fault.msg} (column {fault.colno})"
    if isinstance(fault, OSError):
        return why_unreadable(fault)
    if isinstance(fault, RecursionError):
        return "nested too deeply"
    if isinstance(fault, UnicodeDecodeError):
        return f"not UTF-8 at byte {fault.start}"
    return " ".join(str(fault).split())


def kind_of_fault(fault: Exception) -> str:
    """What such faults are counted under."""
    if isinstance(fault, EncodingFault | UnicodeDecodeError):
        return "not UTF-8"
    return "not JSON"


def _line(fault: Exception) -> str:
    return f":{fault.lineno}" if isinstance(fault, json.JSONDecodeError) else ""


def _short(key: str) -> str:
    return repr(key if len(key) <= 40 else f"{key[:40]}...")


def _is_half(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _strings(value: Any) -> Iterator[str]:
    """All texts in a value, keys too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            yield from one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _may_be_deep(text: str) -> bool:
    """False only for text whose nesting is surely no deeper than `MAX_DEPTH`: brackets are peeled from inside.

    Fast, and blind for strings: these may hold brackets of their own.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    brackets = text.encode("utf-8", "surrogatepass").translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH // 2):  # one round removes one level or two
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not fewer:
            return False
        if len(fewer) == len(brackets):
            return True
        brackets = fewer
    return True


def _depth(value: Any) -> int:
    level, depth = [value] if isinstance(value, _CONTAINERS) else [], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, _CONTAINERS)
        ]  # fmt: skip
    return depth
