"""log p of text that a masked network fills in any order: LLaDA's Monte-Carlo bound, and its test of greediness."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttt.likelihood import Draws, Part, estimate, masked_nll, patterns, uid_number
from ttt.likelihood.scoring import batches, columns_of, guided_at, ids_of, logit_chunks
from ttt.rng import generator
from ttt.textbench.chain import Scored, stream_of
from ttt.textbench.texts import Pair

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.interfaces import LanguageModel, MaskRule
    from ttt.types import LogitAlignment


def bound_scores(
    model: LanguageModel, mask: MaskRule, pairs: Sequence[Pair], allowed: Tensor, budget: int, draws: Draws, seed: int,
    check_greedy: bool = True, logit_alignment: LogitAlignment = "same",
) -> list[Scored]:  # fmt: skip
    """A lower bound of log p of every target given its context, in order (`ttt.likelihood.masked_nll`).

    Draws depend on (seed, tokens) alone, so neither order nor batching changes a score.  ``check_greedy``: whether the
    target is what greedy decoding writes; costs a network call per token (False: no target counts as greedy).
    """
    vocab = model.tokenizer.vocab
    n = [len(p.context) for p in pairs]
    parts = [
        Part(stream_of(p, vocab), np.arange(start, start + len(p.target)), len(p.target), before=logit_alignment == "next")
        for p, start in zip(pairs, n, strict=True)
    ]
    found = [patterns(len(p.target), draws, generator(seed, "harness", pair_number(p))) for p in pairs]
    training = model.training
    model.eval()
    try:
        values = masked_nll(model, mask, parts, [f.masked for f in found], budget, draws.cfg_scale, allowed)
        greedy = (
            greedy_matches(model, mask, parts, allowed, budget, draws.cfg_scale)
            if check_greedy
            else [False] * len(parts)
        )
    finally:
        model.train(training)
    return [
        Scored(-float(estimate(v, f)[0].sum()), g, len(p.target))
        for v, f, g, p in zip(values, found, greedy, pairs, strict=True)
    ]


def pair_number(pair: Pair) -> int:
    """A number that stands for the tokens of a pair in `ttt.rng`."""
    return uid_number(f"{pair.context}|{pair.target}")


def greedy_matches(
    model: LanguageModel, mask: MaskRule, parts: Sequence[Part], allowed: Tensor, budget: int, cfg_scale: float = 0.0
) -> list[bool]:
    """Is the target what the network writes when, step by step, the place it is surest of takes its likeliest token?

    The canvas has the target's own length.  A row leaves at its first token that differs.
    """
    mask_id = model.tokenizer.vocab.mask_id
    canvas = [p.stream.ids.copy() for p in parts]
    for ids, part in zip(canvas, parts, strict=True):
        ids[part.at] = mask_id
    open_ = [list(p.at) for p in parts]
    alike = [True] * len(parts)
    todo = list(range(len(parts)))
    while todo:
        for chunk in batches([len(parts[i].stream) for i in todo], budget):
            rows = [todo[c] for c in chunk]
            streams = [dataclasses.replace(parts[i].stream, ids=canvas[i]) for i in rows]
            at = [np.asarray(open_[i]) for i in rows]
            sources = [parts[i].sources(a) for i, a in zip(rows, at, strict=True)]
            hidden = guided_at(model, mask, streams, sources, [parts[i].at for i in rows], cfg_scale)
            sure, token = _likeliest(model, hidden, allowed)
            sizes = [len(a) for a in at]
            for i, s, t in zip(rows, sure.split(sizes), token.split(sizes), strict=True):
                k = int(s.argmax())
                place = open_[i].pop(k)
                canvas[i][place] = int(t[k])
                alike[i] = canvas[i][place] == parts[i].stream.ids[place]
        todo = [i for i in todo if alike[i] and open_[i]]
    return alike


def _likeliest(model: LanguageModel, hidden: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """(probability f32 [N], id i64 [N]) of the likeliest of the ids ``allowed`` bool [V], for states [N, D]."""
    sure, token = hidden.new_zeros(len(hidden), dtype=torch.float32), torch.zeros_like(hidden[:, 0], dtype=torch.long)
    for some, logits, ranges in logit_chunks(model, hidden, columns_of(allowed, len(hidden))):
        best, place = logits.max(-1)
        sure[some], token[some] = (best - logits.logsumexp(-1)).exp(), ids_of(ranges, hidden.device)[place]
    return sure, token
