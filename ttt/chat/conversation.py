"""A conversation with a model: turns become prompts, settled ids become text and speech.  Knows no terminal.

Letters: ``n`` tokens, ``F`` audio frames, ``Q`` codebooks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ttt.data.encode import encode_example
from ttt.errors import DataError
from ttt.sampling.decoder.decoder import spans_of
from ttt.text.delta import AnswerText
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Prompt, Span, Turn

if TYPE_CHECKING:
    from ttt.sampling.decoder.decoder import Decoder


@dataclass(frozen=True)
class Fit:
    """A prompt that fits, and how many of the oldest turns had to be left out for it."""

    prompt: Prompt
    left_out: int


@dataclass
class Conversation:
    """System message and turns, oldest first.  ``room``: most positions that history and answer may take together.

    ``raw``: no template; the turns are one running text, which the model goes on with.
    """

    tokenizer: TextTokenizer
    room: int
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    raw: bool = False
    asked: int = 0  # questions so far, unanswered and taken-back ones included: names the draws of each answer

    def example(self, turns: Sequence[Turn] | None = None, uid: str = "chat") -> Example:
        """The conversation (or only ``turns`` of it) as an example."""
        turns = self.turns if turns is None else turns
        if self.raw:
            return Example(uid, (Turn("document", tuple(span for turn in turns for span in turn.spans)),), "document")
        system = Turn("system", (Span("text", self.system),) if self.system else ())
        return Example(uid, (system, *turns), "chat")

    def ask(self, question: Turn, max_tokens: int) -> Fit:
        """Append a user turn and give the prompt for its answer, which may take ``max_tokens``.

        When all turns do not fit into ``room``, the oldest exchanges are left out of the prompt (they stay in `turns`).
        Raises `DataError`, and appends nothing, when the question alone does not fit or cannot be encoded.
        """
        turns = [*self.turns, question]
        uid = f"chat/{self.asked}"
        for first in [i for i, t in enumerate(turns) if t.role == "user"]:
            stream = encode_example(self.example(turns[first:], uid), self.tokenizer, open_answer=True)
            if len(stream) + max_tokens <= self.room:
                self.turns, self.asked = turns, self.asked + 1
                return Fit(Prompt.of(stream), first)
        raise DataError(
            f"this turn takes {len(stream)} tokens and its answer up to {max_tokens} (max_tokens), the room is {self.room}: "
            "say less, or /set max_tokens lower"
        )

    def answer(self, ids: Sequence[int]) -> tuple[Span, ...]:
        """Append what the model said; returns its spans as they were (an interrupted one is open)."""
        spans = spans_of(ids, self.tokenizer)
        self.turns.append(Turn("assistant", tuple(_closed(s) for s in spans if s.kind == "text" or _frames(s))))
        return spans

    def take_back(self) -> Turn | None:
        """Forget the last question and what followed it; returns the question, None if there was none."""
        for at in reversed(range(len(self.turns))):
            if self.turns[at].role == "user":
                question = self.turns[at]
                del self.turns[at:]
                return question
        return None

    def tokens(self) -> int:
        """Tokens of system message and turns."""
        return len(encode_example(self.example(), self.tokenizer))


def _frames(span: Span) -> int:
    return 0 if span.codes is None else len(span.codes)


def _closed(span: Span) -> Span:
    """An unfinished span as a finished one: later turns were trained on whole answers only."""
    ends = {"open_span": "span", "open_last": "last"}
    return dataclasses.replace(span, style=ends.get(span.style, span.style)) if span.kind == "audio" else span


@dataclass(frozen=True)
class Piece:
    """Something to show: ``text`` (new characters), ``codes`` (the open span has ``count`` by now), ``span`` (it is over)."""

    kind: str
    text: str = ""
    count: int = 0


class AnswerReader:
    """Settled ids -> pieces, in order.  The pieces' text joined is the answer's text."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer, self.vocab = tokenizer, tokenizer.vocab
        self.ids: list[int] = []
        self._text = AnswerText(tokenizer, self.vocab.rules.text_first)
        self._inside = False
        self._codes = 0

    def push(self, ids: Sequence[int]) -> Iterator[Piece]:
        """What ``ids`` add."""
        v, words, before = self.vocab, "", self._codes
        for token in map(int, ids):
            self.ids.append(token)
            opens = token in (v.soa_id, v.soa_last_id)
            if not (opens or v.is_audio(token)):
                yield from self._close()
                words += self._text.push(token)
                continue
            words += self._text.at_speech()
            if words:
                yield Piece("text", text=words)
                words = ""
            ends = token in (v.eoa_id, v.eoa_last_id)
            if opens or ends:
                yield from self._close()
            self._inside = not ends
            self._codes += int(v.code_start <= token < v.code_stop)
        if words:
            yield Piece("text", text=words)
        if self._inside and self._codes != before:
            yield Piece("codes", count=self._codes)

    def finish(self) -> Iterator[Piece]:
        """A span that was never closed is over; what was held back."""
        yield from self._close()
        words = self._text.finish()
        if words:
            yield Piece("text", text=words)

    def _close(self) -> Iterator[Piece]:
        if self._inside:
            yield Piece("span", count=self._codes)
        self._inside, self._codes = False, 0


def stream_answer(
    decoder: Decoder, prompt: Prompt, reader: AnswerReader, reasons: list[str]
) -> Generator[Piece, None, None]:
    """Pieces of the answer to one prompt as they settle; the reason it stopped is appended to ``reasons``."""
    for event in decoder.events([prompt]):
        if event.kind == "end":
            reasons.append(event.reason)
        yield from reader.push(event.ids)
    yield from reader.finish()
