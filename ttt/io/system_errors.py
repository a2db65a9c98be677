"""Errors of the operating system in one line: which file, what is wrong, how to mend it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_WHAT = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "no permission; choose another place, or change its owner or mode",
    errno.EPERM: "not permitted; choose another place, or change its owner or mode",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EISDIR: "is a folder where a file is needed; name another file, or move the folder",
    errno.ENOTDIR: "a file stands where a folder is needed; name another place, or move the file",
    errno.EEXIST: "is there already; name another place",
    errno.ENOTEMPTY: "the folder is not empty; name another place",
    errno.ELOOP: "a link that leads back to itself; remove the link or name another place",
    errno.ENAMETOOLONG: "the name is too long for the file system; name a shorter one",
    errno.ENOSPC: "no room left on the disk; free some, or write to another place",
    errno.EDQUOT: "your disk quota is used up; free some room, or write to another place",
    errno.EFBIG: "the file is larger than the file system or 'ulimit -f' allows; write to another place",
    errno.EMFILE: "too many open files; raise 'ulimit -n'",
    errno.ENFILE: "the system has too many open files; try again",
    errno.EBUSY: "is in use; try again, or name another place",
    errno.EXDEV: "lies on another file system; name a place on the same one",
    errno.EIO: "the disk or its connection failed; write to another place",
    errno.ENOMEM: "no memory left; use smaller batches, or end other programs",
    errno.ESTALE: "the connection to the file server was lost; try again",
}


def describe(error: OSError) -> str:
    """The line that a user reads: ``FILE: what is wrong; how to mend it``.

    >>> describe(FileNotFoundError(errno.ENOENT, "No such file", "x.json"))
    'x.json: no such file or folder'
    """
    what = _WHAT.get(error.errno or 0, "") or " ".join((error.strerror or str(error) or type(error).__name__).split())
    names = [n for n in (getattr(error, "filename2", None), error.filename) if n is not None and not isinstance(n, int)]
    return f"{os.fsdecode(names[0])}: {what}" if names else what


def is_disk_full(error: BaseException) -> bool:
    """Does this error, however wrapped, mean that there is no room?"""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    # safetensors reports the operating system's error as text only.
    return "No space left on device" in str(error) or f"os error {errno.ENOSPC})" in str(error)


def is_link_loop(error: BaseException) -> bool:
    """Does this error mean a link that leads back to itself?  `Path.resolve` says so by a `RuntimeError`."""
    return isinstance(error, RuntimeError) and str(error).startswith("Symlink loop")


@contextlib.contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Errors of the operating system inside name ``path`` when they name no file (writing), or ``instead_of``."""
    try:
        yield
    except OSError as error:
        names = {os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)}
        if error.errno is not None and (not names or str(instead_of) in names):
            error.filename, error.filename2 = str(path), None
        raise
