"""Text that was written elsewhere, as UTF-8.  Every fault is one line: file, line, what is wrong, how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ttt.errors import DataError, TttError

BOM = "\ufeff"


class EncodingFault(ValueError):
    """Bytes that are no UTF-8 text; the message says where and what they may be."""


def decode_text(raw: bytes) -> str:
    """UTF-8 text without a byte order mark at its start.  Raises `EncodingFault`.

    >>> decode_text(b"\\xef\\xbb\\xbfyes")
    'yes'
    """
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:64]:
        raise EncodingFault("not UTF-8 but UTF-16 or UTF-32 (a byte order mark or zero bytes)")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise EncodingFault(f"not UTF-8 at byte {fault.start}{_guess(raw)}") from fault


def read_text(path: str | Path, mend: str, error: type[TttError] = DataError) -> str:
    """A whole text file.  Raises ``error`` saying file, line, reason and ``mend``."""
    return "".join(line for _, line in text_lines(path, mend, error))


def text_lines(path: str | Path, mend: str, error: type[TttError] = DataError) -> Iterator[tuple[int, str]]:
    """(line number, line with its end) of a text file, one at a time; the first without a byte order mark.

    Raises ``error`` saying file, line, reason and ``mend``.
    """
    path = Path(path)
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                try:
                    yield number, decode_text(raw) if number == 1 else _later(raw)
                except EncodingFault as fault:
                    raise error(f"{path}:{number}: {fault}; {mend}") from fault
    except OSError as fault:
        raise error(f"{path}: {why_unreadable(fault)}; {mend}") from fault


def why_unreadable(fault: OSError) -> str:
    """Why a file could not be opened or read, in a few words."""
    return "no such file" if isinstance(fault, FileNotFoundError) else f"cannot be read: {fault.strerror or fault}"


def _later(raw: bytes) -> str:
    text = decode_text(raw)
    return BOM + text if raw.startswith(b"\xef\xbb\xbf") else text  # a mark belongs to the start of a file only


def _guess(raw: bytes) -> str:
    """What bytes that are no UTF-8 may be, for the message.

    >>> _guess("对楼市".encode("gbk")), _guess("café".encode("latin-1"))
    (' (perhaps GBK)', ' (perhaps Latin-1)')
    """
    pairs = sum(1 for a, b in zip(raw, raw[1:], strict=False) if a >= 0x81 and b >= 0x40)
    try:
        known = any("\u4e00" <= c <= "\u9fff" for c in raw.decode("gb18030")) and pairs > 1
    except UnicodeDecodeError:
        known = False
    return " (perhaps GBK)" if known else " (perhaps Latin-1)"
