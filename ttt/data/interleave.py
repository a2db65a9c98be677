"""Answers of text and codes, chunk by chunk (spec of TtT, section 2.3)."""

from __future__ import annotations

import numpy as np

from ttt.types import Span


def interleave(words: list[str], codes: np.ndarray, text_chunk: int, audio_chunk: int) -> tuple[Span, ...]:
    """Spans of an answer: chunks of ``text_chunk`` words and ``audio_chunk`` codes, then the rest with a quad span.

    Like the official data, chunks are cut while more than ``text_chunk`` text units and any audio remain.  ``text_chunk``
    counts words here; 0 puts all text first.

    >>> spans = interleave(["a", "b", "c"], np.zeros((5, 1), dtype=np.int32), 2, 2)
    >>> [(s.text or len(s.codes), s.style) for s in spans]
    [('a b', 'span'), (2, 'span'), (' c', 'span'), (3, 'last')]
    """
    spans: list[Span] = []
    at = 0
    glue = ""
    while text_chunk and len(words) > text_chunk and len(codes) - at > audio_chunk:
        spans.append(Span("text", glue + " ".join(words[:text_chunk])))
        spans.append(Span("audio", codes=codes[at : at + audio_chunk], style="span"))
        words, at, glue = words[text_chunk:], at + audio_chunk, " "
    if words:
        spans.append(Span("text", glue + " ".join(words)))
    if len(codes) - at:
        spans.append(Span("audio", codes=codes[at:], style="last"))
    return tuple(spans)
