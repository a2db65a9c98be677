"""Token ids of an answer as spans of text and of audio codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttt.text.delta import AnswerText
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Span


def spans_of(ids: Sequence[int], tokenizer: TextTokenizer) -> tuple[Span, ...]:
    """New ids as spans: text (special tokens left out) and the codes between an opening and an end token.

    The texts put together (`ttt.types.written_text`) are what the tokenizer decodes all text ids to in one go.  A character
    whose bytes lie in several spans belongs to the span in which it is completed; bytes that never become a character stand
    at the end (`ttt.text.delta.AnswerText`).
    """
    v = tokenizer.vocab
    spans: list[Span] = []
    decoded = AnswerText(tokenizer, v.rules.text_first)
    text = ""
    codes: list[int] | None = None
    last = False

    def flush_text() -> None:
        nonlocal text
        text += decoded.at_speech()
        if text:
            spans.append(Span("text", text))
            text = ""

    def flush_codes(style: str) -> None:
        nonlocal codes
        if codes is not None:
            spans.append(Span("audio", codes=v.codes(np.asarray(codes)), style=style))
            codes = None

    for token in ids:
        if token in (v.soa_id, v.soa_last_id):
            flush_text()
            flush_codes("open_last" if last else "open_span")
            codes, last = [], token == v.soa_last_id
        elif token in (v.eoa_id, v.eoa_last_id):
            flush_codes("last" if token == v.eoa_last_id else "span")
        elif v.is_audio(token):
            if codes is None:  # nothing opened a span: only models that may write anything do this
                flush_text()
                codes = []
            codes.append(token)
        else:
            flush_codes("open_last" if last else "open_span")
            text += decoded.push(token)
    flush_codes("open_last" if last else "open_span")
    text += decoded.finish()
    flush_text()
    return tuple(spans)
