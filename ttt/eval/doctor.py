"""Is a run healthy?  Checks of its log, of the batches and plans its code makes, and of its checkpoint.

Logs show that something is wrong, seldom what.  So the classic mistakes are looked for where they happen: a batch is built
again and planned by the run's own objective, and every input, target, weight and mask entry is compared with what the
definitions say (spec of TtT, sections 4-6); the checkpoint is asked what it really predicts, sees and has learnt.

Everything here takes plain objects; `ttt.cli.doctor` collects them from a run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.rng import generator
from ttt.types import Kind, ModelInputs, PackedBatch, Plan, PlanTerm

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ttt.interfaces import Objective
    from ttt.text.vocab import Vocabulary

OK, NOTE, SKIP, WARN, FAULT = "ok", "note", "skip", "warn", "FAULT"
# Loss terms by the distance from the position whose logits are used to the one that is predicted.
SHIFTS = {"ar": 1, "nar": 0}
SHIFTED, WRONG_MASK, PAD, NO_INVERSE_P, CAUSAL, FROZEN, LEAK = (
    "shifted labels", "wrong mask id", "pad in the loss", "missing 1/p", "causal mask in a diffusion span", "frozen new rows",
    "the answer is visible",
)  # fmt: skip
BAND_KEYS = ("train/loss", "train/nll/", "dev/loss", "dev/nll/")
BAND_STEPS = 12


@dataclass(frozen=True)
class Finding:
    """One check: its name, how it came out (ok, note, skip, warn, FAULT), what was seen, and the likely fault."""

    name: str
    status: str
    text: str
    fault: str = ""

    def line(self) -> str:
        """``FAULT batch/targets   shifted labels: ...``."""
        return f"{self.status:5}  {self.name:22}  {f'{self.fault}: ' if self.fault else ''}{self.text}"


# --- the log ---------------------------------------------------------------------------------------------------------


def check_log(
    rows: Sequence[Mapping[str, Any]], steps: int, vocab_size: int, lr_of: Callable[[int, float], float],
    restarts: int = 0, random_start: bool = True,
) -> list[Finding]:  # fmt: skip
    """Laws of any run.  ``rows``: the lines of metrics.jsonl; ``lr_of(update, seconds)``: the configured learning rate.

    ``restarts``: how often the run was taken up again (then with other settings, perhaps); ``random_start``: weights
    started at random, so that losses start near ln V.
    """
    if not rows:
        return [Finding("log/progress", FAULT, "metrics.jsonl has no line: nothing was trained")]
    found = [_progress(rows, steps), _finite(rows), _learning_rate(rows, lr_of, restarts), _throughput(rows)]
    found += _start(rows, vocab_size, random_start)
    found += _falling(rows, random_start)
    return [*found, *_masking_law(rows, vocab_size)]


def _progress(rows: Sequence[Mapping[str, Any]], steps: int) -> Finding:
    last = rows[-1]
    done = f"{last['step']:,} of {steps:,} updates"
    if last.get("train/epoch") is not None:
        done += f", {last['train/epoch']:.1f} epochs"
    if last.get("train/tokens") is not None:
        done += f", {int(last['train/tokens']):,} tokens"
    return Finding("log/progress", OK if last["step"] >= steps else NOTE, done)


def _finite(rows: Sequence[Mapping[str, Any]]) -> Finding:
    for row in rows:
        for key, value in row.items():
            if value is None and key.startswith(("train/", "dev/")):  # what answers score may be undefined
                return Finding("log/finite", FAULT, f"{key} is not a number at step {row['step']}", "divergence")
    norms = [r["train/grad_norm"] for r in rows if "train/grad_norm" in r]
    if not norms:
        return Finding("log/finite", SKIP, "no gradient norm in the log")
    if max(norms) == 0:
        return Finding("log/finite", FAULT, "the gradient is zero throughout", "nothing learns")
    middle = float(np.median(norms))
    text = f"gradient norm {min(norms):.3g} to {max(norms):.3g}, median {middle:.3g}"
    return Finding("log/finite", WARN if norms[-1] > 20 * middle else OK, text)


def _learning_rate(
    rows: Sequence[Mapping[str, Any]], lr_of: Callable[[int, float], float], restarts: int
) -> Finding:
    wrong, n, before = [], 0, 0.0
    for row in rows:
        if "train/lr" not in row:
            continue
        n += 1
        after = float(row.get("train/seconds", 0.0))
        # Between two lines of the log only the clock is unknown; the schedule falls with it.
        ends = sorted((lr_of(row["step"] - 1, after), lr_of(row["step"] - 1, before)))
        if not ends[0] * (1 - 1e-6) - 1e-15 <= row["train/lr"] <= ends[1] * (1 + 1e-6) + 1e-15:
            wrong.append((row["step"], row["train/lr"], ends[1]))
        before = after
    if not n:
        return Finding("log/learning_rate", SKIP, "no learning rate in the log")
    if not wrong:
        return Finding("log/learning_rate", OK, f"{n} values as configured")
    step, seen, wanted = wrong[0]
    text = f"{len(wrong)} of {n} differ from the schedule, first at step {step}: {seen:.3g}, configured {wanted:.3g}"
    if restarts:
        return Finding("log/learning_rate", WARN, f"{text}; the run was taken up {restarts} times, perhaps with other settings")
    return Finding("log/learning_rate", FAULT, text, "another learning rate than configured")


def _throughput(rows: Sequence[Mapping[str, Any]]) -> Finding:
    speeds = [r["train/tokens_per_s"] for r in rows if r.get("train/tokens_per_s")]
    if not speeds:
        return Finding("log/tokens_per_s", SKIP, "no speed in the log")
    quarter = max(1, len(speeds) // 4)
    first, last = float(np.median(speeds[:quarter])), float(np.median(speeds[-quarter:]))
    text = f"median {np.median(speeds):,.0f} tokens/s; first quarter {first:,.0f}, last {last:,.0f}"
    return Finding("log/tokens_per_s", WARN if len(speeds) >= 4 and last < first / 2 else OK, text)


def _losses(rows: Sequence[Mapping[str, Any]], prefix: str = "train/nll/") -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith(prefix) and value is not None:
                found.setdefault(key.removeprefix(prefix), []).append((row["step"], value))
    return found


def _start(rows: Sequence[Mapping[str, Any]], vocab_size: int, random_start: bool) -> list[Finding]:
    chance = math.log(vocab_size)
    terms = {k: v for k, v in _losses(rows).items() if "/" not in k}
    if not terms:
        return [Finding("log/first_loss", SKIP, "no losses by term in the log")]
    shown = ", ".join(f"{name} {values[0][1]:.2f}" for name, values in terms.items())
    text = f"first lines: {shown} nats; ln V = {chance:.2f}"
    high = [name for name, values in terms.items() if values[0][1] > (1.3 if random_start else 2.0) * chance]
    return [Finding("log/first_loss", WARN if high else OK, text + (": worse than chance" if high else ""))]


def _falling(rows: Sequence[Mapping[str, Any]], random_start: bool) -> list[Finding]:
    out = []
    for name, values in _losses(rows).items():
        if "/" in name or name in ("text", "audio"):
            continue
        tail = float(np.mean([v for _, v in values[-3:]]))
        text = f"{values[0][1]:.3f} -> {tail:.3f} nats a token"
        if tail < 0:
            out.append(Finding(f"log/{name}", FAULT, f"{text}: no loss is below 0", LEAK))
        elif tail < 1e-4:
            out.append(Finding(f"log/{name}", WARN, f"{text}: known by heart, or visible (see batch/visible)"))
        elif len(values) >= 4 and tail >= values[0][1] * 0.995:
            status, fault = (FAULT, "nothing learns") if random_start else (WARN, "")  # fine-tuning may start at its end
            out.append(Finding(f"log/{name}", status, f"{text}: it does not fall", fault))
        else:
            out.append(Finding(f"log/{name}", OK, text))
    return out


def _masking_law(rows: Sequence[Mapping[str, Any]], vocab_size: int) -> list[Finding]:
    """Less masking, more context, lower loss; seen only when something was learnt."""
    buckets = {k: v for k, v in _losses(rows, "train/nll/nar/").items() if k.startswith("p")}
    if len(buckets) < 2:
        return [Finding("log/masking", SKIP, "no losses by masking ratio in the log")]
    names = sorted(buckets)
    tails = {n: float(np.mean([v for _, v in buckets[n][-max(3, len(buckets[n]) // 5) :]])) for n in names}
    text = "audio loss by masking ratio: " + ", ".join(f"{n[1:].replace('_', '-')} %: {tails[n]:.2f}" for n in names)
    easy, hard = tails[names[0]], tails[names[-1]]
    if hard > 0.9 * math.log(vocab_size):
        return [Finding("log/masking", NOTE, f"{text} (too early to tell)")]
    if easy > hard * 1.05:
        return [Finding("log/masking", FAULT, f"{text}: it must fall with less masking", "the context of a span is not used")]
    return [Finding("log/masking", OK, text)]


# --- reference bands -------------------------------------------------------------------------------------------------

Bands = Mapping[str, Mapping[int, Sequence[float]]]


def make_bands(runs: Sequence[Sequence[Mapping[str, Any]]], slack: float) -> dict[str, dict[int, list[float]]]:
    """key -> step -> [low, high]: the range over healthy runs, widened on both sides by the share ``slack`` of it (at least of 1).

    Keys and steps that every run has; of the steps a dozen, first and last among them.
    """
    logs = [
        {k: {r["step"]: r[k] for r in rows if r.get(k) is not None} for k in {k for r in rows for k in r}} for rows in runs
    ]
    bands: dict[str, dict[int, list[float]]] = {}
    for key in sorted(set.intersection(*(set(log) for log in logs))):
        if not key.startswith(BAND_KEYS):
            continue
        steps = sorted(set.intersection(*(set(log[key]) for log in logs)))
        if not steps:
            continue
        chosen = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(BAND_STEPS, len(steps)))})
        bands[key] = {}
        for step in chosen:
            values = [log[key][step] for log in logs]
            low, high = min(values), max(values)
            # Losses near zero differ by large factors between seeds: the margin is a share of at least one nat.
            bands[key][step] = [round(low - slack * max(abs(low), 1), 5), round(high + slack * max(abs(high), 1), 5)]
    return bands


def check_bands(rows: Sequence[Mapping[str, Any]], bands: Bands) -> list[Finding]:
    """Every value of the log that has a band.  Above the band at the end, or at a third of the points: a fault."""
    at = {row["step"]: row for row in rows}
    out, inside, keys = [], 0, 0
    for key, band in bands.items():
        points = [(s, at[s][key], *band[s]) for s in sorted(band) if key in at.get(s, {})]
        keys += bool(points)
        high = [p for p in points if p[1] is None or p[1] > p[3]]
        low = [p for p in points if p[1] is not None and p[1] < p[2]]
        inside += len(points) - len(high) - len(low)
        if not high and not low:
            continue
        step, value, lowest, highest = (high or low)[-1]
        shown = "not a number" if value is None else f"{value:.4f}"
        text = f"{shown} at step {step}, healthy runs: {lowest:.4f} to {highest:.4f}"
        text += f" ({len(high)} of {len(points)} above, {len(low)} below)"
        serious = bool(high) and (high[-1] == points[-1] or 3 * len(high) >= len(points))
        out.append(Finding(f"bands/{key}", FAULT if serious else WARN, text, "outside the reference band" if serious else ""))
    if not keys:
        return [Finding("bands", NOTE, "no step of this run has a reference band: another number or length of steps")]
    return [Finding("bands", OK, f"{inside} values of {keys} keys inside"), *out]


# --- batches and plans -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What every position of a plan really is, looked up by (document, position) in the clean batch.

    ``at(shift)``: clean id of the token ``shift`` further on in the document, -1 where there is none; ``wanted``: may
    carry loss.  Flat i64 / bool [B * T].
    """

    ids: Tensor  # i64 [n_docs, L]
    target: Tensor  # bool [n_docs, L]
    doc: Tensor
    position: Tensor
    filler: Tensor  # i64 [B * T]: id of a copy that goes beyond its span, -1 elsewhere

    def at(self, shift: int) -> Tensor:
        """Clean ids."""
        if shift == 0:
            return self.filler.where(self.filler >= 0, self._look(self.ids, 0, -1))
        return self._look(self.ids, shift, -1).where(self.filler < 0, -1)

    def wanted(self, shift: int) -> Tensor:
        """Target flags."""
        return self._look(self.target, shift, 0).bool() | ((self.filler >= 0) & (shift == 0))

    def _look(self, values: Tensor, shift: int, none: int) -> Tensor:
        position = self.position + shift
        inside = (self.doc >= 0) & (position >= 0) & (position < values.shape[1])
        row, column = self.doc.clamp(min=0), position.clamp(0, values.shape[1] - 1)
        return values[row, column].long().where(inside, none)


def truth_of(batch: PackedBatch, plan: Plan) -> Truth:
    """The clean batch behind a plan, whatever the plan appended to it."""
    import torch

    inside = batch.doc >= 0
    width = int(batch.position.max()) + 1
    ids = torch.full((batch.n_docs, width), -1, dtype=torch.long)
    target = torch.zeros((batch.n_docs, width), dtype=torch.bool)
    span = torch.full((batch.n_docs, width), -1, dtype=torch.long)
    at = batch.doc[inside], batch.position[inside]
    ids[at], target[at], span[at] = batch.ids[inside], batch.target[inside], batch.span[inside].long()
    audio = torch.zeros_like(target)
    audio[at] = batch.kind[inside] == Kind.AUDIO
    doc, position = plan.layout.doc.flatten(), plan.position_ids.flatten()
    # A copy that goes on behind the last position of its span fills a block up with the span's last token.
    runs = int(max(batch.span.max(), plan.layout.span.max())) + 2
    row, column = audio.nonzero(as_tuple=True)
    last = torch.full((batch.n_docs * runs,), -1)
    last.scatter_reduce_(0, row * runs + span[row, column], column, "amax")
    end = last[doc.clamp(min=0) * runs + plan.layout.span.flatten().long()]
    beyond = (plan.layout.stream.flatten() == 1) & (doc >= 0) & (end >= 0) & (position > end)
    filler = torch.where(beyond, ids[doc.clamp(min=0), end.clamp(min=0)], -1)
    return Truth(ids, target, doc, position, filler)


@dataclass(frozen=True)
class Planned:
    """A batch, the plan the run's own objective made of it, and the truth about it."""

    batch: PackedBatch
    plan: Plan
    truth: Truth


def make_plans(objective: Objective, batches: Sequence[PackedBatch], seed: int) -> list[Planned]:
    """Training plans with draws of their own."""
    plans = [objective.plan(b, generator(seed, "doctor", i)) for i, b in enumerate(batches)]
    return [Planned(b, p, truth_of(b, p)) for b, p in zip(batches, plans, strict=True)]


def check_plans(objective: Objective, batches: Sequence[PackedBatch], vocab: Vocabulary, seed: int = 1) -> list[Finding]:
    """Targets, inputs, weights and masks of batches as the run's own code makes them."""
    plans = make_plans(objective, batches, seed)
    names = sorted({name for p in plans for name, t in p.plan.terms.items() if len(t.source)})
    out = []
    for name in names:
        if name not in SHIFTS:
            out.append(Finding(f"batch/targets/{name}", SKIP, "a term of a plug-in: what it predicts is not known here"))
            continue
        out += [_targets(plans, name), _loss_positions(plans, name)]
    out.append(_inputs(plans, vocab))
    out += _weights(objective, plans, seed)
    return [*out, *_masks(objective, plans)]


def _terms(plans: Sequence[Planned], name: str) -> Iterator[tuple[Planned, PlanTerm]]:
    for p in plans:
        if name in p.plan.terms and len(p.plan.terms[name].source):
            yield p, p.plan.terms[name]


def _targets(plans: Sequence[Planned], name: str) -> Finding:
    """Is every target the clean id of the position that is to be predicted?"""
    right, n = SHIFTS[name], 0
    hits = dict.fromkeys((-2, -1, 0, 1, 2), 0)
    for p, term in _terms(plans, name):
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
    right, n, pads, prompts = SHIFTS[name], 0, 0, 0
    for p, term in _terms(plans, name):
        exists = p.truth.at(right)[term.source] >= 0
        n += len(term.source)
        pads += int((~exists).sum())
        prompts += int((exists & ~p.truth.wanted(right)[term.source]).sum())
    where = f"batch/loss_on/{name}"
    if pads:
        return Finding(where, FAULT, f"{pads:,} of {n:,} targets lie on padding or behind the end of their document", PAD)
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
            source = p.plan.terms["nar"].source
            source = source[clean[source] >= 0]
            seen += int((given[source] == clean[source]).sum())
        n += int(changed.sum())
    others = {i: c for i, c in ids.items() if i != vocab.mask_id}
    if others:
        worst = max(others, key=lambda i: others[i])
        text = f"{others[worst]:,} of {n:,} noised inputs carry id {worst}; the vocabulary's mask token is {vocab.mask_id}"
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

    if not all(hasattr(objective, a) for a in ("plan_from", "maskable", "weighting", "noise", "floor", "audio_normalize")):
        return []
    label = getattr(type(objective.weighting), "registered_name", type(objective.weighting).__name__)
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
            prob = (1 - objective.floor) * (1 - objective.noise.alpha(t)) + objective.floor
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
        text = f"weights are {per} whatever the masking probability" if flat else f"weights are off by up to {worst:.0%}"
        return [Finding("batch/weights", FAULT, f"{text}; {label} asks for {'1/(p N)' if per == '1/N' else '1/p'}", fault)]
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
    for p, term in _terms(plans, "nar"):
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
                spans += _span_pairs(allowed, _together(objective, p.plan, isinstance(objective, Nar)), known)
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


def _together(objective: Any, plan: Plan, whole: bool) -> Tensor:
    """i64 [B, T]: positions with one number are denoised together and have to see each other."""
    from ttt.masks.library import run_offsets

    layout = plan.layout
    if whole:
        return layout.doc.long()
    length = getattr(plan.mask, "block_length", 0)
    block = run_offsets(layout) // length if length else layout.doc.new_zeros(layout.doc.shape)
    big = max(int(layout.span.max()), int(block.max()), 1) + 1
    return (layout.doc.long() * big + layout.span.long()) * big + block.long()


# --- the checkpoint --------------------------------------------------------------------------------------------------


def logits_of(model: torch.nn.Module, plan: Plan, source: Tensor, input_ids: Tensor | None = None) -> Tensor:
    """Logits f32 [n, V] at flat positions of a plan, by the way training goes."""
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
        out.append(Planned(batch, plan, truth_of(batch, plan)))
    return out


def check_model(
    model: torch.nn.Module, objective: Any, batches: Sequence[PackedBatch], vocab: Vocabulary, seed: int = 1,
    trained: bool = True,
) -> list[Finding]:  # fmt: skip
    """What the checkpoint predicts and sees.  ``trained``: laws of learning apply."""
    training = model.training
    model.eval()
    try:
        noisy = hasattr(objective, "plan_from") and hasattr(objective, "maskable")
        plans = at_time(objective, batches, 0.5, seed) if noisy else make_plans(objective, batches, seed)
        out = [f for name in SHIFTS if (f := _predicts(model, plans, name, vocab))]
        if noisy:
            out += _noise_levels(model, objective, batches, vocab, seed)
        return [*out, *_sees(model, objective, plans)]
    finally:
        model.train(training)


def _predicts(model: torch.nn.Module, plans: Sequence[Planned], name: str, vocab: Vocabulary) -> Finding | None:
    """Which neighbour do the logits of a term's positions fit best?"""
    right = SHIFTS[name]
    sums = {shift: [0.0, 0] for shift in (right - 1, right, right + 1)}
    for p, term in _terms(plans, name):
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
    n = sums[right][1]
    if not n:
        return None
    means = {shift: total / n for shift, (total, _) in sums.items()}
    best = min(means, key=lambda s: means[s])
    shown = ", ".join(f"i{s:+d}".replace("i+0", "i") + f" {means[s]:.2f}" for s in sorted(means))
    text = f"loss if logits at i predicted the token at {shown} nats ({n:,} positions, ln V = {math.log(vocab.size):.2f})"
    if best != right and means[best] < means[right] - max(0.1, 0.05 * means[right]):
        return Finding(f"model/predicts/{name}", FAULT, text, SHIFTED)
    return Finding(f"model/predicts/{name}", OK, text)


def _noise_levels(
    model: torch.nn.Module, objective: Any, batches: Sequence[PackedBatch], vocab: Vocabulary, seed: int
) -> list[Finding]:
    """Loss of masked tokens at little, half and nearly full noise, and by the place in the span."""
    levels: dict[float, tuple[float, float]] = {}  # time -> mean, its standard error
    quarters: list[list[float]] = [[0.0, 0.0] for _ in range(4)]
    for time in (0.05, 0.5, 0.95):
        values: list[float] = []
        for p, term in _terms(at_time(objective, batches, time, seed), "nar"):
            clean = p.truth.at(0)[term.source]
            source = term.source[clean >= 0]
            if not len(source):
                continue
            nll = _nll(logits_of(model, p.plan, source), clean[clean >= 0])
            values += nll.tolist()
            if time == 0.5:
                for quarter, value in zip(_quarters(p, source).tolist(), nll.tolist(), strict=True):
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
        return [Finding("model/noise", FAULT, f"{text}: it must fall with less masking", "the context of a span is not used"), *out]
    return [Finding("model/noise", OK, text), *out]


def _quarters(p: Planned, source: Tensor) -> Tensor:
    """Quarter of the document's audio run (of the masked set, where text is noised too) a position lies in: 0..3."""
    import torch

    layout = p.plan.layout
    keys = torch.stack([layout.doc.flatten(), layout.span.flatten().long(), layout.stream.flatten().long()], 1)
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


def _sees(model: torch.nn.Module, objective: Any, plans: Sequence[Planned]) -> list[Finding]:
    """Change a token and watch who notices: the mask as the network really obeys it."""
    from ttt.objective.library import Nar

    out = []
    for p, term in _terms(plans, "nar"):
        group = _together(objective, p.plan, isinstance(objective, Nar)).flatten()
        source = term.source[p.plan.layout.doc.flatten()[term.source] >= 0]
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
    for p, term in _terms(plans, "ar"):
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


def _change(model: torch.nn.Module, plan: Plan, at: Tensor, changed: int) -> float:
    """Largest change of the logits at one position when another one's input becomes another token."""
    ids = plan.input_ids.clone()
    flat = ids.view(-1)
    flat[changed] = int(flat[changed] == 0)
    before, after = logits_of(model, plan, at[None]), logits_of(model, plan, at[None], ids)
    return float((after - before).abs().max())


def check_start(
    initial: torch.nn.Module, objective: Any, batches: Sequence[PackedBatch], vocab: Vocabulary, seed: int = 1
) -> list[Finding]:
    """Losses of the weights the run started from: random ones know nothing, so ln V."""
    out = []
    initial.eval()
    plans = make_plans(objective, batches, seed)
    for name in SHIFTS:
        total, n = 0.0, 0
        for p, term in _terms(plans, name):
            total, n = total + float(_nll(logits_of(initial, p.plan, term.source), term.target).sum()), n + len(term.source)
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
    pairs = [("embedding", model.hf.get_input_embeddings().weight, initial.hf.get_input_embeddings().weight)]
    head, first_head = model.hf.get_output_embeddings(), initial.hf.get_output_embeddings()
    if head is not None and head.weight is not pairs[0][1]:
        pairs.append(("head", head.weight, first_head.weight))
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


def faults(findings: Sequence[Finding]) -> list[str]:
    """Names of the faults, each once."""
    return list(dict.fromkeys(f.fault or f.name for f in findings if f.status == FAULT))
