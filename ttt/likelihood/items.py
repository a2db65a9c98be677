"""-log p of whole examples, apart by modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ttt.eval.cards import key_prefix
from ttt.io.digests import hash64
from ttt.likelihood.draws import Draws, estimate, patterns
from ttt.likelihood.factors import factorise
from ttt.likelihood.scoring import MODALITIES, chain_nll, masked_nll
from ttt.rng import generator
from ttt.types import Example, Kind, written_text

if TYPE_CHECKING:
    from ttt.interfaces import LanguageModel, MaskRule, Objective


@dataclass(frozen=True)
class Estimate:
    """``nats``: -log p, or its bound, of ``tokens`` tokens in ``spans`` spans; ``variance`` of nats over draws (NaN: a
    single independent draw tells none); ``exact``: not a bound."""

    nats: float
    tokens: int
    spans: int
    variance: float
    exact: bool


@dataclass(frozen=True)
class ItemLikelihood:
    """One example: estimates by modality (absent ones left out), and words of its target text."""

    uid: str
    group: str
    words: int
    by: Mapping[str, Estimate]


def likelihoods(
    model: LanguageModel, objective: Objective, examples: Sequence[Example], draws: Draws, *, seed: int, budget: int,
    block_length: int | None = None,
) -> list[ItemLikelihood]:  # fmt: skip
    """-log p of every example's answer, in order.  Draws depend on (seed, uid, span) alone.

    ``budget``: positions in one network call, padding included.
    """
    from ttt.data.encode import encode_example

    streams = [encode_example(e, model.tokenizer) for e in examples]
    factors = [factorise(objective, s, block_length, model.tokenizer.vocab.code_space) for s in streams]
    mask: MaskRule = objective.mask  # type: ignore[attr-defined]
    constraint = getattr(objective, "constraint", None)
    if model.tokenizer.vocab.codes_together > 1:
        from ttt.diffusion.constraints import constraint_of

        constraint = constraint_of(constraint)
    training = model.training
    model.eval()
    try:
        chains = chain_nll(model, mask, streams, [f.chain for f in factors], budget)
        parts = [(i, number, part) for i, f in enumerate(factors) for number, part in enumerate(f.parts)]
        found = [
            patterns(len(p.at), draws, generator(seed, "likelihood", uid_number(examples[i].uid), number))
            for i, number, p in parts
        ]
        values = masked_nll(
            model, mask, [p for *_, p in parts], [f.masked for f in found], budget, draws.cfg_scale,
            constraint=constraint, with_ends=getattr(objective, "learns_ends", True),
        )  # fmt: skip
    finally:
        model.train(training)
    # [item, modality, (nats, variance, tokens, spans)]
    table = np.zeros((len(examples), 2, 4))
    for i, (nll, f, s) in enumerate(zip(chains, factors, streams, strict=True)):
        audio = s.kind[f.chain] == Kind.AUDIO
        runs = len(np.unique(s.run_id[f.chain[audio]]))
        table[i] += [[nll[~audio].sum(), 0, (~audio).sum(), 0], [nll[audio].sum(), 0, audio.sum(), runs]]
    seen: set[tuple[int, int]] = set()
    for (i, _, part), drawn, v in zip(parts, found, values, strict=True):
        mean, variance = estimate(v, drawn)
        audio = part.stream.kind[part.at[: part.tokens]] == Kind.AUDIO
        table[i, :, 0] += mean
        table[i, :, 1] += variance
        table[i, :, 2] += (~audio).sum(), audio.sum()
        if (i, part.span) not in seen:  # the blocks of a span count once
            table[i, 1, 3] += len(np.unique(part.stream.run_id[part.at[: part.tokens]][audio]))
            seen.add((i, part.span))
    out = []
    for example, rows, f in zip(examples, table, factors, strict=True):
        kinds = {  # the joint bound of an example is exact only where each of its factors is
            name: Estimate(float(r[0]), int(r[2]), int(r[3]), float(r[1]), not f.parts or (name == "text" and len(f.chain) > 0))
            for name, r in zip(MODALITIES, rows, strict=True) if r[2]
        }  # fmt: skip
        words = [word for turn in example.turns if turn.is_target for word in written_text(turn.spans).split()]
        group = f"{key_prefix(str(example.meta.get('split', '')))}{example.task or 'all'}"
        out.append(ItemLikelihood(example.uid, group, len(words), kinds))
    return out


def uid_number(uid: str) -> int:
    """A number that stands for a name in `ttt.rng`."""
    return hash64(uid.encode(), "big")
