"""Plan + network -> sums and counts.  Logits are computed only at positions with a loss, in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttt.masks.materialize import materialize
from ttt.model.joined import fold
from ttt.types import Columns, LossTerm, LossTerms, ModelInputs, Plan, PlanTerm


def plan_terms(model: nn.Module, plan: Plan) -> LossTerms:
    """One forward pass over the inputs of the plan; the weighted sum of cross-entropies of every term."""
    device = next(model.parameters()).device
    used = {name: term for name, term in plan.terms.items() if len(term.source)}
    every, hit = target_nll(model, plan)
    hits = bool(len(hit))
    terms: dict[str, LossTerm] = {}
    stats: dict[str, tuple[float, float]] = {}
    parts = every.split([len(t.source) for t in used.values()]) if used else ()
    plain_parts = every.detach().float().cpu().split([len(p) for p in parts]) if used else ()
    hit_parts = hit.cpu().split([len(p) for p in parts]) if hits else [None] * len(parts)
    for (name, term), nll, plain, right in zip(used.items(), parts, plain_parts, hit_parts, strict=True):
        terms[name] = LossTerm((nll * term.weight.to(device)).sum(), term.count, term.scale)
        stats[f"nll/{name}"] = (float(plain.sum()), float(len(plain)))
        right = right if term.accuracy else None
        if right is not None:
            stats[f"accuracy/{name}"] = (float(right.sum()), float(len(right)))
        for partition in term.partitions:
            for number, label in enumerate(partition.names):
                inside = partition.index == number
                if inside.any():
                    stats[f"nll/{name}/{label}"] = (float(plain[inside].sum()), float(inside.sum()))
                    if right is not None:
                        stats[f"accuracy/{name}/{label}"] = (float(right[inside].sum()), float(inside.sum()))
    for name, term in plan.terms.items():
        stats.update({f"{key}/{name}": value for key, value in term.stats.items()})
        terms.setdefault(name, LossTerm(every.sum() * 0.0, term.count, term.scale))
    return LossTerms(terms, stats)


def target_nll(model: nn.Module, plan: Plan) -> tuple[Tensor, Tensor]:
    """One forward pass: (-log p of the targets of all terms, in their order [N]; bool [N]: the likeliest of its ids).

    The second is empty unless a term asks for ``accuracy``.
    """
    device = next(model.parameters()).device
    plan = folded(plan)
    used = {name: term for name, term in plan.terms.items() if len(term.source)}
    lm: Any = getattr(model, "module", model)  # engines wrap the model
    if used:
        select = torch.cat([t.source for t in used.values()])
        targets = torch.cat([t.target for t in used.values()])
        # Weight of each position if the update has this micro-batch only; otherwise, in most cases, up to a factor.
        weight = torch.cat([t.weight * (t.scale / t.count if t.count else 0.0) for t in used.values()])
    else:
        # A batch without targets runs the network too: engines that shard weights need the forward pass of every rank.
        select = plan.layout.visible.flatten().nonzero()[:1, 0]
        targets, weight = torch.zeros_like(select), torch.zeros(len(select))
    hits = any(t.accuracy for t in used.values())
    inputs = ModelInputs(
        input_ids=_send(plan.input_ids, device),
        position_ids=_send(plan.position_ids, device),
        attention_mask=materialize(plan.mask, plan.layout.to(device), lm.attention, lm.dtype),
        select=_send(select, device),
        targets=_send(targets, device),
        weight=_send(weight, device),
        columns=columns_together(list(used.values())),
        hits=hits,
    )
    output = model(inputs)
    return output if hits else (output, output.new_zeros(0))


def folded(plan: Plan) -> Plan:
    """The plan as the network sees it: ids that stand together side by side (`ttt.model.joined.fold`)."""
    if plan.joined is None:
        return plan
    ids, positions, layout, step = fold(plan.input_ids, plan.position_ids, plan.layout, plan.joined)
    at = (torch.arange(len(ids))[:, None] * ids.shape[1] + step).flatten()
    terms = {name: dataclasses.replace(term, source=at[term.source]) for name, term in plan.terms.items()}
    return Plan(ids, positions, layout, plan.mask, terms)


def columns_together(terms: Sequence[PlanTerm]) -> Columns | None:
    """Columns of several terms, one after the other; None: all softmaxes go over all ids."""
    if all(t.columns is None for t in terms):
        return None
    index: list[torch.Tensor] = []
    sets: list = []
    for t in terms:
        if t.columns is None:
            index.append(torch.full((len(t.source),), -1))
        else:
            index.append(torch.where(t.columns.index < 0, -1, t.columns.index + len(sets)))
            sets += t.columns.sets
    return Columns(torch.cat(index), tuple(sets))


def _send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device; from pinned memory, so that the copy overlaps with work that the GPU still has to do."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
