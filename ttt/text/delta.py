"""Text as it comes, token by token, never half a character."""

from __future__ import annotations

from typing import Protocol

INCOMPLETE = "\ufffd"  # what decoders write for bytes that are no whole character (yet)


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: list[int], /) -> str:
        """Text of ids."""
        ...


class TextStream:
    """The pieces that `push` and `finish` give are, put together, the text of all ids.

    A character whose bytes lie in several tokens comes with the last of them.  Only a few ids are decoded again at each
    push: those since the last but one place where the text was whole, because some tokenizers write a token after
    another one differently than alone (a leading space).

    >>> class Letters:
    ...     def decode(self, ids):
    ...         return bytes(ids).decode("utf-8", errors="replace")
    >>> stream = TextStream(Letters())
    >>> [stream.push(byte) for byte in "né!".encode()] + [stream.finish()]
    ['n', '', 'é', '!', '']
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # from the last but one whole place on
        self._read = 0  # of these, how many have been given out
        self._before = ""  # their text

    def push(self, token_id: int) -> str:
        """Take one id, give the text that is certain by now (possibly none)."""
        self._ids.append(int(token_id))
        now = self._tokenizer.decode(self._ids)
        if len(now) <= len(self._before) or now.endswith(INCOMPLETE):
            return ""
        new = now[len(self._before) :]
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._before = self._tokenizer.decode(self._ids)
        return new

    def finish(self) -> str:
        """What is left: bytes that never became a character.  The stream then begins anew."""
        rest = self._tokenizer.decode(self._ids)[len(self._before) :]
        self._ids, self._read, self._before = [], 0, ""
        return rest
