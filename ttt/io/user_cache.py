"""Small records that the toolkit keeps for one user, outside of the folders that it works in.

They lie below ``$TTT_CACHE``, else ``$XDG_CACHE_HOME/ttt``, else ``~/.cache/ttt``, one JSON file each.  Losing one costs time or
a question, never a result: where the folder cannot be written, nothing is kept.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from ttt.io.atomic import write_text
from ttt.io.digests import digest_of_bytes

log = logging.getLogger(__name__)
MAX_RECORDS = 4000  # of one kind; the oldest are removed beyond it


def read_record(kind: str, key: str) -> dict[str, Any]:
    """What is kept of this kind under ``key``, any text; empty when nothing is, or nothing readable."""
    path = _path(kind, key)
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and record.get("key") == key else {}


def write_record(kind: str, key: str, record: dict[str, Any]) -> None:
    """Keep a record in place of the one before."""
    path = _path(kind, key)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(path, json.dumps({"key": key, **record}))
        _remove_oldest(path.parent)
    except OSError as error:
        log.debug("%s: cannot be written (%s); it will be asked or computed again", path, error)


def _path(kind: str, key: str) -> Path | None:
    root = os.environ.get("TTT_CACHE", "")
    try:
        folder = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttt"
    except RuntimeError:  # nobody's home
        return None
    return folder / kind / f"{digest_of_bytes(key.encode('utf-8', 'surrogateescape'))}.json"


def _remove_oldest(folder: Path) -> None:
    files = list(folder.glob("*.json"))
    if len(files) <= MAX_RECORDS:
        return
    files.sort(key=lambda path: path.stat().st_mtime)
    for path in files[: len(files) // 2]:
        path.unlink(missing_ok=True)
