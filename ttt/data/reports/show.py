"""One training example as text, with the borders between tokens that carry loss and tokens that do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttt.config.schema import PromptRule
from ttt.data.read.records import raw_records
from ttt.data.read.token_ids import stream_of
from ttt.data.sources.mix import check_store, sources_of
from ttt.data.sources.store import Store, is_store
from ttt.io.terminal import visible
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Kind, TokenStream

AROUND = 3  # tokens shown on each side of a border
CODES = (8, 4)  # codes shown of a span: the first, the last
DIM, LEARNED = "\x1b[2m", "\x1b[32m"


@dataclass(frozen=True)
class Stretch:
    """Tokens [start, stop) that all carry loss (``learned``) or all do not."""

    start: int
    stop: int
    learned: bool


def stretches(stream: TokenStream) -> list[Stretch]:
    """The stream as alternating stretches with and without loss."""
    edges = np.flatnonzero(np.diff(stream.target.astype(np.int8))) + 1
    cuts = [0, *edges.tolist(), len(stream)]
    return [Stretch(a, b, bool(stream.target[a])) for a, b in zip(cuts, cuts[1:], strict=False)]


def faults(stream: TokenStream, tokenizer: TextTokenizer) -> list[str]:
    """Problems of an example as training data; none for a good one."""
    vocab = tokenizer.vocab
    problems: list[str] = []
    if stream.target.all():  # a document: no prompt, and no end
        return problems
    if not stream.target.any():
        problems.append("nothing is learned")
    elif stream.target[0]:
        problems.append("the first token is learned: there is no prompt")
    if stream.target.any() and not stream.target[-1]:
        problems.append("the last token is not learned")
    if vocab.im_end_id not in stream.ids[-2:]:
        problems.append(f"does not end with {tokenizer.token(vocab.im_end_id)}: the model never learns to stop")
    answers = [s for s in stream.segments if s.target]
    if vocab.rules.text_first and answers:
        words = _words(stream, tokenizer)
        if not words[: answers[0].start].any():
            problems.append("speech comes before the answer's text")
        if words[answers[0].start :].any():
            problems.append("text comes behind speech")
    if any(s.start == s.stop for s in stream.segments):
        problems.append("an audio span is empty")
    return problems


def _words(stream: TokenStream, tokenizer: TextTokenizer) -> np.ndarray:
    """bool [n]: learned text that is no special token of the vocabulary."""
    vocab = tokenizer.vocab
    marks = (*vocab.modality_tokens.values(), vocab.im_end_id, vocab.im_start_id)
    words = stream.target & (stream.kind == Kind.TEXT) & ~np.isin(stream.ids, [*marks, *tokenizer.thought_ids])
    blank = np.fromiter(
        (words[i] and not tokenizer.decode([i_]).strip() for i, i_ in enumerate(stream.ids)), bool, len(words)
    )
    return words & ~blank


def page(stream: TokenStream, tokenizer: TextTokenizer, color: bool = False) -> str:
    """The example as text, one line a stretch, then the tokens around each border."""
    vocab = tokenizer.vocab
    codes = sum(s.stop - s.start for s in stream.segments)
    rate = vocab.frame_rate_hz * vocab.num_codebooks
    speech = f"; {codes} codes" + (f" = {codes / rate:.2f} s" if rate else "") if stream.segments else ""
    task = f" (task {stream.task})" if stream.task else ""
    lines = [f"{visible(stream.uid)}{visible(task)}: {len(stream)} tokens, {int(stream.target.sum())} learned{speech}"]
    parts = stretches(stream)
    width = len(str(len(stream)))
    for part in parts:
        text = "".join(_spelled(stream, tokenizer, part))
        if color:
            text = f"{LEARNED if part.learned else DIM}{text}\x1b[0m"
        lines.append(
            f"  {'learned' if part.learned else 'masked':7} {part.start:{width}} .. {part.stop - 1:{width}}  {text}"
        )
    for part in parts[1:]:
        lines.append(f"  border at {part.start}: from here tokens are {'learned' if part.learned else 'masked'}")
        for i in range(max(0, part.start - AROUND), min(len(stream), part.start + AROUND)):
            label = int(stream.ids[i]) if stream.target[i] else -100
            lines.append(
                f"    {i:{width}}  id {int(stream.ids[i]):6}  label {label:6}  {_visible(_token(stream, tokenizer, i))}"
            )
    lines += [f"  odd: {visible(fault)}" for fault in faults(stream, tokenizer)]
    return "\n".join(lines)


def _spelled(stream: TokenStream, tokenizer: TextTokenizer, part: Stretch) -> Iterator[str]:
    """Text as it reads, spans of codes in short."""
    at = part.start
    while at < part.stop:
        span = next((s for s in stream.segments if s.start <= at < s.stop), None)
        if span is not None:
            stop = min(span.stop, part.stop)
            yield f"[{stop - at} codes: {_codes(tokenizer, stream.ids[at:stop])}]"
            at = stop
            continue
        stop = min([s.start for s in stream.segments if s.start > at] + [part.stop])
        yield _visible(tokenizer.backend.decode(stream.ids[at:stop].tolist(), skip_special_tokens=False))
        at = stop


def _codes(tokenizer: TextTokenizer, ids: np.ndarray) -> str:
    codes = (ids - tokenizer.vocab.code_start).tolist()
    if len(codes) <= sum(CODES) + 1:
        return " ".join(map(str, codes))
    return f"{' '.join(map(str, codes[: CODES[0]]))} ... {' '.join(map(str, codes[-CODES[1] :]))}"


def _token(stream: TokenStream, tokenizer: TextTokenizer, at: int) -> str:
    one = int(stream.ids[at])
    return (
        tokenizer.token(one)
        if stream.kind[at] == Kind.AUDIO
        else tokenizer.backend.decode([one], skip_special_tokens=False)
    )


def _visible(text: str) -> str:
    """White space that would break the page, and what a terminal would take for commands, as signs."""
    return visible(text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t"))


def streams_of(
    path: Path, tokenizer: TextTokenizer, prompt_rule: PromptRule, literal_specials: bool
) -> Iterator[TokenStream]:
    """Token streams of a file, a store or the sources of a mix, one at a time."""
    for source in sources_of(path):
        if is_store(source.path):
            store = Store(source.path)
            check_store(store, tokenizer, prompt_rule)
            yield from store
            continue
        for where, raw in raw_records(source.path):
            yield stream_of(
                where, raw, source.name, tokenizer, prompt_rule=prompt_rule, literal_specials=literal_specials
            )
