"""Plan + network -> sums and counts.  Logits exist only at the positions that carry loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ttt.masks.materialize import materialize
from ttt.types import LossTerm, LossTerms, ModelInputs, Plan


def plan_terms(model: nn.Module, plan: Plan) -> LossTerms:
    """One forward over the plan's inputs; every term's weighted cross-entropy sum (full-vocabulary softmax)."""
    device = next(model.parameters()).device
    used = {name: term for name, term in plan.terms.items() if len(term.source)}
    lm: Any = getattr(model, "module", model)  # engines wrap the model
    # A batch without targets runs the network too: engines that shard its weights need every rank's forward pass.
    select = torch.cat([t.source for t in used.values()]) if used else torch.zeros(1, dtype=torch.long)
    # One logit row may serve several terms (none does today, but plug-ins may); compute it once.
    unique, inverse = torch.unique(select, return_inverse=True)
    inputs = ModelInputs(
        input_ids=plan.input_ids.to(device),
        position_ids=plan.position_ids.to(device),
        attention_mask=materialize(plan.mask, plan.layout.to(device), lm.attention, lm.dtype),
        select=unique.to(device),
    )
    logits = model(inputs)  # [N, V]
    rows = inverse.to(device).split([len(t.source) for t in used.values()]) if used else ()
    terms: dict[str, LossTerm] = {}
    stats: dict[str, tuple[float, float]] = {}
    for (name, term), at in zip(used.items(), rows, strict=True):
        nll = F.cross_entropy(logits[at], term.target.to(device), reduction="none")  # [n]
        terms[name] = LossTerm((nll * term.weight.to(device)).sum(), term.count, term.scale)
        plain = nll.detach().float().cpu()
        stats[f"nll/{name}"] = (float(plain.sum()), float(len(plain)))
        for partition in term.partitions:
            for number, label in enumerate(partition.names):
                inside = partition.index == number
                if inside.any():
                    stats[f"nll/{name}/{label}"] = (float(plain[inside].sum()), float(inside.sum()))
    for name, term in plan.terms.items():
        terms.setdefault(name, LossTerm(logits.sum() * 0.0, term.count, term.scale))
    return LossTerms(terms, stats)
