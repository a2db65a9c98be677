"""File names made from ids that come with data, and the index that leads from a name back to its id."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ttt.io.atomic import write_text
from ttt.io.digests import digest_of_bytes

INDEX = "names.json"
MAX_BYTES = 120  # with a suffix, and as part of a temporary name, well below the 255 of usual file systems
_ORDINARY = re.compile(r"[\w-]([\w.-]*[\w-])?")  # no dot at an end: neither hidden, nor "..", nor cut by Windows
_SUFFIXES = (".wav", ".png", ".json", ".jsonl", ".tmp", ".old")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # no file names on Windows


def file_name(key: str) -> str:
    """A file name (without suffix) for an id: readable, safe on every file system, different for different ids.

    Letters, digits, ``_``, ``-`` and ``.`` stay, so an ordinary id is its own name.  Any other id gets ``_`` for what does
    not fit, and after ``~``, which no ordinary id holds, a digest of the whole id.

    >>> file_name("test-0001"), file_name("a_b"), file_name("a/b"), file_name("..")
    ('test-0001', 'a_b', 'a_b~82badf67', '_~e6fc5bb9')
    """
    return key if _is_ordinary(key) else _with_digest(key, 4)


def file_names(keys: Iterable[str]) -> dict[str, str]:
    """Id -> `file_name`, all different, also where capitals do not count: then each of the alike gets a digest.

    >>> file_names(["a", "b", "B"])
    {'a': 'a', 'b': 'b~fd9d3f51', 'B': 'B~5f34fe16'}
    """
    names = {key: file_name(key) for key in keys}
    alike = Counter(name.casefold() for name in names.values())
    names = {key: name if alike[name.casefold()] == 1 else _with_digest(key, 4) for key, name in names.items()}
    if len({name.casefold() for name in names.values()}) < len(names):  # two digests of 4 bytes are equal
        names = {key: _with_digest(key, 16) for key in names}
    return names


def write_index(folder: Path, keys: Mapping[str, str]) -> None:
    """Write ``names.json``: file name -> id."""
    about = {"format": "ttt-names-1", "names": dict(keys)}
    write_text(folder / INDEX, json.dumps(about, indent=1) + "\n")  # ASCII: an id may hold half a surrogate pair


def read_index(folder: Path) -> dict[str, str]:
    """File name -> id of the ``names.json`` in a folder; {} without one, or with a file of that name from elsewhere."""
    try:
        about = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = about["names"] if about["format"] == "ttt-names-1" else {}
        return {str(name): str(key) for name, key in names.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _with_digest(key: str, size: int) -> str:
    readable = re.sub(r"^\.+|[^\w.-]+|\.+$", "_", unicodedata.normalize("NFC", key)[:40])
    readable = readable.encode()[: MAX_BYTES - 2 * size - 9].decode(errors="ignore")
    return f"{readable or '_'}~{digest_of_bytes(key.encode('utf-8', 'surrogatepass'), size)}"


def _is_ordinary(key: str) -> bool:
    return (
        _ORDINARY.fullmatch(key) is not None
        and len(key.encode()) <= MAX_BYTES
        and unicodedata.is_normalized("NFC", key)
        and not _DEVICES.fullmatch(key)
        and not key.lower().endswith(_SUFFIXES)  # "a.wav" would be the file of the id "a"
    )
