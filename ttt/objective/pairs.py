"""Which position predicts what, and what the sum is divided by.

Papers and code bases differ in exactly these decisions, so each is one function with its own test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttt.diffusion.corrupt import per_document, per_position
from ttt.types import PackedBatch, PlanTerm

NORMALIZERS = ("sample", "token", "sum")
BUCKETS = 4


def ar_pairs(batch: PackedBatch, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(source, target position), flat: position i - 1 predicts i, for wanted i (bool [B, T]) inside one document.

    The first text token after a span is predicted by the span's end token, as in the reference.
    """
    ok = wanted.clone()
    ok[:, 0] = False
    ok[:, 1:] &= batch.doc[:, 1:] == batch.doc[:, :-1]
    targets = ok.flatten().nonzero().flatten()
    return targets - 1, targets


def nar_pairs(masked: Tensor) -> tuple[Tensor, Tensor]:
    """(source, target position), flat: a masked position predicts itself (un-shifted, as in TtT and LLaDA)."""
    at = masked.flatten().nonzero().flatten()
    return at, at


def next_token_term(batch: PackedBatch, wanted: Tensor, normalize: str, scale: float = 1.0) -> PlanTerm:
    """Next-token loss on ``wanted`` positions.

    ``sample``: mean per document, then mean over *all* documents, those without wanted tokens counting as 0 (the official
    normaliser: weights 1/n_doc, count n_docs).  ``token``: mean over all wanted tokens.  ``sum``: sum per document, mean
    over documents (the bound itself, not divided by lengths).
    """
    source, target = ar_pairs(batch, wanted)
    ones = torch.zeros(batch.ids.shape).flatten()
    ones[target] = 1.0
    return _term(batch, ones.view(batch.ids.shape), source, target, None, normalize, scale)


def denoising_term(
    batch: PackedBatch, masked: Tensor, maskable: Tensor, weight: Tensor, p: Tensor, normalize: str, scale: float = 1.0,
    group: Tensor | None = None,
) -> PlanTerm:  # fmt: skip
    """Masked-diffusion loss; ``weight``, ``p`` f32 [n_groups], ``group`` i64 [B, T] (default: the document).

    ``sample``: (1/B) sum_b sum_masked w_b CE / N_b with N_b = max(1, maskable positions of the document), the official
    normaliser.  ``token``: sum w CE / number of maskable positions.  ``sum``: N_b = 1.  Targets that carry no loss (label
    -100) still count in N, as in the reference.  Statistics are grouped by the masking probability in four buckets.
    """
    source, target = nar_pairs(masked & batch.target)
    of = (batch.doc if group is None else group).flatten()[target]
    term = _term(batch, maskable.float(), source, target, weight[of], normalize, scale)
    groups = (p * BUCKETS).long().clamp(max=BUCKETS - 1)[of]
    names = tuple(f"p{100 * i // BUCKETS:02d}_{100 * (i + 1) // BUCKETS}" for i in range(BUCKETS))
    return PlanTerm(source, term.target, term.weight, term.count, scale, groups, names)


def _term(
    batch: PackedBatch,
    counted: Tensor,
    source: Tensor,
    target: Tensor,
    weight: Tensor | None,
    normalize: str,
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
    else:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZERS)}, got {normalize!r}")
    if weight is not None:
        weights = weights * weight
    return PlanTerm(source, batch.ids.flatten()[target], weights, count, scale)
