"""Token ids of an answer as spans of text and of audio codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttt.text.tokenizer import TextTokenizer
from ttt.types import Span


def spans_of(ids: Sequence[int], tokenizer: TextTokenizer) -> tuple[Span, ...]:
    """New ids as spans: text (special tokens left out) and the codes between an opening and an end token."""
    v = tokenizer.vocab
    spans: list[Span] = []
    text: list[int] = []
    codes: list[int] | None = None
    last = False

    def flush_text() -> None:
        if text:
            written = tokenizer.decode(text)
            if written:
                spans.append(Span("text", written))
            text.clear()

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
            text.append(token)
    flush_text()
    flush_codes("open_last" if last else "open_span")
    return tuple(spans)
