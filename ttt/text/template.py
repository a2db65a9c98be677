"""Chat templates: turns -> pieces that are tokenized one by one and concatenated.

ChatML, as TtT's official data preparation writes it (arXiv 2509.20072):

    <|im_start|> "system" "\\n" message <|im_end|> "\\n"      always present, possibly empty
    <|im_start|> role "\\n" content <|im_end|> "\\n"          for each user and assistant turn

Only an assistant's content, its ``<|im_end|>`` and the newline after it are targets.  A turn whose last span is open
(truncated) ends there.  Documents have no template: every token is a target.  `ttt.text.forms` holds the templates of
other forms, among them those of SLAM-Omni (arXiv 2412.15649); the bar shows where targets begin:

    text_then_speech         ... assistant "\\n" | THOUGHT text codes <|im_end|>
    text_then_speech_tags    ... assistant "\\n" THOUGHT | <text> text </text> <speech> codes </speech> <|im_end|>
    THOUGHT                  <think> "\\n\\n" </think> "\\n\\n"

and of LLaDA (arXiv 2502.09992; a system turn only if there is a message):

    headers                  <|startoftext|>, then <|start_header_id|> "user" <|end_header_id|> "\\n\\n" content <|eot_id|> ...
    roles                    <|user|> "\\n" content <|endoftext|> <|assistant|> "\\n" | content <|endoftext|>
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ttt.errors import DataError
from ttt.types import Example, Span, Turn

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
NO_THOUGHT = ("<think>", "\n\n", "</think>", "\n\n")  # what Qwen3's template writes with thinking off


@dataclass(frozen=True)
class Piece:
    """One piece to tokenize: text of the template, or a span of the data.  ``turn`` is -1 for the template's system block."""

    span: Span
    target: bool
    template: bool
    turn: int
    role: str


@dataclass(frozen=True)
class Template:
    """The marks around the content of turns.

    ``empty_system``: write a system block even if there is no message.  ``thought``: whether an empty thought stands
    before the last answer, unless that brings its own: "prompt": yes, as part of the prompt; "answer": yes, as a training
    target (decoding still puts it into the prompt); "": no.  ``tags``: around each text of an answer.  ``last_newline``: a
    newline behind the last ``<|im_end|>``.  ``frames``: role -> marks before and behind a turn, for templates other than
    ChatML; roles it lacks are refused.  ``begin``: marks before the first turn of a chat.
    """

    empty_system: bool = True
    thought: str = ""
    tags: tuple[str, str] | None = None
    last_newline: bool = True
    begin: tuple[str, ...] = ()
    frames: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None

    def header(self, role: str) -> Sequence[str]:
        """Marks before the content of a turn."""
        return (IM_START, role, "\n") if self.frames is None else self.frames[role][0]

    def end(self, role: str, last: bool) -> Sequence[str]:
        """Marks behind the content of a turn; ``last``: of the example."""
        if self.frames is not None:
            return self.frames[role][1]
        return (IM_END,) if last and not self.last_newline else (IM_END, "\n")


CHATML = Template()


def pieces(example: Example, open_answer: bool = False, template: Template = CHATML) -> Iterator[Piece]:
    """Pieces of an example in order.  ``open_answer``: end with the assistant header, as a prompt for decoding."""
    turns = list(example.turns)
    if turns[0].role == "document":
        if len(turns) > 1:
            raise DataError(f"example {example.uid!r}: a document has one turn, got {len(turns)}")
        for span in turns[0].spans:
            yield Piece(span, target=True, template=False, turn=0, role="document")
        return
    yield from _marks(template.begin, False, -1, "system")
    system = turns.pop(0) if turns[0].role == "system" else Turn("system", ())
    if template.empty_system or any(span.text or span.codes is not None for span in system.spans):
        if template.frames is not None and "system" not in template.frames:
            raise DataError(
                f"example {example.uid!r}: this vocabulary's template has no place for a system message; leave it out (of a "
                "task: system: '')"
            )
        yield from _block(system, -1, template, last=False)
    for number, turn in enumerate(turns):
        if turn.role not in ("user", "assistant"):
            raise DataError(f"example {example.uid!r}: role {turn.role!r} after the first turn; roles: user, assistant")
        yield from _block(turn, number, template, last=number == len(turns) - 1 and not open_answer)
    if open_answer:
        yield from _header("assistant", len(turns), template)
        if template.thought:
            yield from _marks(NO_THOUGHT, False, len(turns), "assistant")


def _block(turn: Turn, number: int, template: Template, last: bool) -> Iterator[Piece]:
    target = turn.is_target
    yield from _header(turn.role, number, template)
    if template.thought and target and last and not _thinks(turn):
        yield from _marks(NO_THOUGHT, template.thought == "answer", number, turn.role)
    for span in turn.spans:
        tags = template.tags if target and span.kind == "text" else None
        yield from _marks(tags[:1] if tags else (), target, number, turn.role)
        yield Piece(span, target, False, number, turn.role)
        yield from _marks(tags[1:] if tags else (), target, number, turn.role)
    if not (turn.spans and turn.spans[-1].kind == "audio" and turn.spans[-1].style.startswith("open")):
        yield from _marks(template.end(turn.role, last), target, number, turn.role)


def _thinks(turn: Turn) -> bool:
    """Does an answer bring its own thought?"""
    return bool(turn.spans) and turn.spans[0].text.lstrip().startswith(NO_THOUGHT[0])


def _header(role: str, number: int, template: Template) -> Iterator[Piece]:
    yield from _marks(template.header(role), False, number, role)


def _marks(texts: Sequence[str], target: bool, number: int, role: str) -> Iterator[Piece]:
    for text in texts:
        yield Piece(Span("text", text), target, True, number, role)
