"""Can this be written?  Asked before the work whose result goes there."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from ttt.io.atomic import temporary_name
from ttt.io.system_errors import naming


def check_writable(path: str | Path) -> Path:
    """``path``, once it is known that it can be written: before hours of work for it, and without leaving anything there.

    Raises `OSError` naming what is in the way: a folder or a link loop in its place, a file or a folder without permission
    above it, a name that is too long, a full disk.
    """
    path = Path(path)
    try:
        path.stat()
    except FileNotFoundError:
        pass  # also a link to nothing: writing replaces the link
    folder = path.parent
    while not folder.is_dir():
        if os.path.lexists(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        _check_name(folder)
        folder = folder.parent
    _check_name(path)
    _probe(folder)
    return path


def check_file(path: str | Path) -> Path:
    """`check_writable`, for a file: no folder may stand in its place."""
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return check_writable(path)


def check_folder(path: str | Path) -> Path:
    """`check_writable`, for a folder and files in it: no file may stand in its place."""
    path = Path(path)
    if os.path.lexists(path) and not path.is_dir():
        path.stat()  # a link loop says so
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if path.is_dir():
        _probe(path)
        return path
    return check_writable(path)


def _check_name(path: Path) -> None:
    if len(os.fsencode(path.name)) > 255 or "\0" in path.name:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), f"{path.name[:40]}...")


def _probe(folder: Path) -> None:
    """Write a file there and remove it."""
    probe = temporary_name(folder / "probe")
    with naming(folder, probe):
        try:
            probe.write_bytes(b"x" * 4096)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
