"""What a chat writes and reads: a terminal, or a pipe that reads as a conversation."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from ttt.io.terminal import visible

Read = Callable[[], "str | None"]


class Screen:
    """What is written, and how: counters are rewritten in place and colours used on a terminal only."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.live = out.isatty()
        self._colour = self.live and "NO_COLOR" not in os.environ
        self._counter = ""
        self._last = "\n"

    def write(self, text: str) -> None:
        """Text, `visible`."""
        self._write(visible(text))

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
        self._last = text[-1:] or self._last

    def gap(self) -> None:
        """A blank, unless there is one."""
        if not self._last.isspace():
            self.write(" ")

    def line(self, text: str = "") -> None:
        """A whole line."""
        self.write(text + "\n")

    def note(self, text: str) -> None:
        """A line that neither side of the conversation said."""
        self._write(f"\x1b[2m{visible(text)}\x1b[0m\n" if self._colour else f"{visible(text)}\n")

    def counter(self, text: str, final: bool = False) -> None:
        """A number that grows: in place on a terminal, else only its last state."""
        if not self.live and not final:
            return
        if not self._counter:
            self.gap()
        back = "\b" * len(self._counter)
        self._write(back + visible(text) + " " * max(0, len(self._counter) - len(text)))
        self._counter = "" if final else text


def terminal() -> Read:
    """Lines typed at a terminal, with editing where the platform has it; None at the end of input."""
    try:
        import readline  # noqa: F401  (importing it gives `input` line editing)
    except ImportError:
        pass

    def read() -> str | None:
        try:
            return input("you> ")
        except EOFError:
            print()
            return None

    return read


def piped(screen: Screen) -> Read:
    """Lines of standard input, echoed so that the output reads as a conversation."""

    def read() -> str | None:
        raw = sys.stdin.buffer.readline()
        if not raw:
            return None
        try:
            text = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            screen.note("chat: a line of the input is not UTF-8 and is left out")
            return ""
        if text.strip():
            screen.line(f"you> {text}")
        return text

    return read


def first_word(text: str) -> tuple[str, str]:
    """A path, which may stand in quotes, and what follows it.

    A path without quotes ends at the last blank where it names a file, so it may hold blanks itself; else at the first one.

    >>> first_word("'my file.wav' what's this"), first_word("a.wav"), first_word("")
    (('my file.wav', "what's this"), ('a.wav', ''), ('', ''))
    """
    text = text.strip()
    quote = text[:1]
    if quote and quote in "'\"" and quote in text[1:]:
        path, _, rest = text[1:].partition(quote)
    else:
        path, rest = _longest_file(text)
    return path, rest.strip()


def _longest_file(text: str) -> tuple[str, str]:
    ends = [len(text), *(i for i in range(len(text) - 1, 0, -1) if text[i].isspace())]
    for end in ends:
        for path in (text[:end], text[:end].replace("\\ ", " ")):  # as a shell spells blanks
            with contextlib.suppress(OSError, ValueError):
                if Path(path).is_file():
                    return path, text[end:]
    path, _, rest = text.partition(" ")
    return path, rest
