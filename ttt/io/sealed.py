"""Files whose sizes and digests are listed beside them: checked when they are opened, read through once.

A file that was found good is not read again while its size, times, and place on the disk stay the same; that is kept in
`ttt.io.user_cache`.  Without a cache that can be written, every opening reads every file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt.errors import TttError
from ttt.io.digests import digest_of_file
from ttt.io.user_cache import read_record, write_record

KIND = "verified"
# A file that changed less than this before it was read is not noted: clocks of file systems tick in steps.
SETTLED_S = 0.1


def check_files(
    folder: Path, listed: Mapping[str, Any], by: str, mend: str, error: type[TttError], *, again: bool = False
) -> None:  # fmt: skip
    """Compare files of ``folder`` with ``listed``: name -> {``bytes``, ``blake2b``}.  Sizes first, then contents.

    ``by``: the file that lists them; ``again``: read them all, whatever is known of them.  Raises ``error`` naming the file.
    """
    key = f"{folder.resolve()}\n{'/'.join(sorted(listed))}"
    known = {} if again else read_record(KIND, key).get("files", {})
    good: dict[str, list[Any]] = {}
    for name, entry in listed.items():
        right = isinstance(entry, Mapping) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("blake2b"), str)
        if not right or Path(name).is_absolute() or ".." in Path(name).parts:
            raise error(f"{folder / by}: no size and digest of {name!r}; {mend}")
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise error(f"{folder}: file {name} is missing; {mend}")
        if size != entry["bytes"]:
            raise error(f"{folder}: file {name} is {size} bytes, {by} says {entry['bytes']}; {mend}")
    for name, entry in listed.items():
        path, digest = folder / name, entry["blake2b"]
        state = _state(path)
        if not (isinstance(known, dict) and known.get(name) == [*state, digest]):
            if digest_of_file(path, len(digest) // 2 or 1) != digest:
                raise error(
                    f"{folder}: file {name} has other contents than when it was written (its digest differs from {by}); {mend}"
                )
            if time.time_ns() - max(state[1:3]) < SETTLED_S * 1e9:
                continue
        good[name] = [*state, digest]
    if good != known:
        write_record(KIND, key, {"files": good})


def _state(path: Path) -> list[int]:
    """What changes whenever a file is written, replaced or renamed: size, times of change, place on the disk."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
