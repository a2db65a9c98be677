"""Text with holes, ``The [MASK:2] of France is [MASK:1].``: whole-answer samplers fill each with so many tokens (in-filling).

The holes stand in the last turn of an example, an assistant's or a document's.  What precedes a document's first hole is its
prompt.  The pieces between holes are tokenized one by one.
"""

from __future__ import annotations

import dataclasses
import re

from ttt.data.read.prompts import WHOLE, prompt_of
from ttt.errors import ConfigError, DataError
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Prompt, Span, Turn, written_text

HOLE = re.compile(r"\[MASK:([0-9]{1,6})\]")
_NO_HOLE = re.compile(rf"(?!{HOLE.pattern})\[MASK:[^\]]*\]?")


def pieces_of(text: str, where: str) -> list[str | int]:
    """Texts and sizes of holes, in order; empty texts are left out.  Raises `DataError` for a hole of no token.

    >>> pieces_of("A [MASK:2] sat[MASK:1]", "here")
    ['A ', 2, ' sat', 1]
    """
    found: list[str | int] = []
    for number, part in enumerate(HOLE.split(text)):
        if number % 2 and not int(part):
            raise DataError(f"{where}: [MASK:0] has no token to fill; give the number of its tokens")
        found += [int(part)] if number % 2 else [part] if part else []
    return found


def has_holes(example: Example) -> bool:
    """Does the last turn, which is an answer or a document, have holes?  Raises `DataError` for a hole spelled wrongly."""
    last = example.turns[-1]
    texts = [s.text for s in last.spans if s.kind == "text"] if last.role in ("assistant", "document") else []
    if wrong := next((found[0] for t in texts if (found := _NO_HOLE.search(t))), ""):
        raise DataError(f"example {example.uid!r}: {wrong} is no hole; write [MASK:n], n being the number of its tokens")
    return any(HOLE.search(t) for t in texts)


def prompt_with_holes(example: Example, asked: Example, tokenizer: TextTokenizer, uid: str = "") -> Prompt:
    """The prompt of ``asked``, the example without its answer, together with what is given of the answer.

    Raises `DataError` for holes beside speech and for a document that begins with a hole, `ConfigError` for a vocabulary
    without a mask token.
    """
    if not has_holes(example):
        return prompt_of(asked, tokenizer, uid)
    where, last, vocab = f"example {example.uid!r}", example.turns[-1], tokenizer.vocab
    if vocab.mask_id < 0:
        raise ConfigError(f"{where}: has holes to fill, but this vocabulary has no mask token; use a model of masked diffusion")
    if any(span.kind != "text" for span in last.spans):
        raise DataError(f"{where}: holes are filled in text without speech; take the speech out of that turn")
    pieces = pieces_of(written_text(last.spans), where)
    document = last.role == "document"
    if document:
        before = pieces.pop(0)
        if not isinstance(before, str):
            raise DataError(f"{where}: a document that begins with a hole has no prompt; put some text before it")
        first = Turn("document", (Span("text", before),))
        asked = dataclasses.replace(example, turns=(first,), meta={**example.meta, WHOLE: True})
    known: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            known += [vocab.mask_id] * piece
            continue
        tokenizer.refuse_specials(piece, where)
        known += tokenizer.encode(piece)
    prompt = prompt_of(asked, tokenizer, uid)
    return dataclasses.replace(prompt, known=known if document else [*known, vocab.im_end_id])


def filled(prompt: Prompt, ids: list[int], tokenizer: TextTokenizer) -> list[str]:
    """What an answer ``ids`` has in each hole of its prompt; holes that follow each other without text are one."""
    texts: list[str] = []
    begun: list[int] = []
    mask_id = tokenizer.vocab.mask_id
    for given, token in zip([*prompt.known, -1], [*ids, -1], strict=False):
        if given == mask_id:
            begun.append(token)
        elif begun:
            texts.append(tokenizer.decode(begun))
            begun = []
    return texts
