"""log p of text that is written from left to right; the continuations of one context share its computation.

Continuations stand behind their context in one row, each at the positions it has alone, and do not see each other:

    columns    c0 c1 c2 | a0 a1 | b0 | d0 d1 d2        positions  0 1 2 | 3 4 | 3 | 3 4 5

The mask is put together from the rule's own masks of (context + continuation), so every score is what the continuation gets
alone, whatever the rule.  A rule under which the context looks at what follows gives every continuation a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttt.likelihood.scoring import batches
from ttt.masks.materialize import carry, dense
from ttt.textbench.texts import Pair
from ttt.types import Kind, Layout, ModelInputs, TokenStream, audio_runs

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.interfaces import LanguageModel, MaskRule
    from ttt.text.vocab import Vocabulary

_HEAD = 512  # positions whose logits are held at a time
_ROOM = 64  # a row may hold this many tokens of continuations, or as many as its context has


@dataclass(frozen=True)
class Scored:
    """``logprob``: log p of the target; ``greedy``: every token is the likeliest; ``elsewhere``: probability of ids outside
    the vocabulary in use, summed over the ``tokens`` of the target (NaN: not measured)."""

    logprob: float
    greedy: bool
    tokens: int
    elsewhere: float = float("nan")


@dataclass(frozen=True)
class _Row:
    """One row: ids and positions [n], mask bool [n, n]; per pair of it (number, columns that predict its target)."""

    ids: list[int]
    positions: list[int]
    allowed: Tensor
    pairs: list[tuple[int, list[int]]]


def chain_scores(
    model: LanguageModel, mask: MaskRule, pairs: Sequence[Pair], allowed: Tensor, budget: int
) -> list[Scored]:
    """Scores of every pair, in order.  ``allowed`` bool [V]; ``budget``: positions in one network call, padding included."""
    together: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        together.setdefault(pair.context, []).append(number)
    plans = [group for numbers in together.values() for group in _shared(pairs, numbers)]
    lengths = [len(pairs[g[0]].context) + sum(len(pairs[i].target) - 1 for i in g) for g in plans]
    out: list[Scored | None] = [None] * len(pairs)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for chunk in batches(lengths, budget):
                rows = [row for c in chunk for row in _rows(model.tokenizer.vocab, mask, pairs, plans[c])]
                # rows that could not be shared are more than were planned for
                for part in batches([len(r.ids) for r in rows], budget):
                    for number, scored in _run(model, [rows[i] for i in part], pairs, allowed):
                        out[number] = scored
    finally:
        model.train(training)
    assert all(scored is not None for scored in out)
    return [scored for scored in out if scored is not None]


def _shared(pairs: Sequence[Pair], numbers: Sequence[int]) -> list[list[int]]:
    """Pairs of one context, a row each."""
    room = max(_ROOM, len(pairs[numbers[0]].context))
    groups: list[list[int]] = []
    used = 0
    for number in numbers:
        length = len(pairs[number].target) - 1
        if groups and used + length <= room:
            groups[-1].append(number)
            used += length
        else:
            groups.append([number])
            used = length
    return groups


def stream_of(pair: Pair, vocab: Vocabulary, uid: str = "pair", last: bool = True) -> TokenStream:
    """Context (prompt) and target (answer) as one example; ``last``: with the target's last token."""
    ids = np.asarray([*pair.context, *(pair.target if last else pair.target[:-1])], dtype=np.int64)
    kind = np.where(vocab.is_audio(ids), Kind.AUDIO, Kind.TEXT).astype(np.uint8)
    answer = np.arange(len(ids)) >= len(pair.context)
    return TokenStream(uid, ids, kind, audio_runs(kind), answer, answer, prompt_length=len(pair.context))


def _rows(vocab: Vocabulary, mask: MaskRule, pairs: Sequence[Pair], numbers: Sequence[int]) -> list[_Row]:
    """One row, or one for each pair where the context's own states depend on what follows."""
    context = pairs[numbers[0]].context
    n = len(context)
    alone = [dense(mask, _layout(stream_of(pairs[i], vocab, last=False)))[0] for i in numbers]  # [n + m, n + m] each
    first = alone[0][:n, :n]
    if len(numbers) > 1 and any(bool(a[:n, n:].any()) or not torch.equal(a[:n, :n], first) for a in alone):
        return [row for i in numbers for row in _rows(vocab, mask, pairs, [i])]
    ids, positions, placed = list(context), list(range(n)), []
    total = n + sum(len(a) - n for a in alone)
    allowed = torch.zeros((total, total), dtype=torch.bool)
    allowed[:n, :n] = first
    for number, own in zip(numbers, alone, strict=True):
        start, m = len(ids), len(own) - n
        here = slice(start, start + m)
        allowed[here, :n], allowed[here, here] = own[n:, :n], own[n:, n:]
        if len(numbers) == 1:
            allowed[:n, here] = own[:n, n:]
        ids += pairs[number].target[:-1]
        positions += range(n, n + m)
        placed.append((number, [n - 1, *range(start, start + m)]))
    return [_Row(ids, positions, allowed, placed)]


def _layout(stream: TokenStream) -> Layout:
    def row(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values))[None]

    n = len(stream)
    zeros = torch.zeros((1, n), dtype=torch.long)
    return Layout(
        kind=row(stream.kind), run_id=row(stream.run_id).long(), doc=zeros, position=torch.arange(n)[None],
        prompt=~row(stream.noisable), visible=torch.ones((1, n), dtype=torch.bool), stream=torch.zeros((1, n), dtype=torch.uint8),
    )  # fmt: skip


def _run(model: LanguageModel, rows: Sequence[_Row], pairs: Sequence[Pair], allowed: Tensor) -> list[tuple[int, Scored]]:
    width = max(len(r.ids) for r in rows)
    ids = torch.full((len(rows), width), model.tokenizer.vocab.pad_id)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    seen = torch.zeros((len(rows), width, width), dtype=torch.bool)
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids[b, :n], positions[b, :n], seen[b, :n, :n] = torch.tensor(row.ids), torch.tensor(row.positions), row.allowed
    columns = [sorted({c for _, at in row.pairs for c in at}) for row in rows]
    sources = [b * width + c for b, cs in enumerate(columns) for c in cs]  # flat positions that need logits
    slot = {flat: i for i, flat in enumerate(sources)}
    asked = [(slot[b * width + c], token, number) for b, row in enumerate(rows) for number, at in row.pairs
             for c, token in zip(at, pairs[number].target, strict=True)]  # fmt: skip
    inputs = ModelInputs(
        ids.to(model.device), positions.to(model.device),
        carry(seen.to(model.device), model.attention, model.dtype), torch.tensor(sources, device=model.device),
    )  # fmt: skip
    hidden = model.hidden(inputs.input_ids, inputs.position_ids, inputs.attention_mask).flatten(0, 1)[inputs.select]
    nats, best, outside = _tokens(model, hidden, asked, allowed.to(model.device))
    found: dict[int, list[int]] = {}
    for k, (_, _, number) in enumerate(asked):
        found.setdefault(number, []).append(k)
    return [
        (number, Scored(-float(nats[ks].sum()), bool(best[ks].all()), len(ks), float(outside[ks].sum())))
        for number, ks in found.items()
    ]


def _tokens(
    model: LanguageModel, hidden: Tensor, asked: Sequence[tuple[int, int, int]], allowed: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every asked (slot, token, _): -log p f64, whether it is the likeliest, and the probability outside ``allowed``."""
    slots = torch.tensor([a[0] for a in asked], device=hidden.device)
    tokens = torch.tensor([a[1] for a in asked], device=hidden.device)
    nats = torch.zeros(len(asked), dtype=torch.float64, device=hidden.device)
    best = torch.zeros(len(asked), dtype=torch.bool, device=hidden.device)
    outside = torch.zeros(len(asked), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(hidden), _HEAD):
        logits = model.head(hidden[start : start + _HEAD])  # [h, V]
        inside = logits.masked_fill(~allowed, -torch.inf)
        norm = inside.logsumexp(-1)
        here = ((slots >= start) & (slots < start + _HEAD)).nonzero().flatten()
        at, wanted = slots[here] - start, tokens[here]
        nats[here] = (norm[at] - inside[at, wanted]).double()
        best[here] = inside.argmax(-1)[at] == wanted
        outside[here] = (1 - (norm - logits.logsumexp(-1)).exp())[at].double()
    return nats.cpu().numpy(), best.cpu().numpy(), outside.cpu().numpy()
