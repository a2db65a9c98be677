"""ChatML by pieces: turns -> pieces that are tokenized on their own and concatenated (spec of TtT, section 3).

    <|im_start|> "system" "\\n" message <|im_end|> "\\n"      always present, possibly empty
    <|im_start|> role "\\n" content <|im_end|> "\\n"          for each user and assistant turn

Only an assistant's content, its ``<|im_end|>`` and the newline after it are targets.  A turn whose last span is open
(truncated) ends there.  Documents have no template: every token is a target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ttt.errors import DataError
from ttt.types import Example, Span, Turn

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class Piece:
    """One stretch to tokenize: template text, or a span of the data.  ``turn`` is -1 for the template's system block."""

    span: Span
    target: bool
    template: bool
    turn: int
    role: str


def pieces(example: Example, open_answer: bool = False) -> Iterator[Piece]:
    """Pieces of an example in order.  ``open_answer``: end with the assistant header, as a prompt for decoding."""
    turns = list(example.turns)
    if turns[0].role == "document":
        if len(turns) > 1:
            raise DataError(f"example {example.uid!r}: a document has one turn, got {len(turns)}")
        for span in turns[0].spans:
            yield Piece(span, target=True, template=False, turn=0, role="document")
        return
    system = turns.pop(0) if turns[0].role == "system" else Turn("system", ())
    yield from _block(system, -1)
    for number, turn in enumerate(turns):
        if turn.role not in ("user", "assistant"):
            raise DataError(f"example {example.uid!r}: role {turn.role!r} after the first turn; roles: user, assistant")
        yield from _block(turn, number)
    if open_answer:
        yield from _header("assistant", len(turns))


def _block(turn: Turn, number: int) -> Iterator[Piece]:
    yield from _header(turn.role, number)
    for span in turn.spans:
        yield Piece(span, turn.is_target, False, number, turn.role)
    if not (turn.spans and turn.spans[-1].kind == "audio" and turn.spans[-1].style.startswith("open")):
        for text in (IM_END, "\n"):
            yield Piece(Span("text", text), turn.is_target, True, number, turn.role)


def _header(role: str, number: int) -> Iterator[Piece]:
    for text in (IM_START, role, "\n"):
        yield Piece(Span("text", text), False, True, number, role)
