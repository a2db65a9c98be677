"""Digests: short names of contents.  Stored digests are compared for years, so what a function returns must never change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ttt.errors import DataError

_BLOCK_BYTES = 1 << 22


def digest_of_bytes(data: bytes, size: int = 8) -> str:
    """BLAKE2b of ``size`` bytes, as 2 x ``size`` hex digits.

    >>> digest_of_bytes(b"abc", 4)
    '63906248'
    """
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def digest_of_json(value: Any, sort_keys: bool = True, default: Callable[[Any], Any] | None = None) -> str:
    """16 hex digits of a value's JSON text; the order of keys does not count unless ``sort_keys`` is False."""
    return digest_of_bytes(json.dumps(value, sort_keys=sort_keys, default=default).encode())


def digest_of_file(path: Path, size: int = 8) -> str:
    """BLAKE2b of a file's bytes."""
    return _hash_file(hashlib.blake2b(digest_size=size), path)


def digest_of_listing(folder: Path, leave_out: str = "") -> str:
    """16 hex digits of the relative names and sizes of a folder's files; names ending in ``leave_out`` do not count.

    Reads no file: a changed byte goes unnoticed.
    """
    files = sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
    return digest_of_json([f for f in files if not (leave_out and f[0].endswith(leave_out))])


def sha256_digest(path: str | Path) -> str:
    """First 16 hex digits of the SHA-256 of a file, or of the sorted (name, digest) pairs of a folder's files.

    Raises `DataError` when nothing is there.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: cannot take its digest, it is not there")
    if not path.is_dir():
        return _hash_file(hashlib.sha256(), path)[:16]
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(path).as_posix()} {sha256_digest(file)}\n".encode())
    return total.hexdigest()[:16]


def hash64(data: bytes, byteorder: Literal["little", "big"] = "little") -> int:
    """A number in [0, 2^64) that stands for ``data``, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), byteorder)


def _hash_file(hasher: Any, path: Path) -> str:
    with path.open("rb") as data:
        while block := data.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
