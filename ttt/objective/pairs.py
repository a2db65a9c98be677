"""Which position predicts which token, and what a loss is divided by.

Papers and programs differ in these decisions, so each is one function with its own test.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from ttt.diffusion.corrupt import per_document, per_position
from ttt.interfaces import Constraint
from ttt.model.joined import number
from ttt.objective.places import constrained, space_of, span_places
from ttt.types import CodeSpace, Columns, LogitAlignment, PackedBatch, Partition, PlanTerm

Normalizer = Literal["sample", "token", "sum", "all_tokens", "masked"]
NOTHING = 1.0e-9  # count of a micro-batch in which nothing was masked: no loss, and almost no share in the count of the update
BUCKETS = 4
SPAN_QUARTERS = ("span_q1", "span_q2", "span_q3", "span_q4")


def ar_pairs(batch: PackedBatch, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """(source, target position), flat: position i - 1 predicts i, for ``predicted`` positions i (bool [B, T]) of one document.

    The first text token after a span is predicted by the span's end token, as in the official program.  Ids that stand at one
    position of the network are all predicted by the one before it.
    """
    ok = predicted.clone()
    if batch.joined is None:
        ok[:, 0] = False
        ok[:, 1:] &= batch.doc[:, 1:] == batch.doc[:, :-1]
        targets = ok.flatten().nonzero().flatten()
        return targets - 1, targets
    before = torch.arange(ok.shape[1]) - number(batch.joined)[1] - 1  # last id of the network's position before
    ok &= (before >= 0) & (batch.doc == batch.doc.gather(1, before.clamp(min=0)))
    targets = ok.flatten().nonzero().flatten()
    return targets // ok.shape[1] * ok.shape[1] + before.flatten()[targets], targets


def nar_pairs(masked: Tensor) -> tuple[Tensor, Tensor]:
    """(source, target position), flat: a masked position predicts itself (un-shifted, as in TtT and LLaDA)."""
    at = masked.flatten().nonzero().flatten()
    return at, at


def next_token_term(batch: PackedBatch, predicted: Tensor, normalize: Normalizer, scale: float = 1.0) -> PlanTerm:
    """Next-token loss on ``predicted`` positions.

    ``sample``: mean per document, then mean over *all* documents, where those without predicted tokens count as 0 (the official
    normaliser: weights 1/n_doc, count n_docs).  ``token``: mean over all predicted tokens.  ``sum``: sum per document, mean
    over documents (the bound itself, not divided by lengths).
    """
    source, target = ar_pairs(batch, predicted)
    ones = torch.zeros(batch.ids.shape).flatten()
    ones[target] = 1.0
    term = _term(batch, ones.view(batch.ids.shape), source, target, None, normalize, scale)
    if batch.joined is None:
        return term
    return dataclasses.replace(term, columns=columns_of_books(space_of(batch, "data.pattern"), term.target))


def columns_of_books(space: CodeSpace, target: Tensor) -> Columns:
    """What each softmax goes over where ids stand together: all ids for the first of them, the others each its own column."""
    index = torch.full_like(target, -1)
    for n, (start, stop) in enumerate(space.codebooks[1:]):
        index[(target >= start) & (target < stop)] = n
    return Columns(index, tuple((ids,) for ids in space.codebooks[1:]))


def denoising_term(
    batch: PackedBatch, masked: Tensor, maskable: Tensor, weight: Tensor, p: Tensor, normalize: Normalizer, scale: float = 1.0,
    group: Tensor | None = None, constraint: Constraint | None = None, with_ends: bool = True,
    logit_alignment: LogitAlignment = "same",
) -> PlanTerm:  # fmt: skip
    """Masked-diffusion loss; ``weight``, ``p`` f32 [n_groups], ``group`` i64 [B, T] (default: the document).

    ``sample``: (1/B) sum_b sum_masked w_b CE / N_b with N_b = max(1, maskable positions of the document), the official
    normaliser.  ``token``: sum w CE / number of maskable positions.  ``sum``: N_b = 1.  ``all_tokens``: sum w CE / all real
    positions of the batch (LLaDA's B L).  ``masked``: sum w CE / number of targets.  ``constraint``: audio targets take their
    softmax over what may stand there; targets that may not are dropped and counted (``with_ends``: see `constrained`).
    ``logit_alignment``: ``same`` has pairs as in `nar_pairs`; ``next`` as in `ar_pairs`, so a document's first token is no target
    (Dream, arXiv 2508.15487).

    Targets that carry no loss (label -100) still count in N, as in the official program.  The log tells targets apart by task,
    masking probability, place in the span, and position in the frame.
    """
    hidden = masked & batch.target
    source, target = nar_pairs(hidden) if logit_alignment == "same" else ar_pairs(batch, hidden)
    limited = None if constraint is None else constrained(batch, constraint, target, with_ends)
    if limited is not None:
        source, target = source[limited.keep], target[limited.keep]
    of = (batch.doc if group is None else group).flatten()[target]
    term = _term(batch, maskable.float(), source, target, weight[of], normalize, scale)
    buckets = (p * BUCKETS).long().clamp(max=BUCKETS - 1)[of]
    names = tuple(f"p{100 * i // BUCKETS:02d}_{100 * (i + 1) // BUCKETS}" for i in range(BUCKETS))
    place = span_quarters(batch).flatten()[target]
    parts = (Partition(buckets, names), Partition(place, SPAN_QUARTERS), *term.partitions)
    term = dataclasses.replace(term, partitions=parts)
    if limited is None:
        return term
    positions = Partition(limited.number[limited.keep], tuple(f"position_{q}" for q in range(len(limited.columns.sets) // 2)))
    valid = {"valid_targets": (float((limited.keep & limited.placed).sum()), float(limited.placed.sum()))}
    return dataclasses.replace(term, partitions=(*parts, positions), columns=limited.columns, accuracy=True, stats=valid)


def by_task(batch: PackedBatch, target: Tensor) -> tuple[Partition, ...]:
    """Targets (flat positions i64 [n]) by the task of their document; nothing where the batch names no tasks."""
    names = sorted({task for task in batch.tasks if task})
    if not names:
        return ()
    number = torch.tensor([names.index(task) if task else -1 for task in batch.tasks])
    return (Partition(number[batch.doc.flatten()[target]], tuple(f"task_{name}" for name in names)),)


def span_quarters(batch: PackedBatch) -> Tensor:
    """i64 [B, T]: quarter 0..3 of its audio run in which a position lies, -1 for text and padding.

    Tokens that pad the last block of a span count as part of the span.
    """
    place, length = span_places(batch)
    return torch.where(place < 0, -1, (place * 4 // length).clamp(max=3))


def _term(
    batch: PackedBatch,
    counted: Tensor,
    source: Tensor,
    target: Tensor,
    weight: Tensor | None,
    normalize: Normalizer,
    scale: float,
) -> PlanTerm:
    weights = torch.ones(len(target))
    if normalize == "sample":
        per_doc = per_document(counted, batch.doc, batch.n_docs).clamp(min=1)
        weights = 1 / per_position(per_doc, batch.doc).flatten()[target]
        count = float(batch.n_docs)
    elif normalize == "token":
        count = float(counted.sum())
    elif normalize == "sum":
        count = float(batch.n_docs)
    elif normalize == "all_tokens":
        count = float(batch.visible.sum())
    else:  # masked
        count = float(len(target)) or NOTHING
    if weight is not None:
        weights = weights * weight
    return PlanTerm(source, batch.ids.flatten()[target], weights, count, scale, partitions=by_task(batch, target))
