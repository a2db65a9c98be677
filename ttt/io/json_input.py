"""JSON that was written elsewhere.  Every fault is one line: file, line, what is wrong, how to mend it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttt.errors import DataError, TttError


def parse_json(text: str | bytes, where: str, mend: str = "mend or drop the line", error: type[TttError] = DataError) -> Any:
    """The value of a JSON text.  Raises ``error`` (one that takes a message) saying "``where``: reason; ``mend``"."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise error(f"{where}: {reason(fault)}; {mend}") from fault


def read_json(path: str | Path, mend: str, kind: type | None = dict, error: type[TttError] = DataError) -> Any:
    """The value in a JSON file, of type ``kind`` (None: any).  Raises ``error`` saying file, line, reason and ``mend``."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
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
    if isinstance(fault, UnicodeDecodeError):
        return f"not UTF-8 at byte {fault.start}"
    if isinstance(fault, FileNotFoundError):
        return "no such file"
    if isinstance(fault, OSError):
        return f"cannot be read: {fault.strerror or fault}"
    if isinstance(fault, RecursionError):
        return "nested too deeply"
    return " ".join(str(fault).split())


def _line(fault: Exception) -> str:
    return f":{fault.lineno}" if isinstance(fault, json.JSONDecodeError) else ""
