"""Text answers up to a stop string: token by token, or by a diffusion sampler that writes the whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ttt.config.schema import Cache
from ttt.rng import generator
from ttt.sampling.decoder.session import Session, next_token
from ttt.sampling.samplers.logits import choose_text
from ttt.sampling.samplers.request import SpanRequest
from ttt.types import LogitAlignment, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.interfaces import LanguageModel, MaskRule, SpanSampler
    from ttt.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Ask:
    """A prompt and when to stop: at any string of ``until``, at ``<|im_end|>``, ``<|endoftext|>``, or after ``max_tokens``.

    ``key`` names its random draws.  ``temperature``: 0 is greedy, whatever ``top_k`` and ``top_p`` say; None: the request
    names none, so it is greedy token by token, and a diffusion sampler keeps its own.
    """

    key: str
    ids: tuple[int, ...]
    until: tuple[str, ...]
    max_tokens: int
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0


def cut(text: str, until: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one.

    >>> cut("4\\n\\nQ: 2", ["Q:", "\\n\\n"])
    ('4', True)
    """
    at = min((text.find(stop) for stop in until if stop and stop in text), default=-1)
    return (text, False) if at < 0 else (text[:at], True)


def readable(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """Text of new ids; codes and delimiters of speech are left out."""
    return tokenizer.decode([i for i in ids if i < tokenizer.vocab.audio_start])


def write_chain(
    model: LanguageModel, mask: MaskRule, asks: Sequence[Ask], allowed: Tensor, seed: int, cache: Cache = "exact"
) -> list[str]:
    """Answers of one batch, left to right.  ``allowed`` bool [V]: ids that may be written."""
    vocab = model.tokenizer.vocab
    ends = (vocab.im_end_id, vocab.pad_id)
    room = max(a.max_tokens for a in asks) + 1
    allowed = _writable(allowed, vocab).to(model.device)
    new: list[list[int]] = [[] for _ in asks]
    out = [""] * len(asks)
    gens = [generator(seed, f"decode/{a.key}") for a in asks]
    with torch.no_grad():
        session = Session(model, mask, [Prompt(a.key, a.ids) for a in asks], cache, room)
        active = list(range(len(asks)))
        while active:
            logits = session.run([next_token(active)])[0][:, 0].masked_fill(~allowed, -torch.inf)
            still = []
            for n, i in enumerate(active):
                a = asks[i]
                token = int(choose_text(logits[n : n + 1], a.temperature or 0.0, a.top_k, a.top_p, [gens[i]])[0])
                if token not in ends:
                    new[i].append(token)
                out[i], stopped = cut(readable(model.tokenizer, new[i]), a.until)
                if token in ends or stopped or len(new[i]) >= a.max_tokens:
                    continue
                session.append(i, torch.tensor([token]))
                still.append(i)
            active = still
    return out


def write_diffusion(
    model: LanguageModel, mask: MaskRule, sampler: SpanSampler, asks: Sequence[Ask], allowed: Tensor, seed: int,
    logit_alignment: LogitAlignment = "same",
) -> list[str]:  # fmt: skip
    """Answers of one batch by a sampler whose canvas is the answer; its own fields say how (steps, guidance, draws)."""
    vocab = model.tokenizer.vocab
    with torch.no_grad():
        session = Session(
            model, mask, [Prompt(a.key, a.ids) for a in asks], "none", max(a.max_tokens for a in asks) + 64,
            logit_alignment=logit_alignment,
        )  # fmt: skip
        request = SpanRequest(
            run=session.run, mask_id=vocab.mask_id, end_ids=[(vocab.im_end_id,)] * len(asks),
            allowed=_writable(allowed, vocab).to(model.device).repeat(len(asks), 1), exact=[None] * len(asks),
            limit=[a.max_tokens for a in asks], gens=[generator(seed, f"decode/{a.key}") for a in asks],
            device=model.device, force_end=False, pad_id=vocab.pad_id,
        )  # fmt: skip
        new: list[list[int]] = [[] for _ in asks]
        done = [False] * len(asks)
        for block in sampler.span(request):
            new[block.row] += block.ids.tolist()
            ended = {vocab.im_end_id, vocab.pad_id} & set(new[block.row])
            done[block.row] = done[block.row] or block.ended or bool(ended)
            done[block.row] |= cut(readable(model.tokenizer, new[block.row]), asks[block.row].until)[1]
            if all(done):  # nobody waits for the rest of the canvas
                break
    return [cut(readable(model.tokenizer, _before(ids, vocab)), a.until)[0] for ids, a in zip(new, asks, strict=True)]


def _writable(allowed: Tensor, vocab: Any) -> Tensor:
    """Without what no answer holds: mask tokens, the head of another turn, rows behind the vocabulary."""
    allowed = allowed & (torch.arange(len(allowed)) < vocab.size)
    allowed[[vocab.mask_id, vocab.im_start_id]] = False
    return allowed


def _before(ids: Sequence[int], vocab: Any) -> list[int]:
    at = [i for i, token in enumerate(ids) if token in (vocab.im_end_id, vocab.pad_id)]
    return list(ids[: at[0]] if at else ids)
