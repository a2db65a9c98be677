"""File names made from ids that come with data."""

from __future__ import annotations

import re
import unicodedata

from ttt.io.digests import digest_of_bytes

MAX_BYTES = 120  # with a suffix, and as part of a temporary name, well below the 255 of usual file systems
_ORDINARY = re.compile(r"[\w-][\w.-]*")  # no leading dot: neither hidden nor ".."
_SUFFIXES = (".wav", ".png", ".json", ".jsonl", ".tmp")


def file_name(key: str) -> str:
    """A file name (without suffix) for an id: readable, safe on every file system, different for different ids.

    Letters, digits, ``_``, ``-`` and ``.`` stay, so an ordinary id is its own name.  Any other id gets ``_`` for what does
    not fit, and after ``~``, which no ordinary id holds, a digest of the whole id.

    >>> file_name("test-0001"), file_name("a_b"), file_name("a/b"), file_name("..")
    ('test-0001', 'a_b', 'a_b~82badf67', '_~e6fc5bb9')
    """
    if _is_ordinary(key):
        return key
    readable = re.sub(r"^\.+|[^\w.-]+", "_", unicodedata.normalize("NFC", key)[:40])
    return f"{readable or '_'}~{digest_of_bytes(key.encode('utf-8', 'surrogatepass'), 4)}"


def _is_ordinary(key: str) -> bool:
    return (
        _ORDINARY.fullmatch(key) is not None
        and len(key.encode()) <= MAX_BYTES
        and unicodedata.is_normalized("NFC", key)
        and not key.lower().endswith(_SUFFIXES)  # "a.wav" would be the file of the id "a"
    )
