"""Benchmark strings -> tokens as training made them, and chats -> strings.

Training tokenizes ChatML by pieces (`ttt.text.template`); a benchmark hands over one string.  The marks of the template are
cut out again before tokenizing, so both give the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttt.errors import DataError
from ttt.text.special_tokens import MULTIMODAL_SPECIALS
from ttt.text.template import IM_END, IM_START, Template

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.text.tokenizer import TextTokenizer

VOCABULARIES = ("text", "full")
TEMPLATES = ("ttt", "qwen3")
_NO_THOUGHT = "<think>\n\n</think>\n\n"
_CHATML = re.compile(r"(<\|im_start\|>)(system|user|assistant)(\n)|(<\|im_end\|>)(\n?)|(<think>)(\n\n)(</think>)(\n\n)")


@dataclass(frozen=True)
class Pair:
    """Token ids: ``target`` is scored given ``context`` (at least one token each); ``cut``: context tokens left out."""

    context: tuple[int, ...]
    target: tuple[int, ...]
    cut: int = 0


def _marks(tokenizer: TextTokenizer) -> re.Pattern[str]:
    """What stands around turns in the tokenizer's template; its groups are the pieces that are tokenized alone."""
    frames = tokenizer.template.frames
    if frames is None:
        return _CHATML
    around = dict.fromkeys(tuple(part) for frame in frames.values() for part in frame)
    return re.compile("|".join("".join(f"({re.escape(piece)})" for piece in part) for part in around))


def encode(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a string; the marks of the template are pieces of their own, as in training."""
    ids: list[int] = []
    at = 0
    for mark in _marks(tokenizer).finditer(text):
        for piece in (text[at : mark.start()], *mark.groups()):
            if piece:
                ids += tokenizer.encode(piece)
        at = mark.end()
    return ids + (tokenizer.encode(text[at:]) if text[at:] else [])


def encode_pair(tokenizer: TextTokenizer, context: str, continuation: str, max_length: int) -> Pair:
    """Ids of a continuation and of what it continues.

    White space at the end of ``context`` moves to the continuation, unless it belongs to a template's mark.  Both are
    tokenized together, and the continuation is what lies behind the context's own tokens (the harness's convention).  An
    empty context is a document's beginning: one padding token.  The network reads all tokens but the last, at most
    ``max_length``: what is too much goes from the context's left end.  Raises `DataError` for a continuation that is
    empty, or too long by itself.
    """
    if not continuation:
        raise DataError(
            f"a continuation is empty (context ends with {context[-40:]!r}); mend the task's choices or target"
        )
    marks = list(_marks(tokenizer).finditer(context))
    fixed = marks[-1].end() if marks else 0
    stem = context[:fixed] + context[fixed:].rstrip()
    continuation = context[len(stem) :] + continuation
    before = encode(tokenizer, stem)
    target = encode(tokenizer, stem + continuation)[len(before) :] or encode(tokenizer, continuation)
    room = max_length + 1 - len(target)
    if room < 1:
        raise DataError(
            f"a continuation has {len(target)} tokens, the longest row {max_length}: {continuation[:40]!r}; raise --max-length"
        )
    before = before or [tokenizer.vocab.pad_id]
    return Pair(tuple(before[-room:]), tuple(target), max(0, len(before) - room))


def windows(ids: Sequence[int], prefix: int, max_length: int) -> list[Pair]:
    """A long text as pairs that predict every token once, the last of them with all the context there is room for.

    >>> [(p.context, p.target) for p in windows([1, 2, 3, 4, 5], 0, 3)]
    [((0,), (1, 2, 3)), ((2, 3), (4, 5))]
    """
    row = [prefix, *ids]
    found = []
    for start in range(0, len(ids), max_length):
        stop = min(len(ids), start + max_length)
        begin = 0 if start == 0 else stop - max_length  # the network reads row[begin:stop]
        found.append(Pair(tuple(row[begin : start + 1]), tuple(row[start + 1 : stop + 1])))
    return found


def chat_text(
    tokenizer: TextTokenizer, history: Sequence[Mapping[str, str]], template: str, open_answer: bool = True
) -> str:
    """A chat as one string.  ``open_answer``: ends with the assistant's header; False: the last turn stays unfinished.

    ``ttt``: the toolkit's own template, with a system block even when it is empty.  ``qwen3``: Qwen3's with thinking off (no
    empty system block; an empty thought behind the header).  Raises `DataError` when a message spells a special token.
    """
    turns = [(str(m["role"]), str(m["content"])) for m in history]
    for number, (role, content) in enumerate(turns):
        if role not in ("system", "user", "assistant"):
            raise DataError(f"message {number}: role {role!r} is none of system, user, assistant")
        tokenizer.refuse_specials(content, f"message {number} ({role})")
    if tokenizer.template.frames is not None:
        return _framed(tokenizer.template, turns, open_answer)
    if template == "ttt" and (not turns or turns[0][0] != "system"):
        turns.insert(0, ("system", ""))
    text = "".join(f"{IM_START}{role}\n{content}{IM_END}\n" for role, content in turns)
    if not open_answer:
        return text.removesuffix(f"{IM_END}\n")
    return text + f"{IM_START}assistant\n" + (_NO_THOUGHT if template == "qwen3" else "")


def _framed(template: Template, turns: Sequence[tuple[str, str]], open_answer: bool) -> str:
    """A chat in a template that is not ChatML; empty system messages are left out where it has no place for them."""
    assert template.frames is not None
    kept = [(role, content) for role, content in turns if content or role in template.frames]
    for number, (role, _) in enumerate(kept):
        if role not in template.frames:
            raise DataError(f"message {number}: this model's template has no place for a {role} message; leave it out")
    text = "".join("".join((*template.header(r), content, *template.end(r, False))) for r, content in kept)
    if open_answer:
        return text + "".join(template.header("assistant"))
    return text.removesuffix("".join(template.end(kept[-1][0], False))) if kept else text


def vocabulary(tokenizer: TextTokenizer, rows: int, which: str) -> Tensor:
    """bool [rows]: ids that probability is spread over.

    ``text``: what text consists of, so neither codes nor the delimiters and place holders of other modalities; ``full``: every row
    of the table.
    """
    import torch

    if which == "full":
        return torch.ones(rows, dtype=torch.bool)
    allowed = torch.arange(rows) < tokenizer.vocab.text_vocab
    allowed[[*tokenizer.vocab.rules.not_text(tokenizer.vocab)]] = False
    named = [tokenizer.backend.token_to_id(name) for name in MULTIMODAL_SPECIALS]
    allowed[[i for i in named if i is not None]] = False
    return allowed
