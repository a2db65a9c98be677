"""Every way in which a file can be bad: functions that spoil a good file in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

HUGE = "9" * 5000  # Python refuses to read integers of more than 4300 digits
DEEP = "[" * 200_000


def _missing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing-there")


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def _random(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes())


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


# what is wrong -> how a good file becomes so.  For every file.
ANY_FILE: dict[str, Callable[[Path], None]] = {
    "missing": _missing,
    "folder": _folder,
    "link loop": _link_loop,
    "link to nothing": _link_to_nothing,
    "empty": _bytes(b""),
    "blank": _bytes(b" \n\n"),
    "random bytes": _random,
    "zeros": _bytes(b"\0" * 300),
    "truncated": _changed(lambda content: content[: len(content) // 2]),
    "tail cut": _changed(lambda content: content[:-3]),
}

# For files of text.
TEXT_FILE: dict[str, Callable[[Path], None]] = {
    "latin-1": _changed(lambda content: content.replace(b"a", b"\xe9")),
    "utf-16": _changed(lambda content: content.decode().encode("utf-16")),
    "utf-8 BOM": _changed(lambda content: b"\xef\xbb\xbf" + content),
    "deep": _bytes(DEEP.encode()),
    "deep object": _bytes(b'{"a":' * 100_000),
    "huge integer": _bytes(f'{{"a": {HUGE}}}\n'.encode()),
    "bare huge integer": _bytes(f"{HUGE}\n".encode()),
    "not a number": _bytes(b'{"a": NaN, "b": -Infinity}\n'),
    "list": _bytes(b"[1, 2]\n"),
    "empty list": _bytes(b"[]\n"),
    "empty object": _bytes(b"{}\n"),
    "number": _bytes(b"5\n"),
    "text": _bytes(b'"words"\n'),
    "null": _bytes(b"null\n"),
    "half a surrogate pair": _bytes(b'{"a": "\\ud83d"}\n'),
    "keys twice": _bytes(b'{"a": 1, "a": 2}\n'),
    "nul inside": _changed(lambda content: content[:10] + b"\0" + content[10:]),
}

FAULTS = {**ANY_FILE, **TEXT_FILE}

# values that a field may be given instead of its own
WRONG_VALUES: dict[str, object] = {
    "null": None, "true": True, "text": "x", "empty text": "", "number": 5, "minus": -1, "fraction": 0.5, "list": [], "ones": [1],
    "texts": ["x"], "object": {}, "block": {"a": 1}, "half pair": "\ud83d", "escape": "\x1b[31mred", "beyond 64 bits": 2**70,
    "nan": float("nan"), "infinity": float("inf"), "nested": [[[["x"]]]], "dots": "../..", "nul": "a\0b",
}  # fmt: skip


def break_file(path: str | Path, how: str) -> None:
    """Spoil one file; ``how``: a key of `FAULTS`."""
    FAULTS[how](Path(path))


def restore(path: Path, content: bytes) -> None:
    """Put a good file back, whatever is in its place."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def with_value(record: object, key: str, value: object) -> str:
    """A record's JSON with one key set to any value, as any writer may have written it."""
    assert isinstance(record, dict)
    return json.dumps({**record, key: value})


def is_root() -> bool:
    """Whether permissions are not checked."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
