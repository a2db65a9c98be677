"""One optimiser update over a window of micro-batches, and its twin without an update, for validation.

Sums and counts travel together and are divided once, by the count over the whole window and all ranks: four uneven
micro-batches on two ranks give the gradient of one big batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ttt.errors import DataError, TttError
from ttt.interfaces import Objective
from ttt.rng import derive_seed, generator
from ttt.train.engines.base import Engine
from ttt.types import LossTerm, LossTerms, PackedBatch, Plan


class NonFiniteError(TttError):
    """A loss or gradient that is not a number; no update was made."""


@dataclass(frozen=True)
class StepReport:
    """What one update did, over all ranks.

    ``loss``: the minimised value; ``terms``: per term the mean without its scale; ``stats``: (sum, count) by name;
    ``grad_norm``: before clipping; ``tokens``: real ones, padding not counted; ``skipped``: gradients overflowed in float16,
    so that nothing was updated.
    """

    loss: float
    terms: Mapping[str, float]
    stats: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    grad_norm: float = 0.0
    tokens: int = 0
    skipped: bool = False


def train_step(
    engine: Engine, objective: Objective, window: Sequence[PackedBatch], *, update: int, seed: int, lr: float,
    beta1: float | None = None,
) -> StepReport:  # fmt: skip
    """Plans, counts over window and ranks, backward per micro-batch, one update.

    loss = sum over terms of scale * sum / global count; a term whose global count is zero is left out.  ``update``
    counts from 0.  Raises `NonFiniteError`, before the update, when a loss or the gradient is not finite; a gradient that a
    lower scale of losses may mend (`Engine.loss_scale`) only skips the update.
    """
    numbers = [micro_batch_number(i, engine.rank, engine.world_size) for i in range(len(window))]
    plans = [draw_plan(objective, batch, seed, update, n) for n, batch in zip(numbers, window, strict=True)]
    counts = engine.sum_over_ranks(total_counts(plans))
    if not any(counts.values()):
        raise DataError(f"step {update + 1}: no loss term has anything to predict in {name_examples(window)}")
    sums: list[list[tuple[str, Tensor]]] = []
    stats: dict[str, float] = {}
    for i, plan in enumerate(plans):
        # Dropout, if the backbone has any, draws from torch's global generator; this makes it a function of the batch too.
        torch.manual_seed(derive_seed(seed, "dropout", update, numbers[i]))
        with engine.micro_batch(last=i == len(plans) - 1):
            loss, (live, result) = engine.compute(partial(micro_batch_loss, objective=objective, plan=plan, counts=counts))
            if live or engine.lockstep:
                engine.backward(loss * engine.world_size)
        sums.append([(name, t.sum.detach()) for name, t in live.items()])
        _add_stats(stats, result.stats)
    tokens = sum(b.n_tokens for b in window)
    values = _values([t for part in sums for _, t in part])
    bad_terms: list[tuple[int, str]] = []
    local: dict[str, float] = {"tokens": tokens, **stats}
    at = 0
    for i, part in enumerate(sums):
        for name, _ in part:
            local[f"sum/{name}"] = local.get(f"sum/{name}", 0.0) + values[at]
            if not math.isfinite(values[at]):
                bad_terms.append((i, name))
            at += 1
    total = engine.sum_over_ranks({**local, "failed": float(bool(bad_terms))})
    if total["failed"]:
        raise NonFiniteError(_loss_message(update, bad_terms, window))
    norm = engine.step(lr, beta1)
    skipped = not math.isfinite(norm) and (engine.loss_scale or 0.0) >= 1.0
    if not math.isfinite(norm) and not skipped:
        raise NonFiniteError(
            f"step {update + 1}: the gradient's norm is {norm} (the losses are finite) in {name_examples(window)}; "
            "no update was made"
        )
    loss_value, terms = _means(total, counts, scales(plans))
    return StepReport(loss_value, terms, _merged_stats(total), norm, int(total["tokens"]), skipped)


def validation_losses(
    engine: Engine, objective: Objective, batches: Sequence[PackedBatch], seed: int
) -> tuple[float, dict[str, float], dict[str, tuple[float, float]]]:
    """(loss, mean per term, stats) of ``batches`` with the same noise every time; ranks take turns.

    The caller has put the model into evaluation mode.
    """
    local: dict[str, float] = {}
    factors: dict[str, float] = {}
    with torch.no_grad():
        rounds = -(-len(batches) // engine.world_size)
        for number in range(engine.rank, rounds * engine.world_size, engine.world_size):
            if number >= len(batches) and not engine.lockstep:
                continue
            i = min(number, len(batches) - 1)
            batch = batches[i]
            refuse_pairs(objective, batch)
            plan = objective.clean_plan(batch, generator(seed, "dev", i))
            result = engine.evaluate(partial(objective.terms, plan=plan))
            if i != number:  # a rank without a batch of its own only takes part in the collective calls
                continue
            factors.update(scales([plan]))
            for name, value in zip(result.terms, _values([t.sum for t in result.terms.values()]), strict=True):
                local[f"sum/{name}"] = local.get(f"sum/{name}", 0.0) + value
                local[f"count/{name}"] = local.get(f"count/{name}", 0.0) + float(result.terms[name].count)
            _add_stats(local, result.stats)
    total = engine.sum_over_ranks(local)
    counts = {k.removeprefix("count/"): v for k, v in total.items() if k.startswith("count/")}
    for name in counts:  # a rank without batches has seen no plan
        factors.setdefault(name, 1.0)
    loss, terms = _means(total, counts, factors)
    return loss, terms, _merged_stats(total)


def micro_batch_number(index: int, rank: int, world_size: int) -> int:
    """Place of a micro-batch in its update, over all ranks: another number of ranks cuts the same batches otherwise."""
    return index * world_size + rank


def draw_plan(objective: Objective, batch: PackedBatch, seed: int, update: int, number: int) -> Plan:
    """The plan of micro-batch ``number`` (over all ranks) of ``update``: its noise depends on nothing else."""
    refuse_pairs(objective, batch)
    return objective.plan(batch, generator(seed, "noise", update, 0, number))


def refuse_pairs(objective: Objective, batch: PackedBatch) -> None:
    """Raise `DataError` for preference pairs under an objective that would learn the rejected answers too."""
    if batch.pairs and not objective.reads_pairs:
        raise DataError(
            f"data: {name_examples([batch])} are preference pairs, which this objective would learn on both sides; train "
            "them with objective dpo, dpo_nar or dpo_ttt, or give it plain chats"
        )


def micro_batch_loss(
    model: nn.Module, objective: Objective, plan: Plan, counts: Mapping[str, float]
) -> tuple[Tensor, tuple[dict[str, LossTerm], LossTerms]]:
    """(loss [], (terms that count, the objective's whole result)) of one micro-batch."""
    result = objective.terms(model, plan)
    unknown = sorted(set(result.terms) - set(plan.terms))
    if unknown:
        raise TttError(f"objective: terms() returned {unknown[0]!r}, which plan() did not list")
    live = {name: t for name, t in result.terms.items() if counts[name] > 0}
    if live:
        loss = sum(t.scale * t.sum / counts[name] for name, t in live.items())
    else:
        loss = sum(t.sum * 0.0 for t in result.terms.values())
    return loss, (live, result)  # type: ignore[return-value]


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


def _loss_message(update: int, bad_terms: list[tuple[int, str]], window: Sequence[PackedBatch]) -> str:
    if not bad_terms:
        return f"step {update + 1}: another rank found a loss that is not finite; no update was made"
    terms = ", ".join(sorted({repr(name) for _, name in bad_terms}))
    where = [window[i] for i in sorted({i for i, _ in bad_terms})]
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
