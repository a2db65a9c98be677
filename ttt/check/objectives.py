"""What an objective owes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ttt.check import recordings, world
from ttt.check.core import PREPARE, Broken, NotSaid, need, prop
from ttt.interfaces import Objective
from ttt.masks.materialize import materialize
from ttt.types import Kind, ModelInputs, PackedBatch, Plan


def _batch(objective: Objective) -> PackedBatch:
    """What its architecture is fed with."""
    if objective.reads_pairs:
        return world.pairs(2)
    if objective.arch == "causal_lm":
        return world.batch(2)
    if objective.arch == "valle":
        return recordings.batch(2)
    raise NotSaid(f"there is no small world for architecture {objective.arch!r}")


def _network(objective: Objective) -> Any:
    _batch(objective)
    return world.network() if objective.arch == "causal_lm" else recordings.network(objective)


def _tokens(objective: Objective) -> None:
    if objective.arch != "causal_lm":
        raise NotSaid("said of objectives of causal LMs")


def _plans(objective: Objective, seed: int = 4) -> Iterator[tuple[str, PackedBatch, Plan]]:
    batch = _batch(objective)
    yield "plan", batch, objective.plan(batch, world.gen(seed))
    yield "clean_plan", batch, objective.clean_plan(batch, world.gen(seed))


def _prepare(objective: Objective) -> Objective:
    """Preferences are compared with a frozen model, which the small world has none of."""
    if objective.reads_pairs and not getattr(objective, "reference", "none"):
        return dataclasses.replace(objective, reference="none")  # type: ignore[type-var]
    return objective


PREPARE["objective"] = _prepare


@prop("objective", "deterministic", "the same batch and generator give the same plan")
def _deterministic(objective: Objective) -> None:
    first = list(_plans(objective))
    for _ in range(5):  # two draws may agree by chance
        for (name, _, one), (_, _, two) in zip(first, _plans(objective), strict=True):
            need(one.terms.keys() == two.terms.keys(), f"{name}: terms {list(one.terms)} and {list(two.terms)}")
            pairs = {"input_ids": (one.input_ids, two.input_ids), "position_ids": (one.position_ids, two.position_ids)}
            for key in one.terms:
                for part in ("source", "target", "weight"):
                    pairs[f"{key}.{part}"] = (getattr(one.terms[key], part), getattr(two.terms[key], part))
            for part, (a, b) in pairs.items():
                need(a.shape == b.shape and torch.equal(a, b), f"{name}: {part} differs between two calls with one seed")


@prop("objective", "input", "the batch it is handed stays as it is")
def _input(objective: Objective) -> None:
    batch = _batch(objective)
    kept = {f.name: getattr(batch, f.name).clone() for f in dataclasses.fields(batch) if f.name in _TENSORS}
    for make in (objective.plan, objective.clean_plan):
        make(batch, world.gen(4))
        for name, before in kept.items():
            need(torch.equal(getattr(batch, name), before), f"{make.__name__} wrote into batch.{name}")


_TENSORS = ("ids", "kind", "run_id", "doc", "position", "target", "noisable", "visible")


@prop("objective", "noise", "only answer positions are replaced, and by the mask token")
def _noise(objective: Objective) -> None:
    for name, batch, plan in _plans(objective):
        t = batch.ids.shape[1]  # copies of spans may follow
        origin = _origin(name, batch, plan)
        changed = plan.input_ids[:, :t] != batch.ids[origin]
        for row, i in changed.nonzero().tolist():
            b, now = int(origin[row]), int(plan.input_ids[row, i])
            need(bool(batch.noisable[b, i]), f"{name}: row {b} position {i} is no answer and became id {now}")
            need(now == batch.mask_id, f"{name}: row {b} position {i} became id {now}, not the mask token {batch.mask_id}")


def _origin(name: str, batch: PackedBatch, plan: Plan) -> Tensor:
    """Which row of the batch each row of a plan is a copy of, i64 [R]; a plan of as many rows has them in order."""
    if len(plan.input_ids) == len(batch.ids):
        return torch.arange(len(batch.ids))
    ids = plan.input_ids[:, None, : batch.ids.shape[1]]
    same = ((ids == batch.ids) | (ids == batch.mask_id)).all(2)  # [R, B]
    for row in (~same.any(1)).nonzero().flatten().tolist():
        raise Broken(f"{name}: row {row} is no copy of a row of the batch with some of its tokens masked")
    return same.long().argmax(1)


@prop("objective", "counts", "counts are positive and known before the network runs")
def _counts(objective: Objective) -> None:
    model = _network(objective)
    for name, _, plan in _plans(objective):
        need(plan.terms, f"{name} lists no loss term")
        for key, term in plan.terms.items():
            need(term.count > 0, f"{name}: count of term {key!r} is {term.count}")
        with torch.no_grad():
            found = objective.terms(model, plan).terms
        planned, after = ({k: float(x.count) for k, x in terms.items()} for terms in (plan.terms, found))
        need(planned == after, f"{name}: planned counts {planned}, counts after the network {after}")


@prop("objective", "pairs", "sources are real tokens, weights are >= 0, every source has one target")
def _pairs(objective: Objective) -> None:
    for name, _, plan in _plans(objective):
        visible = plan.layout.visible.flatten()
        for key, term in plan.terms.items():
            where, n = f"{name}: term {key!r}", len(term.source)
            need(len(term.target) == len(term.weight) == n, f"{where} has {n} sources, {len(term.target)} targets")
            need(not n or int(term.source.max()) < len(visible), f"{where} has a source outside the inputs")
            for source in term.source[~visible[term.source]].tolist()[:1]:
                raise Broken(f"{where}: source {source} is padding")
            need((term.weight >= 0).all() and torch.isfinite(term.weight).all(), f"{where} has a negative or infinite weight")


@prop("objective", "leak", "no source sees its own target: changing a target leaves its source's logits alone")
def _leak(objective: Objective) -> None:
    _tokens(objective)
    model = world.network()
    batch = _batch(objective)
    for name in ("plan", "clean_plan"):
        make = getattr(objective, name)
        plan = make(batch, world.gen(4))
        # Several times: two draws of noise may agree by chance (no noise at all is one of BANOM's outcomes).
        again = (make(batch, world.gen(4)).input_ids for _ in range(10))
        if not all(torch.equal(plan.input_ids, ids) for ids in again):
            raise NotSaid("it is not deterministic, so plans cannot be compared")
        logits = _logits(model, plan)
        for b, i in _probes(batch, plan):
            ids = batch.ids.clone()
            ids[b, i] = _other(int(ids[b, i]))
            changed = make(dataclasses.replace(batch, ids=ids), world.gen(4))
            _compare(name, plan, changed, logits, model, (b, i))


def _probes(batch: PackedBatch, plan: Plan) -> list[tuple[int, int]]:
    """A dozen target positions of both kinds, spread over the batch.

    A plan with copies may write one end token several times (``fill_blocks``): its copies then rightly see each other, so
    only codes and text are tried there.
    """
    v = world.tokenizer().vocab
    code = (batch.ids >= v.code_start) & (batch.ids < v.code_stop)
    usable = batch.target & batch.visible
    if plan.input_ids.shape != batch.ids.shape:
        usable = usable & (code | (batch.kind == Kind.TEXT))
    found: list[tuple[int, int]] = []
    for kind in (Kind.TEXT, Kind.AUDIO):
        at = (usable & (batch.kind == kind)).nonzero().tolist()
        found += [(b, i) for b, i in at[:: max(1, len(at) // 8)]]
    return found


def _other(token: int) -> int:
    """Another id of the same class: a code for a code, an end token for an end token, a text id for a text id."""
    v = world.tokenizer().vocab
    if v.code_start <= token < v.code_stop:
        return v.code_start + (token - v.code_start + 7) % (v.code_stop - v.code_start)
    if v.is_audio(token):
        return v.eoa_last_id if token == v.eoa_id else v.eoa_id
    return 5 if token != 5 else 6


@torch.no_grad()
def _logits(model, plan: Plan) -> Tensor:
    """Logits f32 [B * T, V] of every position of a plan; padding has none: zeros."""
    mask = materialize(plan.mask, plan.layout, model.attention, model.dtype)
    real = plan.layout.visible.flatten().nonzero().flatten()
    logits = model(ModelInputs(plan.input_ids, plan.position_ids, mask, real))
    return logits.new_zeros(plan.input_ids.numel(), logits.shape[1]).index_copy(0, real, logits)


def _compare(name: str, plan: Plan, changed: Plan, logits: Tensor, model, at: tuple[int, int]) -> None:
    after: Tensor | None = None
    for key, term in plan.terms.items():
        new = changed.terms[key]
        if not torch.equal(term.source, new.source):
            continue  # what is predicted depends on the ids: nothing to compare one by one
        hit = (term.target != new.target) & (term.weight > 0)
        if not hit.any():
            continue
        after = _logits(model, changed) if after is None else after
        for source in term.source[hit].tolist():
            difference = float((logits[source] - after[source]).abs().max())
            row, column = divmod(source, plan.input_ids.shape[1])
            need(
                difference <= 1e-4,
                f"{name}: term {key!r}: row {row} position {column} predicts the token at row {at[0]} position {at[1]} and "
                f"sees it (its logits change by {difference:.3g} with that token)",
            )


@prop("objective", "gradients", "the loss is finite and positive, its gradient reaches every parameter")
def _gradients(objective: Objective) -> None:
    model = _network(objective)
    reached: set[str] = set()
    for name, _, plan in _plans(objective):
        model.zero_grad()
        total = torch.stack([t.scale * t.sum for t in objective.terms(model, plan).terms.values()]).sum()
        value = float(total.detach())
        need(torch.isfinite(total) and value > 0, f"{name}: the summed loss is {value}")
        need(total.requires_grad, f"{name}: the loss is cut off from the network (no gradient)")
        total.backward()
        for parameter, p in model.named_parameters():
            reached |= {parameter} if p.grad is not None else set()
            need(p.grad is None or torch.isfinite(p.grad).all(), f"{name}: the gradient at {parameter} is not finite")
        if objective.arch == "causal_lm":  # each of its plans uses the whole network
            lost = [parameter for parameter, p in model.named_parameters() if p.grad is None]
            need(not lost, f"{name}: no gradient at {lost[0] if lost else ''}")
    lost = [parameter for parameter, _ in model.named_parameters() if parameter not in reached]
    need(not lost, f"no plan reaches {lost[0] if lost else ''}")


@prop("objective", "quiet", "a batch without audio gives finite sums and positive counts")
def _quiet(objective: Objective) -> None:
    _tokens(objective)
    if objective.reads_pairs:
        raise NotSaid("its batches are preference pairs, some of them without audio already")
    model = world.network()
    for make in (objective.plan, objective.clean_plan):
        with torch.no_grad():
            found = objective.terms(model, make(world.quiet_batch(), world.gen())).terms
        for key, term in found.items():
            good = bool(torch.isfinite(term.sum)) and term.count > 0
            need(good, f"{make.__name__}: term {key!r} is {float(term.sum)} / {term.count} on text alone")
