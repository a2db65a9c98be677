"""Targets, inputs, weights and masks of batches, compared with the definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.doctor.finding import (
    CAUSAL,
    FAULT,
    LEAK,
    NO_INVERSE_P,
    NOTE,
    OK,
    PAD,
    SHIFTED,
    SHIFTS,
    SKIP,
    WRONG_MASK,
    Finding,
)
from ttt.doctor.truth import Planned, make_plans, terms_of
from ttt.registry import name_of
from ttt.rng import generator
from ttt.types import PackedBatch, Plan

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.interfaces import Objective
    from ttt.text.vocab import Vocabulary


def check_plans(
    objective: Objective, batches: Sequence[PackedBatch], vocab: Vocabulary, seed: int = 1
) -> list[Finding]:
    """Targets, inputs, weights and masks of batches as the run's own code makes them."""
    plans = make_plans(objective, batches, seed)
    names = sorted({name for p in plans for name, t in p.plan.terms.items() if len(t.source)})
    out = []
    for name in names:
        if name not in SHIFTS:
            out.append(
                Finding(f"batch/targets/{name}", SKIP, "a term of a plug-in: what it predicts is not known here")
            )
            continue
        out += [_targets(plans, name), _loss_positions(plans, name)]
    out.append(_inputs(plans, vocab))
    out += _weights(objective, plans, seed)
    return [*out, *_masks(objective, plans)]


def _targets(plans: Sequence[Planned], name: str) -> Finding:
    """Is every target the clean id of the position that is to be predicted?"""
    right, n = plans[0].shift(name), 0
    hits = dict.fromkeys((-2, -1, 0, 1, 2), 0)
    for p, term in terms_of(plans, name):
        known = p.truth.at(right)[term.source] >= 0  # the others are judged by _loss_positions
        n += int(known.sum())
        for shift in hits:
            hits[shift] += int((p.truth.at(shift)[term.source] == term.target)[known].sum())
    if not n or hits[right] == n:
        what = "the position itself" if right == 0 else "the next position"
        return Finding(f"batch/targets/{name}", OK, f"{n:,} targets: all are the clean id of {what}")
    best = max(hits, key=lambda s: hits[s])
    text = f"{n - hits[right]:,} of {n:,} targets are not the clean id of position i{right:+d}"
    if best != right and hits[best] > 0.9 * n:
        text += f"; {hits[best] / n:.0%} are that of i{best:+d}"
        return Finding(f"batch/targets/{name}", FAULT, text.replace("i+0", "i"), SHIFTED)
    return Finding(f"batch/targets/{name}", FAULT, text.replace("i+0", "i"), "wrong targets")


def _loss_positions(plans: Sequence[Planned], name: str) -> Finding:
    """Does loss lie only on tokens of answers?"""
    right, n, pads, prompts = plans[0].shift(name), 0, 0, 0
    for p, term in terms_of(plans, name):
        exists = p.truth.at(right)[term.source] >= 0
        n += len(term.source)
        pads += int((~exists).sum())
        prompts += int((exists & ~p.truth.is_target(right)[term.source]).sum())
    where = f"batch/loss_on/{name}"
    if pads:
        return Finding(
            where, FAULT, f"{pads:,} of {n:,} targets lie on padding or behind the end of their document", PAD
        )
    if prompts:
        return Finding(where, FAULT, f"{prompts:,} of {n:,} targets are no part of an answer", "prompt in the loss")
    return Finding(where, OK, f"{n:,} targets, none on padding, none in a prompt")


def _inputs(plans: Sequence[Planned], vocab: Vocabulary) -> Finding:
    """Is the mask token, and nothing else, put in the place of noised tokens, and is every denoising target hidden?"""
    import torch

    ids: dict[int, int] = {}
    seen = n = 0
    for p in plans:
        given, clean = p.plan.input_ids.flatten(), p.truth.at(0)
        changed = (given != clean) & (clean >= 0)
        for i, count in zip(*torch.unique(given[changed], return_counts=True), strict=True):
            ids[int(i)] = ids.get(int(i), 0) + int(count)
        if "nar" in p.plan.terms:
            source = p.masked(p.plan.terms["nar"])
            source = source[clean[source] >= 0]
            seen += int((given[source] == clean[source]).sum())
        n += int(changed.sum())
    others = {i: c for i, c in ids.items() if i != vocab.mask_id}
    if others:
        worst = max(others, key=lambda i: others[i])
        text = (
            f"{others[worst]:,} of {n:,} noised inputs carry id {worst}; the vocabulary's mask token is {vocab.mask_id}"
        )
        return Finding("batch/mask_id", FAULT, text, WRONG_MASK)
    if seen:
        return Finding("batch/mask_id", FAULT, f"{seen:,} denoising targets stand unmasked in the input", LEAK)
    if not n:
        return Finding("batch/mask_id", NOTE, "nothing was noised in these batches")
    return Finding("batch/mask_id", OK, f"{n:,} noised inputs, all carry the mask token {vocab.mask_id}")


def _weights(objective: Any, plans: Sequence[Planned], seed: int) -> list[Finding]:
    """Weights of the diffusion loss against weighting(t, p) / N, at given times and in the plans of training."""
    import torch

    from ttt.diffusion.corrupt import per_document
    from ttt.diffusion.weightings import InverseP

    if not all(
        hasattr(objective, a) for a in ("plan_from", "maskable", "weighting", "noise", "min_mask_prob", "audio_normalize")
    ):
        return []
    label = name_of(objective.weighting)
    inverse = isinstance(objective.weighting, InverseP)
    worst, flat, n = 0.0, True, 0
    for i, p in enumerate(plans):
        maskable = objective.maskable(p.batch)
        size = per_document(maskable.float(), p.batch.doc, p.batch.n_docs).clamp(min=1)
        for time in (0.25, 0.75):
            t = torch.full((p.batch.n_docs,), time)
            u = torch.rand(tuple(p.batch.ids.shape), generator=generator(seed, "doctor_weights", i))
            plan = objective.plan_from(p.batch, maskable, t, u)
            term = plan.terms.get("nar")
            if term is None or not len(term.source):
                continue
            prob = (1 - objective.min_mask_prob) * (1 - objective.noise.alpha(t)) + objective.min_mask_prob
            wanted = 1 / prob if inverse else objective.weighting.weight(t, prob, objective.noise)
            doc = plan.layout.doc.flatten()[term.source]
            known = doc >= 0
            doc = doc[known]
            share = 1 / size[doc] if objective.audio_normalize == "sample" else torch.ones(len(doc))
            ratio = term.weight[known] / (wanted[doc] * share)
            worst = max(worst, float((ratio - 1).abs().max())) if len(ratio) else worst
            flat &= bool(torch.allclose(term.weight[known], share, rtol=1e-4))
            n += len(ratio)
    if not n:
        return [Finding("batch/weights", SKIP, "no diffusion loss in these batches")]
    per = "1/N" if objective.audio_normalize == "sample" else "1"
    if worst > 1e-3:
        fault = NO_INVERSE_P if flat and inverse else "wrong loss weights"
        text = (
            f"weights are {per} whatever the masking probability" if flat else f"weights are off by up to {worst:.0%}"
        )
        return [
            Finding("batch/weights", FAULT, f"{text}; {label} asks for {'1/(p N)' if per == '1/N' else '1/p'}", fault)
        ]
    out = [Finding("batch/weights", OK, f"{n:,} weights equal {label}(t, p) times {per}")]
    if not inverse:
        out[0] = Finding("batch/weights", NOTE, out[0].text + "; not 1/p, so the loss is no bound")
        return out
    return [*out, *_drawn_weights(objective, plans)]


def _drawn_weights(objective: Any, plans: Sequence[Planned]) -> list[Finding]:
    """In training's own plans, weights 1/(p N) of a document's masked tokens add up to 1 on average, without 1/p to p."""
    import torch

    if objective.audio_normalize != "sample":
        return []
    sums: list[float] = []
    for p, term in terms_of(plans, "nar"):
        doc = p.plan.layout.doc.flatten()[term.source]
        total = torch.zeros(p.batch.n_docs).index_add_(0, doc.clamp(min=0), term.weight * (doc >= 0))
        sums += total[total > 0].clamp(max=3).tolist()  # the rare huge weights of small p
    if len(sums) < 8:
        return []
    mean, error = float(np.mean(sums)), float(np.std(sums) / math.sqrt(len(sums)))
    text = f"a document's weights add up to {mean:.2f} ± {error:.2f} (1 with 1/(p N), 0.5 without 1/p; {len(sums)} documents)"
    if mean + 3 * error < 0.8:
        return [Finding("batch/weight_sums", FAULT, text, NO_INVERSE_P)]
    return [Finding("batch/weight_sums", OK, text)]


def _masks(objective: Any, plans: Sequence[Planned]) -> list[Finding]:
    """Do masked tokens of one span see each other both ways, and does nobody see what they must not?"""
    from ttt.masks.materialize import dense
    from ttt.objective.library import Nar

    spans, answers = np.zeros(3, dtype=int), np.zeros(3, dtype=int)
    for p in plans:
        allowed = dense(p.plan.mask, p.plan.layout)  # [B, T, T]
        doc = p.plan.layout.doc
        for name, term in p.plan.terms.items():
            known = term.source[doc.flatten()[term.source] >= 0]
            if name == "nar":
                known = known + p.shift(name)
                spans += _span_pairs(allowed, denoised_together(objective, p.plan, isinstance(objective, Nar)), known)
                answers[1] += _twins(allowed, p.plan, known)
            elif name == "ar":
                answers[0] += _seen_next(allowed, doc, known)
        answers[2] += int((allowed & (doc[:, :, None] != doc[:, None]) & (doc >= 0)[:, :, None]).sum())
    return [_mutual(*spans.tolist()), _hidden(*answers.tolist())]


def _span_pairs(allowed: Tensor, group: Tensor, source: Tensor) -> tuple[int, int, int]:
    """(pairs of one group, those that do not see ahead, those that do not see back) among flat ``source`` positions."""
    import torch

    rows, columns = source // allowed.shape[2], source % allowed.shape[2]
    pairs = ahead = back = 0
    for b in torch.unique(rows).tolist():
        at = columns[rows == b]
        same = group[b, at][:, None] == group[b, at][None]
        blocked, later = same & ~allowed[b][at][:, at], at[None] > at[:, None]
        pairs += int((same & later).sum())
        ahead += int((blocked & later).sum())
        back += int((blocked & ~later).sum())
    return pairs, ahead, back


def _twins(allowed: Tensor, plan: Plan, source: Tensor) -> int:
    """How many masked positions see another copy of themselves: the same place of the same document, elsewhere in the row."""
    import torch

    width = allowed.shape[2]
    rows, columns = source // width, source % width
    place, doc = plan.position_ids[rows], plan.layout.doc[rows]  # [n, T]
    same = (place == place.gather(1, columns[:, None])) & (doc == doc.gather(1, columns[:, None]))
    same &= torch.arange(width)[None] != columns[:, None]
    return int((allowed[rows, columns] & same).sum())


def _seen_next(allowed: Tensor, doc: Tensor, source: Tensor) -> int:
    """How many positions see the next one of their document, which they predict."""
    width = allowed.shape[2]
    source = source[source % width + 1 < width]
    rows, columns = source // width, source % width
    return int((allowed[rows, columns, columns + 1] & (doc[rows, columns] == doc[rows, columns + 1])).sum())


def _mutual(pairs: int, ahead: int, back: int) -> Finding:
    if ahead and not back:
        text = f"{ahead:,} of {pairs:,} pairs of masked tokens of one span do not see ahead"
        return Finding("batch/mask", FAULT, text, CAUSAL)
    if ahead or back:
        text = f"{ahead + back:,} pairs of masked tokens of one span do not see each other"
        return Finding("batch/mask", FAULT, text, "hole in the mask")
    if not pairs:
        return Finding("batch/mask", SKIP, "no two masked tokens of one span in these batches")
    return Finding("batch/mask", OK, f"{pairs:,} pairs of masked tokens of one span see each other both ways")


def _hidden(nexts: int, twins: int, strangers: int) -> Finding:
    if nexts or twins:
        what = f"{nexts:,} next-token targets" if nexts else f"{twins:,} clean copies of masked tokens"
        return Finding("batch/visible", FAULT, f"{what} are visible to the position that predicts them", LEAK)
    if strangers:
        text = f"{strangers:,} entries of the mask join two documents, or a document and padding"
        return Finding("batch/visible", FAULT, text, "documents see each other")
    return Finding("batch/visible", OK, "no target is visible to its predictor, no document to another")


def denoised_together(objective: Any, plan: Plan, whole: bool) -> Tensor:
    """i64 [B, T]: positions with one number are denoised together and have to see each other."""
    from ttt.masks.library import run_offsets

    layout = plan.layout
    if whole:
        return layout.doc.long()
    length = getattr(plan.mask, "block_length", 0)
    block = run_offsets(layout) // length if length else layout.doc.new_zeros(layout.doc.shape)
    big = max(int(layout.run_id.max()), int(block.max()), 1) + 1
    return (layout.doc.long() * big + layout.run_id.long()) * big + block.long()
