"""Interleaved decoding as the published script works: the other side of the ratios of `ttt bench decode`.

One prompt at a time; for every text token and every denoising step a forward over everything there is so far, with a new
mask and logits at every position; nothing is kept from one forward to the next.  A denoising step also takes candidates and
confidences of all positions, of which only the block's count.  Greedy; ids that may not be written are excluded, the most
confident places of a block are written first.  Only torch and the Hugging Face model; nothing of `ttt`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ids:
    """The id layout: text below ``audio_start``, codes in [code_start, code_stop), and the ids with a meaning."""

    audio_start: int
    code_start: int
    code_stop: int
    mask: int
    open_span: int
    open_last: int
    end_span: int
    end_last: int
    im_end: int
    never: Sequence[int]  # text ids that an answer does not hold


@dataclass(frozen=True)
class Work:
    """How an answer is decoded.

    ``block`` tokens at a time in ``steps`` steps; at most ``max_tokens`` tokens, and ``most`` codes a span.  ``codes``: spans
    have exactly that many codes (None: up to their end token).  ``text``: what is written at the text steps whatever the model
    says (None: greedy).  ``block_causal``: earlier blocks of a span do not see later ones.
    """

    block: int
    steps: int
    max_tokens: int
    most: int
    codes: int | None = None
    text: Sequence[int] | None = None
    block_causal: bool = False



def attention_mask(ids: Tensor, audio_start: int, prompt: int, block: int) -> Tensor:
    """Bool [1, 1, L, L]: causal, and inside one run of audio ids both ways; ``block`` > 0: in an answer, inside one block."""
    length = len(ids)
    audio = ids >= audio_start
    run = torch.cumsum(~audio, 0)
    both = audio[:, None] & audio[None] & (run[:, None] == run[None])
    if block:
        at = torch.arange(length)
        begin = torch.where(audio & torch.cat([audio.new_zeros(1), audio[:-1]]), 0, at).cummax(0).values
        part = torch.where(at < prompt, 0, (at - begin) // block)
        both &= part[:, None] == part[None]
    return (torch.ones(length, length, dtype=torch.bool).tril() | both)[None, None]


def forward(hf: nn.Module, ids: Sequence[int], audio_start: int, prompt: int, block: int) -> Tensor:
    """Logits f32 [L, V] of one row at all its positions."""
    x = torch.tensor(ids)
    mask = attention_mask(x, audio_start, prompt, block)
    return hf(input_ids=x[None], attention_mask=mask, use_cache=False).logits[0].float()


def candidates(logits: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The best ``allowed`` id of every position of logits [L, V], and its probability."""
    logits = logits.masked_fill(~allowed, -torch.inf)
    best = logits.argmax(-1)
    return best, logits.softmax(-1).gather(-1, best[:, None])[:, 0]


def decode(hf: nn.Module, prompt: Sequence[int], v: Ids, work: Work) -> tuple[list[int], int]:
    """New tokens of one prompt, and how many forwards they took."""
    calls = 0
    writing = states(prompt, v, work)
    ids = next(writing)
    with torch.no_grad():
        while True:
            logits = forward(hf, ids, v.audio_start, len(prompt), work.block if work.block_causal else 0)
            calls += 1
            try:
                ids = writing.send(logits)
            except StopIteration as end:
                return end.value, calls


def states(prompt: Sequence[int], v: Ids, work: Work) -> Generator[list[int], Tensor, list[int]]:
    """The decoding itself: yields what goes through the network, is sent its logits, returns the new tokens."""
    ids = list(prompt)
    written = 0
    while len(ids) - len(prompt) < work.max_tokens:
        logits = yield ids
        size = logits.shape[1]
        index = torch.arange(size)
        text = (index < v.audio_start) & ~torch.isin(index, torch.tensor(list(v.never)))
        token = int(logits[-1].masked_fill(~text, -torch.inf).argmax())
        if work.text is not None:
            token = work.text[written]
        written += 1
        ids.append(token)
        if token == v.im_end:
            break
        if token not in (v.open_span, v.open_last):
            continue
        end = v.end_last if token == v.open_last else v.end_span
        room = work.max_tokens - (len(ids) - len(prompt)) - 1
        if room < 0:
            break
        limit = min(room, work.most if work.codes is None else work.codes)
        allowed = (index >= v.code_start) & (index < v.code_stop)
        allowed[end] = work.codes is None
        span: list[int] = []
        while not span or span[-1] != end:
            width = min(work.block, limit + 1 - len(span))
            canvas = [v.mask] * width
            if len(span) + width > limit:
                canvas[-1] = end
            for count in transfers(canvas.count(v.mask), work.steps):
                stop = canvas.index(end) if end in canvas else width
                open_ = [i for i in range(stop) if canvas[i] == v.mask]
                if not count or not open_:
                    break
                logits = yield ids + span + canvas
                best, sure = (x[-width:].tolist() for x in candidates(logits, allowed))
                for i in sorted(open_, key=lambda i: -sure[i])[:count]:
                    canvas[i] = best[i]
            span += canvas[: canvas.index(end) + 1] if end in canvas else canvas
        ids += span
    return ids[len(prompt) :]


def transfers(masks: int, steps: int) -> list[int]:
    """How many tokens each step writes: as evenly as whole numbers allow, the larger numbers first."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]
