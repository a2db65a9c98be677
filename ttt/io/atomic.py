"""Files and folders that are written whole or not at all: under a temporary name beside their place, then renamed.

Temporary names start with a dot, end in ``.tmp`` and hold machine, process id and a random part, so that two writers of
one file never share one.  After an error the temporary is removed; the old file or folder is still there.  What a killed
process left is removed when the next process of the same machine writes to that folder.

A folder takes the place of another in one step (`put_folder`).  Where the file system cannot do that, the old one is called
``.NAME.MACHINE-PID-RANDOM.old`` for a moment; after a kill in that moment `recover` gives it its name back.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ttt.io.json_output import plain, to_json
from ttt.io.system_errors import naming

_LEFTOVER = re.compile(
    r"\.(?P<name>.*)\.(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL
)
_LONGEST_NAME = 200  # bytes of a name that `.old` keeps whole
_swept: set[tuple[int, str]] = set()  # (process id, folder): looked through for leftovers


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses: ``.NAME.MACHINE-PID-RANDOM.tmp`` (a long name is shortened).

    At its first use in a folder, a process removes what killed processes left there.
    """
    folder = os.path.realpath(path.parent)
    if (os.getpid(), folder) not in _swept:
        _swept.add((os.getpid(), folder))
        remove_leftovers(Path(folder))
    return path.with_name(f".{path.name[:48]}.{_owner()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of processes that have ended; those of living ones and of other machines stay."""
    with contextlib.suppress(OSError):  # no such folder, or one that may not be read: nothing of ours
        with os.scandir(folder) as entries:
            names = [
                entry.name for entry in entries if entry.name.startswith(".") and entry.name.endswith((".tmp", ".old"))
            ]
        for name in names:
            match = _LEFTOVER.fullmatch(name)
            if match is None or match["machine"] != machine() or _is_alive(int(match["pid"])):
                continue
            if match["kind"] == "tmp" or os.path.lexists(folder / match["name"]):
                _remove(folder / name)
            elif len(os.fsencode(match["name"])) < _LONGEST_NAME:
                os.rename(folder / name, folder / match["name"])


def recover(path: Path) -> None:
    """Give a folder its name back that a process was killed in replacing (see `put_folder`)."""
    if not os.path.lexists(path):
        remove_leftovers(path.parent)


@functools.cache
def machine() -> str:
    """8 hex digits for this machine and its table of processes (that of a container): where a process id means something."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=4).hexdigest()


def _owner() -> str:
    return f"{machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def file_aside(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """The path of a temporary file to write; it is renamed to ``path`` when the block ends well, removed when it does not.

    ``sync``: the contents, and the name, are on the disk afterwards.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with naming(path, temporary):
            yield temporary
            if sync:
                sync_path(temporary)
            os.replace(temporary, path)
            if sync:
                sync_path(path.parent)
    finally:
        with contextlib.suppress(OSError):
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
    """A temporary folder to fill; it takes the place of ``path`` when the block ends well, and is removed when it does not.

    A symbolic link stays; the folder that it names is replaced.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        put_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_folder(folder: Path, path: Path) -> None:
    """Rename ``folder`` to ``path``.  What was there is removed last; it comes back when the renaming fails."""
    path = Path(os.path.realpath(path))
    recover(path)
    if not path.exists():
        os.rename(folder, path)
        return
    if _exchange(folder, path):  # `folder` is now the old one
        shutil.rmtree(folder)
        return
    old = path.with_name(f".{path.name}.{_owner()}.old")
    if len(os.fsencode(path.name)) >= _LONGEST_NAME:
        old = path.with_name(f".{path.name[:48]}.{_owner()}.old")
    os.rename(path, old)
    try:
        os.rename(folder, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step (Linux, most local file systems).  False: not possible here."""
    at_cwd, rename_exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0


def sync_path(path: Path) -> None:
    """Have the contents of a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
