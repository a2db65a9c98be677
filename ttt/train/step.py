"""One optimiser update over a window of micro-batches, and its twin without an update, for validation.

Sums and counts travel together and are divided once, by the count over the whole window and all ranks: four uneven
micro-batches on two ranks give the gradient of one big batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ttt.errors import DataError, TttError
from ttt.interfaces import Objective
from ttt.rng import derive_seed, generator
from ttt.train.engine import Engine
from ttt.types import PackedBatch, Plan


class NonFiniteError(TttError):
    """A loss or gradient that is not a number; no update was made."""


@dataclass(frozen=True)
class StepReport:
    """What one update did, over all ranks.

    ``loss``: the minimised value; ``terms``: per term the mean without its scale; ``stats``: (sum, count) by name;
    ``grad_norm``: before clipping; ``tokens``: real ones, padding not counted.
    """

    loss: float
    terms: Mapping[str, float]
    stats: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    grad_norm: float = 0.0
    tokens: int = 0


def train_step(
    engine: Engine, objective: Objective, window: Sequence[PackedBatch], *, update: int, seed: int, lr: float
) -> StepReport:
    """Plans, counts over window and ranks, backward per micro-batch, one update.

    loss = sum over terms of scale * sum / global count; a term whose global count is zero is left out.  ``update``
    counts from 0.  Raises `NonFiniteError`, before the update, when a loss or the gradient is not finite.
    """
    # Dropout, if the backbone has any, draws from torch's global generator; this makes it a function of the update too.
    torch.manual_seed(derive_seed(seed, "dropout", update, engine.rank))
    plans = [objective.plan(b, generator(seed, "noise", update, engine.rank, i)) for i, b in enumerate(window)]
    counts = engine.sum_over_ranks(total_counts(plans))
    if not any(counts.values()):
        raise DataError(f"step {update + 1}: no loss term has anything to predict in {name_examples(window)}")
    sums: list[list[tuple[str, Tensor]]] = []
    stats: dict[str, float] = {}
    for i, plan in enumerate(plans):
        with engine.micro_batch(last=i == len(plans) - 1):
            with engine.autocast():
                found = objective.terms(engine.model, plan)
            unknown = sorted(set(found.terms) - set(plan.terms))
            if unknown:
                raise TttError(f"objective: terms() returned {unknown[0]!r}, which plan() did not list")
            live = {name: t for name, t in found.terms.items() if counts[name] > 0}
            if live:
                loss = sum(t.scale * t.sum / counts[name] for name, t in live.items()) * engine.world_size
                engine.backward(loss)  # type: ignore[arg-type]
        sums.append([(name, t.sum.detach()) for name, t in live.items()])
        _add_stats(stats, found.stats)
    tokens = sum(b.n_tokens for b in window)
    values = _values([t for part in sums for _, t in part])
    bad: list[tuple[int, str]] = []
    local: dict[str, float] = {"tokens": tokens, **stats}
    at = 0
    for i, part in enumerate(sums):
        for name, _ in part:
            local[f"sum/{name}"] = local.get(f"sum/{name}", 0.0) + values[at]
            if not math.isfinite(values[at]):
                bad.append((i, name))
            at += 1
    total = engine.sum_over_ranks({**local, "bad": float(bool(bad))})
    if total["bad"]:
        raise NonFiniteError(_loss_message(update, bad, window))
    norm = engine.step(lr)
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"step {update + 1}: the gradient's norm is {norm} (the losses are finite) in {name_examples(window)}; "
            "no update was made"
        )
    loss_value, terms = _means(total, counts, scales(plans))
    return StepReport(loss_value, terms, _merged_stats(total), norm, int(total["tokens"]))


def validation_losses(
    engine: Engine, objective: Objective, batches: Sequence[PackedBatch], seed: int
) -> tuple[float, dict[str, float], dict[str, tuple[float, float]]]:
    """(loss, mean per term, stats) of ``batches`` with the same noise every time; ranks take turns.

    The caller has put the model into evaluation mode.
    """
    local: dict[str, float] = {}
    factors: dict[str, float] = {}
    with torch.no_grad():
        for i, batch in enumerate(batches):
            if i % engine.world_size != engine.rank:
                continue
            plan = objective.clean_plan(batch, generator(seed, "dev", i))
            factors.update(scales([plan]))
            with engine.autocast():
                found = objective.terms(engine.model, plan)
            for name, value in zip(found.terms, _values([t.sum for t in found.terms.values()]), strict=True):
                local[f"sum/{name}"] = local.get(f"sum/{name}", 0.0) + value
                local[f"count/{name}"] = local.get(f"count/{name}", 0.0) + float(found.terms[name].count)
            _add_stats(local, found.stats)
    total = engine.sum_over_ranks(local)
    counts = {k.removeprefix("count/"): v for k, v in total.items() if k.startswith("count/")}
    for name in counts:  # a rank without batches has seen no plan
        factors.setdefault(name, 1.0)
    loss, terms = _means(total, counts, factors)
    return loss, terms, _merged_stats(total)


def total_counts(plans: Sequence[Plan]) -> dict[str, float]:
    """Count of each term over the window."""
    counts: dict[str, float] = {}
    for plan in plans:
        for name, term in plan.terms.items():
            counts[name] = counts.get(name, 0.0) + float(term.count)
    return counts


def scales(plans: Sequence[Plan]) -> dict[str, float]:
    """Scale of each term."""
    return {name: term.scale for plan in plans for name, term in plan.terms.items()}


def name_examples(batches: Sequence[PackedBatch], most: int = 8) -> str:
    """``examples a, b and 3 more``: for messages."""
    uids = [uid for b in batches for uid in b.uids]
    if not uids:
        return "examples without names"
    rest = f" and {len(uids) - most} more" if len(uids) > most else ""
    return f"examples {', '.join(uids[:most])}{rest}"


def _loss_message(update: int, bad: list[tuple[int, str]], window: Sequence[PackedBatch]) -> str:
    if not bad:
        return f"step {update + 1}: another rank found a loss that is not finite; no update was made"
    terms = ", ".join(sorted({repr(name) for _, name in bad}))
    where = [window[i] for i in sorted({i for i, _ in bad})]
    return f"step {update + 1}: loss term {terms} is not finite in {name_examples(where)}; no update was made"


def _values(tensors: Sequence[Tensor]) -> list[float]:
    # One transfer for all: each would otherwise wait for the device.
    return torch.stack([t.double() for t in tensors]).tolist() if tensors else []


def _means(
    total: Mapping[str, float], counts: Mapping[str, float], factors: Mapping[str, float]
) -> tuple[float, dict[str, float]]:
    terms = {name: total[f"sum/{name}"] / n for name, n in counts.items() if n > 0 and f"sum/{name}" in total}
    return sum(factors.get(name, 1.0) * value for name, value in terms.items()), terms


def _add_stats(into: dict[str, float], stats: Mapping[str, tuple[float, float]]) -> None:
    for name, (value, count) in stats.items():
        into[f"stat/{name}"] = into.get(f"stat/{name}", 0.0) + float(value)
        into[f"stat_count/{name}"] = into.get(f"stat_count/{name}", 0.0) + float(count)


def _merged_stats(total: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    prefix = "stat/"
    names = [k.removeprefix(prefix) for k in total if k.startswith(prefix)]
    return {n: (total[prefix + n], total[f"stat_count/{n}"]) for n in names}
