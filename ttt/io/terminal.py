"""What reaches a terminal: texts that came with data (ids, words, file names) are never commands to it."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

# Control characters but line feed and tab; halves of surrogate pairs, which no encoding can write; marks that turn the
# direction of what follows.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text that a terminal cannot take for commands: control characters but line feed and tab are spelled out.

    >>> visible("a" + chr(27) + "[2J b")
    'a\\\\u001b[2J b'
    """
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


STDOUT = "standard output"


class GuardedOutput:
    """A text stream that writes `visible` text only; ``unguarded``: the stream itself, for codes of our own."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """Write `visible` of a text."""
        with naming_stdout():
            return self.unguarded.write(visible(text))

    def flush(self) -> None:
        """Hand everything to the system."""
        with naming_stdout():
            self.unguarded.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


@contextlib.contextmanager
def naming_stdout() -> Iterator[None]:
    """Errors inside name standard output (``> /dev/full``)."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        error.filename = STDOUT
        raise


def own_codes(stream: TextIO) -> TextIO:
    """The stream to which a verb may write colors and movements; what comes from data must be made `visible` first."""
    return getattr(stream, "unguarded", stream)


@contextlib.contextmanager
def guarded_stdout() -> Iterator[None]:
    """Standard output writes visible text only, and spells out what its encoding has no characters for."""
    before = sys.stdout
    if before is None:  # started without one
        yield
        return
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    guarded = GuardedOutput(own_codes(before))
    sys.stdout = guarded  # type: ignore[assignment]
    try:
        yield
    finally:
        if sys.stdout is guarded or sys.stdout is None:
            sys.stdout = before


class VisibleFormatter(logging.Formatter):
    """Log lines as `visible` text."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        return visible(super().format(record))
