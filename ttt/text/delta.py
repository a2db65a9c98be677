"""Decoding text incrementally, token by token, without splitting characters."""

from __future__ import annotations

from typing import Protocol

INCOMPLETE = "\ufffd"  # what decoders write for bytes that are no whole character (yet)


class Decodes(Protocol):
    """The part of a tokenizer that `TextStream` needs."""

    def decode(self, ids: list[int], /) -> str:
        """Text of ids."""
        ...


class TextStream:
    """Incremental decoder: the concatenation of all results of `push` and `finish` is the text of all ids.

    A character whose bytes are spread over several tokens is returned with the last of them.  Each push decodes only
    the ids since the second-last position at which all characters were complete: some tokenizers decode a token
    differently after another one than alone (a leading space).

    >>> class Letters:
    ...     def decode(self, ids):
    ...         return bytes(ids).decode("utf-8", errors="replace")
    >>> stream = TextStream(Letters())
    >>> [stream.push(byte) for byte in "né!".encode()] + [stream.finish()]
    ['n', '', 'é', '!', '']
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # since the second-last position with complete characters
        self._read = 0  # number of these whose text was returned
        self._before = ""  # the text of these

    def push(self, token_id: int) -> str:
        """Take one id, return the text that is now complete (possibly none)."""
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
        """Return what is left (bytes that never became a character) and reset the stream."""
        rest = self._tokenizer.decode(self._ids)[len(self._before) :]
        self._ids, self._read, self._before = [], 0, ""
        return rest


class AnswerText(TextStream):
    """`TextStream` of an answer that alternates between text and speech.

    Bytes of a character that speech cuts in two wait for the text behind it.  Where all text comes before the speech
    (``text_first``) nothing can follow, and they are returned as they are.
    """

    def __init__(self, tokenizer: Decodes, text_first: bool) -> None:
        super().__init__(tokenizer)
        self._text_first = text_first

    def at_speech(self) -> str:
        """Speech begins: the text that will not grow any more."""
        return self.finish() if self._text_first else ""
