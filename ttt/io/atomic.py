"""Files and folders that are written whole or not at all: under a temporary name beside their place, then renamed.

Temporary names start with a dot, end in ``.tmp`` and hold the process id and a random part, so that two writers of one
file never share one.  After an error the temporary is removed; the old file or folder is still there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ttt.io.json_output import plain, to_json


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses: ``.NAME.PID-RANDOM.tmp`` (a long name is shortened)."""
    return path.with_name(f".{path.name[:48]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def file_aside(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """The path of a temporary file to write; it is renamed to ``path`` when the block ends well, removed when it does not.

    ``sync``: the contents, and the name, are on the disk afterwards.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if sync:
            sync_path(temporary)
        os.replace(temporary, path)
        if sync:
            sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes, sync: bool = False) -> None:
    """Write a file of bytes."""
    with file_aside(path, sync) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str, sync: bool = False) -> None:
    """Write a text file in UTF-8."""
    with file_aside(path, sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, sync: bool = False) -> None:
    """Write `to_json` of a value: numbers that are not finite become null."""
    write_text(path, to_json(value), sync)


def write_json_lines(path: str | Path, records: Iterable[Mapping[str, Any]], **options: Any) -> int:
    """Write one JSON object per line as they come, keys in the given order; ``options`` of `json.dumps`.  -> their number.

    Numbers that are not finite become null.
    """
    number = 0
    with file_aside(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for number, record in enumerate(records, 1):  # noqa: B007 (used after the loop)
            lines.write(_line(record, {"ensure_ascii": False, **options}) + "\n")
    return number


def _line(record: Mapping[str, Any], options: dict[str, Any]) -> str:
    try:
        return json.dumps(record, allow_nan=False, **options)
    except ValueError:  # rare, and `plain` walks over everything
        return json.dumps(plain(record), allow_nan=False, **options)


@contextlib.contextmanager
def folder_aside(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of ``path`` when the block ends well, and is removed when it does not."""
    path = Path(path)
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        put_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_folder(folder: Path, path: Path) -> None:
    """Rename ``folder`` to ``path``.  What was there is removed last; it comes back when the renaming fails."""
    if not path.exists():
        os.rename(folder, path)
        return
    old = temporary_name(path)
    os.rename(path, old)
    try:
        os.rename(folder, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def sync_path(path: Path) -> None:
    """Have the contents of a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_disk_full(error: BaseException) -> bool:
    """Does this error, however wrapped, mean that there is no room?"""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors reports the operating system's error as text only.
    return "No space left on device" in str(error) or f"os error {errno.ENOSPC})" in str(error)
