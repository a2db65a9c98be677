"""Checks of a network: which token it predicts, which positions influence it, which rows of its tables have learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.doctor.finding import CAUSAL, FAULT, FROZEN, LEAK, NOTE, OK, SHIFTED, SHIFTS, SKIP, WARN, Finding
from ttt.doctor.plans import denoised_together
from ttt.doctor.truth import Planned, make_plans, planned, terms_of
from ttt.interfaces import LanguageModel
from ttt.rng import generator
from ttt.types import Kind, ModelInputs, PackedBatch, Plan

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.text.vocab import Vocabulary


def logits_of(model: LanguageModel, plan: Plan, source: Tensor, input_ids: Tensor | None = None) -> Tensor:
    """Logits f32 [n, V] at flat positions of a plan, computed as in training."""
    import torch

    from ttt.masks.materialize import materialize

    lm: Any = model
    device = next(model.parameters()).device
    with torch.no_grad():
        return model(ModelInputs(
            (plan.input_ids if input_ids is None else input_ids).to(device), plan.position_ids.to(device),
            materialize(plan.mask, plan.layout.to(device), lm.attention, lm.dtype), source.to(device),
        )).float().cpu()  # fmt: skip


def _nll(logits: Tensor, target: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.cross_entropy(logits, target, reduction="none")


def at_time(objective: Any, batches: Sequence[PackedBatch], time: float, seed: int) -> list[Planned]:
    """Plans of the run's objective with one t for all, no strategies, the same u for every t."""
    import torch

    out = []
    for i, batch in enumerate(batches):
        u = torch.rand(tuple(batch.ids.shape), generator=generator(seed, "doctor_times", i))
        plan = objective.plan_from(batch, objective.maskable(batch), torch.full((batch.n_docs,), time), u)
        out.append(planned(objective, batch, plan))
    return out


def check_model(
    model: LanguageModel, objective: Any, batches: Sequence[PackedBatch], vocab: Vocabulary, seed: int = 1,
    initial: LanguageModel | None = None,
) -> list[Finding]:  # fmt: skip
    """What the checkpoint predicts and sees.  ``initial``: the network it started from, which has its own preferences."""
    training = model.training
    model.eval()
    try:
        noisy = hasattr(objective, "plan_from") and hasattr(objective, "maskable")
        plans = at_time(objective, batches, 0.5, seed) if noisy else make_plans(objective, batches, seed)
        out = [f for name in SHIFTS if (f := _predicts(model, plans, name, vocab, initial))]
        if noisy:
            out += _noise_levels(model, objective, batches, vocab, seed)
        return [*out, *_sees(model, objective, plans)]
    finally:
        model.train(training)


def _predicts(
    model: LanguageModel, plans: Sequence[Planned], name: str, vocab: Vocabulary, initial: LanguageModel | None = None
) -> Finding | None:  # fmt: skip
    """Which neighbour do the logits of a term's positions fit best, by what the network has learnt?"""
    right = plans[0].shift(name)
    means, n = _shift_losses(model, plans, name)
    if not n:
        return None
    best = min(means, key=lambda s: means[s])
    shown = ", ".join(f"i{s:+d}".replace("i+0", "i") + f" {means[s]:.2f}" for s in sorted(means))
    text = (
        f"loss if logits at i predicted the token at {shown} nats ({n:,} positions, ln V = {math.log(vocab.size):.2f})"
    )
    clearly = max(0.1, 0.05 * means[right])
    if best == right or means[best] >= means[right] - clearly:
        return Finding(f"model/predicts/{name}", OK, text)
    if initial is not None:
        # A tied embedding prefers the token it reads before it has learnt anything: only what was learnt is a fault.
        start, _ = _shift_losses(initial, plans, name)
        learnt = {shift: start[shift] - means[shift] for shift in means}
        if learnt[best] < learnt[right] + clearly:
            why = "too early to tell: the weights it started from prefer the same (a tied embedding does)"
            return Finding(f"model/predicts/{name}", NOTE, f"{text}; {why}")
    return Finding(f"model/predicts/{name}", FAULT, text, SHIFTED)


def _shift_losses(model: LanguageModel, plans: Sequence[Planned], name: str) -> tuple[dict[int, float], int]:
    """(Mean loss by shift of the targets: the right one and its neighbours; number of positions)."""
    right = plans[0].shift(name)
    sums = {shift: [0.0, 0] for shift in (right - 1, right, right + 1)}
    for p, term in terms_of(plans, name):
        # The plan's own positions, but the truth's ids: a checkpoint trained on wrong targets gives itself away.
        known = term.source[p.truth.at(right)[term.source] >= 0]
        known = known[p.truth.at(right - 1)[known] >= 0]
        known = known[p.truth.at(right + 1)[known] >= 0]
        if not len(known):
            continue
        logits = logits_of(model, p.plan, known)
        for shift, entry in sums.items():
            entry[0] += float(_nll(logits, p.truth.at(shift)[known]).sum())
            entry[1] += len(known)
    n = int(sums[right][1])
    return {shift: total / max(n, 1) for shift, (total, _) in sums.items()}, n


def _noise_levels(
    model: LanguageModel, objective: Any, batches: Sequence[PackedBatch], vocab: Vocabulary, seed: int
) -> list[Finding]:
    """Loss of masked tokens at little, half and nearly full noise, and by the place in the span."""
    levels: dict[float, tuple[float, float]] = {}  # time -> mean, its standard error
    quarters: list[list[float]] = [[0.0, 0.0] for _ in range(4)]
    for time in (0.05, 0.5, 0.95):
        values: list[float] = []
        for p, term in terms_of(at_time(objective, batches, time, seed), "nar"):
            clean = p.truth.at(p.shift("nar"))[term.source]
            source = term.source[clean >= 0]
            if not len(source):
                continue
            nll = _nll(logits_of(model, p.plan, source), clean[clean >= 0])
            values += nll.tolist()
            if time == 0.5:
                for quarter, value in zip(_quarters(p, source + p.shift("nar")).tolist(), nll.tolist(), strict=True):
                    quarters[quarter][0] += value
                    quarters[quarter][1] += 1
        if values:
            levels[time] = float(np.mean(values)), float(np.std(values) / math.sqrt(len(values)))
    if len(levels) < 3:
        return [Finding("model/noise", SKIP, "no masked tokens at these noise levels")]
    shown = ", ".join(f"p {t}: {v:.2f} ± {e:.2f}" for t, (v, e) in levels.items())
    text = f"audio loss at {shown} nats"
    places = ", ".join("-" if not n else f"{total / n:.2f}" for total, n in quarters)
    out = [Finding("model/place_in_span", OK, f"audio loss by quarter of the span, p 0.5: {places} nats")]
    (easy, easy_error), (hard, hard_error) = levels[0.05], levels[0.95]
    if hard > 0.9 * math.log(vocab.size):
        return [Finding("model/noise", NOTE, f"{text} (too early to tell)"), *out]
    if easy > hard * 1.02 + 3 * math.hypot(easy_error, hard_error):
        return [
            Finding(
                "model/noise", FAULT, f"{text}: it must fall with less masking", "the context of a span is not used"
            ),
            *out,
        ]
    return [Finding("model/noise", OK, text), *out]


def _quarters(p: Planned, source: Tensor) -> Tensor:
    """Quarter of the document's audio run (of the masked set, where text is noised too) a position lies in: 0..3."""
    import torch

    layout = p.plan.layout
    keys = torch.stack([layout.doc.flatten(), layout.run_id.flatten().long(), layout.stream.flatten().long()], 1)
    position = p.plan.position_ids.flatten()
    audio = (layout.kind.flatten() == Kind.AUDIO) & (layout.doc.flatten() >= 0)
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    size = int(group.max()) + 1
    big = int(position.max()) + 1
    low = torch.full((size,), big).scatter_reduce(0, group[audio], position[audio], "amin")
    high = torch.full((size,), -1).scatter_reduce(0, group[audio], position[audio], "amax")
    g = group[source]
    share = (position[source] - low[g]) / (high[g] - low[g] + 1).clamp(min=1)
    return (share * 4).long().clamp(0, 3)


def _sees(model: LanguageModel, objective: Any, plans: Sequence[Planned]) -> list[Finding]:
    """Which positions influence a prediction: change one input token and compare logits."""
    from ttt.objective.library import Nar

    out = []
    for p, term in terms_of(plans, "nar"):
        group = denoised_together(objective, p.plan, isinstance(objective, Nar)).flatten()
        source = p.masked(term)[p.plan.layout.doc.flatten()[term.source] >= 0]
        pair = next(((q, k) for q, k in zip(source[:-1], source[1:]) if group[q] == group[k]), None)
        if pair is None:
            continue
        change = _change(model, p.plan, pair[0], int(pair[1]))
        if change < 1e-6:
            text = "a masked token's logits do not notice a change of the token behind it in its span"
            out.append(Finding("model/sees_ahead", FAULT, text, CAUSAL))
        else:
            out.append(Finding("model/sees_ahead", OK, "masked tokens notice changes behind them in their span"))
        break
    for p, term in terms_of(plans, "ar"):
        doc = p.plan.layout.doc.flatten()
        known = term.source[doc[term.source] >= 0]
        q = next((s for s in known if s + 1 < len(doc) and doc[s + 1] == doc[s]), None)
        if q is None:
            continue
        change = _change(model, p.plan, q, int(q) + 1)
        scale = float(logits_of(model, p.plan, q[None]).abs().max())
        if change > 1e-4 * max(scale, 1.0):
            text = "the logits that predict a token change with that token"
            out.append(Finding("model/sees_answer", FAULT, text, LEAK))
        else:
            out.append(Finding("model/sees_answer", OK, "logits that predict a token do not depend on it"))
        break
    return out


def _change(model: LanguageModel, plan: Plan, at: Tensor, changed: int) -> float:
    """Largest change of the logits at one position when another one's input becomes another token."""
    ids = plan.input_ids.clone()
    flat = ids.view(-1)
    flat[changed] = int(flat[changed] == 0)
    before, after = logits_of(model, plan, at[None]), logits_of(model, plan, at[None], ids)
    return float((after - before).abs().max())


def check_start(
    initial: LanguageModel, objective: Any, batches: Sequence[PackedBatch], vocab: Vocabulary, seed: int = 1
) -> list[Finding]:
    """Losses of the weights the run started from: random ones know nothing, so ln V."""
    out = []
    initial.eval()
    plans = make_plans(objective, batches, seed)
    for name in SHIFTS:
        total, n = 0.0, 0
        for p, term in terms_of(plans, name):
            total, n = (
                total + float(_nll(logits_of(initial, p.plan, term.source), term.target).sum()),
                n + len(term.source),
            )
        if not n:
            continue
        chance, mean = math.log(vocab.size), total / n
        text = f"untrained weights: {mean:.2f} nats a token, ln V = {chance:.2f}"
        if mean < 0.5 * chance:
            out.append(Finding(f"start/{name}", FAULT, text, LEAK))
        else:
            out.append(Finding(f"start/{name}", OK if mean < 1.3 * chance else WARN, text))
    return out


def check_rows(
    model: Any, initial: Any, used: Tensor, vocab: Vocabulary, first_new: int | None = None
) -> list[Finding]:
    """Did the rows of added tokens learn?  ``used`` i64: ids that occur in the data; compared with the initial weights.

    Weight decay shrinks rows that get no gradient, so directions are compared, and held against the text rows' own.
    """
    import torch
    import torch.nn.functional as F

    first_new = vocab.audio_start if first_new is None else first_new
    out = []
    first = initial.token_tables()
    pairs = [(name, table, first[name]) for name, table in model.token_tables().items()]
    new, old = used[used >= first_new], used[used < first_new]
    for name, after, before in pairs:
        a, b = after.detach().float().cpu(), before.detach().float().cpu()
        if not len(new):
            return [Finding("model/new_rows", SKIP, "no added token occurs in the data")]
        turned = 1 - F.cosine_similarity(a, b, dim=1).double()
        moved = (a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-12)
        still = (turned[new] < 1e-6) | (moved[new] == 0)
        t_new, t_old = float(turned[new].median()), float(turned[old].median()) if len(old) else 0.0
        text = f"{name}: of {len(new):,} added rows in use {int(still.sum()):,} still point where they started; "
        text += f"median turn {t_new:.2g}, text rows {t_old:.2g}"
        if float(still.double().mean()) > 0.5 and not bool(torch.equal(a, b)):
            out.append(Finding("model/new_rows", FAULT, text, FROZEN))
        elif bool(torch.equal(a, b)):
            out.append(Finding("model/new_rows", FAULT, f"{name}: no row at all has changed", "nothing learns"))
        else:
            out.append(Finding("model/new_rows", WARN if bool(still.any()) else OK, text))
    return out
