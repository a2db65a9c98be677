"""Example -> `TokenStream`: ids, kinds (text or audio), audio runs and targets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ttt.config.schema import PromptRule
from ttt.errors import DataError
from ttt.text.template import pieces
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Kind, Segment, TokenStream, audio_runs


def encode_example(
    example: Example,
    tokenizer: TextTokenizer,
    *,
    open_answer: bool = False,
    prompt_rule: PromptRule = "labels",
    literal_specials: bool = False,
) -> TokenStream:
    """Tokens of one example.

    ``open_answer``: a prompt for decoding (ends with the assistant header).  ``prompt_rule``: which tokens diffusion
    may mask. ``labels``: targets.  ``official``: positions from ``prompt_length`` on, the length of the system block
    and all user turns, as in TtT's official preprocessing; with several turns that is not where the answers are.
    A preference pair becomes one stream of two documents (`TokenStream.rejected`).
    ``literal_specials``: ordinary text may spell special tokens, as in that program; otherwise that is a `DataError`.
    """
    if example.rejected is not None:
        turns = [example.turns, (*example.turns[:-1], example.rejected)][: 1 if open_answer else 2]
        answers = [
            encode_example(
                dataclasses.replace(example, turns=t, rejected=None), tokenizer, open_answer=open_answer,
                prompt_rule=prompt_rule, literal_specials=literal_specials,
            )
            for t in turns
        ]  # fmt: skip
        return answers[0] if open_answer else _pair(answers[0], answers[1], len(example.turns))
    vocab = tokenizer.vocab
    ids: list[int] = []
    target: list[bool] = []
    turn_of: list[int] = []
    content: list[bool] = []
    segments: list[dict[str, Any]] = []
    prompt_length = 0
    for piece in pieces(example, open_answer, tokenizer.template):
        span = piece.span
        where = f"example {example.uid!r}, {piece.role} turn"
        if span.kind == "text":
            if not piece.template and not literal_specials:
                tokenizer.refuse_specials(span.text, where)
            new = _template_ids(tokenizer, span.text) if piece.template else tokenizer.encode(span.text)
        else:
            assert span.codes is not None
            codes = vocab.code_ids(span.codes, where)
            opener, closer = vocab.opener(span.style), vocab.closer(span.style)
            new = [*([] if opener is None else [opener]), *codes.tolist(), *([] if closer is None else [closer])]
            start = len(ids) + (opener is not None)
            style = span.style
            if closer is None and not style.startswith("open"):  # this form of the vocabulary does not end spans
                style = "open_last" if style == "last" else "open_span"
            segments.append(
                {
                    "start": start,
                    "stop": start + len(codes),
                    "style": style,
                    "turn": piece.turn,
                    "target": piece.target,
                }
            )
        ids.extend(new)
        target.extend([piece.target] * len(new))
        turn_of.extend([piece.turn] * len(new))
        content.extend([not piece.template] * len(new))
        if piece.role in ("system", "user"):
            prompt_length += len(new)
    if not ids:
        raise DataError(f"example {example.uid!r} has no tokens")
    ids_array = np.asarray(ids, dtype=np.int64)
    kind = np.where(vocab.is_audio(ids_array), Kind.AUDIO, Kind.TEXT).astype(np.uint8)
    target_array = np.asarray(target, dtype=bool)
    if prompt_rule == "labels":
        noisable = target_array.copy()
    else:
        noisable = np.arange(len(ids)) >= prompt_length
    turn_stops = {t: i + 1 for i, t in enumerate(turn_of)}
    return TokenStream(
        uid=example.uid, ids=ids_array, kind=kind, run_id=audio_runs(kind), target=target_array, noisable=noisable,
        segments=tuple(Segment(turn_stop=turn_stops[s["turn"]], **s) for s in segments),
        task=example.task, prompt_length=prompt_length, voice=_voice(example),
        content=np.asarray(content, dtype=bool) if open_answer else None,
    )  # fmt: skip


def _voice(example: Example) -> np.ndarray | None:
    """The example's ``voice_vector`` f32 [E].  Raises `DataError` for what is no list of finite numbers."""
    given = example.meta.get("voice_vector")
    if given is None:
        return None
    try:
        vector = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        vector = np.zeros(0, dtype=np.float32)
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise DataError(
            f"example {example.uid!r}: voice_vector must be a list of finite numbers, got {str(given)[:40]}; mend or drop it"
        )
    return vector


def _pair(chosen: TokenStream, rejected: TokenStream, turns: int) -> TokenStream:
    """Both answers of a prompt of ``turns`` turns, each with its own copy of the prompt, as one stream."""
    n = len(chosen)
    moved = (
        dataclasses.replace(s, start=s.start + n, stop=s.stop + n, turn=s.turn + turns, turn_stop=s.turn_stop + n)
        for s in rejected.segments
    )
    both = np.concatenate
    kind = both([chosen.kind, rejected.kind])
    return dataclasses.replace(
        chosen, ids=both([chosen.ids, rejected.ids]), kind=kind, run_id=audio_runs(kind),
        target=both([chosen.target, rejected.target]), noisable=both([chosen.noisable, rejected.noisable]),
        segments=(*chosen.segments, *moved), rejected=n,
    )  # fmt: skip


def _template_ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    cache = tokenizer.__dict__.setdefault("_template_cache", {})
    if text not in cache:
        cache[text] = tokenizer.encode(text)
    return cache[text]
