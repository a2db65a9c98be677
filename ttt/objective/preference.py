"""Direct preference optimisation: a pair's chosen answer is to gain more, against a frozen reference, than the rejected one.

    loss = - log sigmoid( beta (r(chosen) - r(rejected)) ),   r(y) = log p(y | prompt) - log p_reference(y | prompt)

(Rafailov et al., arXiv 2305.18290, equation 7).  For a model that writes left to right log p is exact.  A masked-diffusion
model has a bound instead, estimated from masked copies of the answer (LLaDA 1.5, arXiv 2505.19223, section 3); its variance
biases the loss, and that paper's two measures against it are built in: every copy has its own number of masked tokens, drawn
evenly over all numbers, and the reference sees the very copies that the policy sees.

A pair is two documents of a batch (`ttt.types.PackedBatch.pairs`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ttt.diffusion.constraints import constraint_of
from ttt.diffusion.corrupt import NO_MASK, per_document
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.interfaces import Objective
from ttt.objective.library import Ar, Nar, TtT
from ttt.objective.losses import columns_together, target_nll
from ttt.objective.pairs import denoising_term, next_token_term
from ttt.registry import NonNegativeFloat, PositiveInt, component, components, name_of
from ttt.registry.families import OBJECTIVE
from ttt.types import Kind, LossTerm, LossTerms, PackedBatch, Plan, PlanTerm, TokenStream

NO_REFERENCE = "none"


def check_pairs(objective: Objective, examples: Iterable[TokenStream]) -> None:
    """Raise `DataError` for the first example that is no preference pair, under an objective that learns from pairs only."""
    if not objective.reads_pairs:
        return
    for example in examples:
        if not example.rejected:
            raise DataError(
                f"example {example.uid!r} is no preference pair, and objective {name_of(objective)!r} learns from pairs only; "
                "give it 'chosen' and 'rejected', or leave it out"
            )


@dataclass(frozen=True)
class PreferencePlan(Plan):
    """A plan whose targets belong to answers: ``document`` i64 [N] of each; ``pairs`` i64 [P, 2]; ``tokens`` f32 [documents]."""

    document: Tensor = None  # type: ignore[assignment]
    pairs: Tensor = None  # type: ignore[assignment]
    tokens: Tensor = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Preference(Objective):
    """What all three have: the loss, given the log-likelihoods of both answers under both models."""

    reads_pairs = True
    not_read: ClassVar[tuple[str, ...]] = ()  # fields of the class beside it that have no meaning here

    reference: str = ""  # folder of the frozen model (a run, a checkpoint or a model); none: there is no reference
    beta: NonNegativeFloat = 0.1
    label_smoothing: NonNegativeFloat = 0.0  # share of pairs whose labels are taken to be wrong, below 0.5 (conservative DPO)
    length: Literal["sum", "token"] = "sum"  # token: log p is divided by the tokens of the answer
    strategies: Any = components("strategy", ())

    def __post_init__(self) -> None:
        if self.label_smoothing >= 0.5:
            raise ValueError(f"label_smoothing must be below 0.5, got {self.label_smoothing}: half of the labels wrong say nothing")
        if self.strategies:
            raise ValueError("strategies: answers of a preference pair are compared as they are; leave the list empty")
        of = {f.name: f.default for f in dataclasses.fields(self)}
        for name in self.not_read:
            if getattr(self, name) != of[name]:
                raise ValueError(f"{name}: has no effect on preferences; leave it out")

    def plan_of(self, batch: PackedBatch, rows: PackedBatch, ids: Tensor, terms: list[PlanTerm]) -> PreferencePlan:
        """The plan of ``terms`` over ``rows``, copies of the batch's rows that `copies` made, with the inputs ``ids``."""
        if not batch.pairs or 2 * len(batch.pairs) != batch.n_docs:
            raise DataError(
                f"objective: a batch holds {batch.n_docs} documents and {len(batch.pairs)} preference pairs; every record needs "
                "'chosen' and 'rejected'"
            )
        source, target, weight = (torch.cat([getattr(t, key) for t in terms]) for key in ("source", "target", "weight"))
        term = PlanTerm(source, target, weight, float(len(batch.pairs)), columns=columns_together(terms))
        tokens = per_document(batch.target.float(), batch.doc, batch.n_docs).clamp(min=1)
        return PreferencePlan(
            ids, rows.position, rows.layout(), self.mask, {"dpo": term}, rows.joined,  # type: ignore[attr-defined]
            document=rows.doc.flatten()[source] % batch.n_docs, pairs=torch.tensor(batch.pairs), tokens=tokens,
        )  # fmt: skip

    def terms(self, model: nn.Module, plan: Plan) -> LossTerms:
        """Both models on the same plan."""
        assert isinstance(plan, PreferencePlan)
        term = plan.terms["dpo"]
        policy = self._log_p(model, plan)
        ratio = policy - self._log_p_reference(model, plan)
        if self.length == "token":
            ratio = ratio / plan.tokens.to(ratio.device)
        chosen, rejected = plan.pairs.to(ratio.device).unbind(1)
        margin = self.beta * (ratio[chosen] - ratio[rejected])
        s = self.label_smoothing
        loss = -(1 - s) * F.logsigmoid(margin) - s * F.logsigmoid(-margin)
        seen = {
            "reward/accuracy": margin > 0, "reward/margin": margin, "reward/chosen": self.beta * ratio[chosen],
            "reward/rejected": self.beta * ratio[rejected], "logp/chosen": policy[chosen], "logp/rejected": policy[rejected],
        }  # fmt: skip
        sums = torch.stack([v.detach().float().sum() for v in seen.values()]).tolist()
        stats = {name: (value, term.count) for name, value in zip(seen, sums, strict=True)}
        return LossTerms({"dpo": LossTerm(loss.sum(), term.count, term.scale)}, stats)

    def _log_p(self, model: Any, plan: PreferencePlan) -> Tensor:
        """log p of every document's answer, or its bound: f32 [documents]."""
        nll, _ = target_nll(model, plan)
        term = plan.terms["dpo"]
        found = nll.new_zeros(len(plan.tokens))
        if not len(term.source):
            return found + nll.sum() * 0.0
        return found.index_add(0, plan.document.to(nll.device), -nll * term.weight.to(nll.device))

    @torch.no_grad()
    def _log_p_reference(self, model: Any, plan: PreferencePlan) -> Tensor:
        if self.reference == NO_REFERENCE:
            return plan.tokens.new_zeros(len(plan.tokens)).to(next(model.parameters()).device)
        if not self.reference:
            raise ConfigError("objective.reference: no frozen model is named ('none': no reference)")
        lm: Any = getattr(model, "module", model)
        device = str(next(model.parameters()).device)
        return self._log_p(reference_model(self.reference, lm.attention, lm.dtype, device), plan)


@lru_cache(maxsize=1)
def reference_model(folder: str, attention: str, dtype: torch.dtype, device: str) -> Any:
    """The frozen network of a model folder.  Raises `CheckpointError`."""
    from ttt.model.arch import open_network

    if not (Path(folder) / "config.json").is_file():
        raise CheckpointError(f"objective.reference: {folder} holds no model (config.json is missing); name its folder")
    network: Any = open_network(folder, attention, dtype)
    return network.to(device).requires_grad_(False)


def copies(batch: PackedBatch, rows: Tensor) -> PackedBatch:
    """Rows ``rows`` i64 [R] of a batch, each with documents of its own: copy r of document d has the number r n_docs + d."""
    names = ("ids", "kind", "run_id", "doc", "position", "target", "noisable", "visible")
    taken = {name: getattr(batch, name)[rows] for name in names}
    doc = taken["doc"] + torch.arange(len(rows))[:, None] * batch.n_docs
    taken["doc"] = torch.where(taken["doc"] >= 0, doc, taken["doc"])
    n = len(rows)
    return dataclasses.replace(
        batch, **taken, n_docs=n * batch.n_docs, uids=batch.uids * n, tasks=batch.tasks * n, pairs=()
    )


def sets_of(batch: PackedBatch, maskable: Tensor, spans: bool, block: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that are filled together: (number of its set i64 [B, T], -1: none; sizes i64 [G]; place in its document i64 [G]).

    A set is all that is maskable in a document, or with ``spans`` one audio span of it, or (``block`` > 0) one block of a span.
    """
    at = maskable.flatten().nonzero().flatten()
    key = [batch.doc.flatten()[at]]
    if spans:
        key.append(batch.run_id.flatten()[at])
        _, run = torch.unique(torch.stack(key, 1), dim=0, return_inverse=True)
        first = torch.full((int(run.max()) + 1 if len(run) else 0,), batch.ids.numel()).scatter_reduce(0, run, at, "amin")
        key.append((at - first[run]) // block if block else torch.zeros_like(at))
    found, number = torch.unique(torch.stack(key, 1), dim=0, return_inverse=True)
    sets = torch.full(maskable.shape, -1).flatten()
    sets[at] = number
    doc = found[:, 0].contiguous()  # ascending
    place = torch.arange(len(doc)) - torch.searchsorted(doc, doc)
    return sets.view(maskable.shape), torch.bincount(number, minlength=len(doc)), place


def draw_masks(sets: Tensor, sizes: Tensor, draws: int, gen: Generator) -> tuple[Tensor, Tensor]:
    """(masked bool [draws, B, T], number of masked tokens k i64 [draws, G]) of every set, exactly k of n tokens each.

    Each k is uniform on 1..n, and the ``draws`` of a set lie evenly over 1..n (LLaDA, arXiv 2502.09992, its likelihood program
    get_log_likelihood.py; see also `ttt.likelihood.draws.spread_counts`).
    """
    first = (torch.rand(len(sizes), generator=gen) * sizes).long().clamp(max=sizes - 1)
    steps = torch.floor(torch.arange(draws)[:, None] * sizes / draws + 0.5).long()
    k = (first + steps) % sizes + 1
    at = (sets.flatten() >= 0).nonzero().flatten()
    mine = sets.flatten()[at]
    start = sizes.cumsum(0) - sizes
    masked = torch.zeros(draws, sets.numel(), dtype=torch.bool)
    for d in range(draws):
        order = torch.rand(len(at), generator=gen).argsort()
        order = order[mine[order].argsort(stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - start[mine[order]]
        masked[d, at] = rank < k[d][mine]
    return masked.view(draws, *sets.shape), k


@OBJECTIVE.register("dpo")
@dataclass(frozen=True)
class Dpo(_Preference, Ar):
    """DPO for models that write left to right, audio included: exact log-likelihoods (arXiv 2305.18290).

    ``reference``: folder of the frozen model (``none``: without one); ``beta``; ``label_smoothing``; ``length``.
    """

    not_read = ("normalize",)

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Next-token targets of both answers."""
        return self.plan_of(batch, batch, batch.ids, [next_token_term(batch, batch.target, "sum")])


@dataclass(frozen=True)
class _Masked(_Preference):
    """DPO by the bound (n / k) sum over masked -log q, with k uniform on 1..n (LLaDA, arXiv 2502.09992, equation 6)."""

    draws: PositiveInt = 8  # masked copies of every answer, all in one network call

    def masked_plan(self, batch: PackedBatch, gen: Generator, spans: bool) -> PreferencePlan:
        """Copies of the batch: with ``spans`` a clean one for the text, and for every set of tokens ``draws`` masked ones."""
        if batch.mask_id < 0:
            raise ConfigError(NO_MASK)
        objective: Any = self
        together = len(batch.space.codebooks) if batch.joined is not None and batch.space is not None else 1
        maskable = objective.maskable(batch) & batch.target
        sets, sizes, place = sets_of(batch, maskable, spans, self.mask.block_length * together)  # type: ignore[attr-defined]
        masked, k = draw_masks(sets, sizes, self.draws, gen)
        clean = torch.arange(len(batch.ids) if spans else 0)
        rows, hidden, draw = [clean], [torch.zeros(len(clean), *maskable.shape[1:], dtype=torch.bool)], [clean * 0]
        of = torch.where(sets >= 0, place[sets.clamp(min=0)], -1) if len(place) else sets
        for number in range(int(place.max()) + 1 if len(place) else 0):
            for d in range(self.draws):
                mine = masked[d] & (of == number)
                some = mine.any(1).nonzero().flatten()
                rows.append(some)
                hidden.append(mine[some])
                draw.append(torch.full_like(some, d))
        wide = copies(batch, torch.cat(rows)) if sum(map(len, rows)) else copies(batch, torch.arange(len(batch.ids)))
        noisy = torch.cat(hidden) if sum(map(len, rows)) else torch.zeros_like(wide.target)
        terms = []
        if spans:
            text = wide.target & (wide.kind == Kind.TEXT)
            text[len(clean) :] = False
            terms.append(next_token_term(wide, text, "sum"))
        if noisy.any():
            group = torch.where(noisy, torch.cat(draw)[:, None] * len(sizes) + sets[torch.cat(rows)], -1)
            share = (k / sizes).flatten()
            constraint = self.constraint if batch.joined is None else constraint_of(self.constraint)  # type: ignore[attr-defined]
            terms.append(denoising_term(
                wide, noisy, noisy, 1 / share / self.draws, share, "sum", group=group, constraint=constraint,
                with_ends=objective.learns_ends, logit_alignment=objective.logit_alignment,
            ))  # fmt: skip
        if not terms:
            raise DataError("objective: no answer of this batch has anything to predict; drop its records")
        return self.plan_of(batch, wide, torch.where(noisy, batch.mask_id, wide.ids), terms)


_TIMES = ("min_mask_prob", "text_scale", "audio_scale", "text_normalize", "audio_normalize", "times")


@OBJECTIVE.register("dpo_nar")
@dataclass(frozen=True)
class DpoNar(_Masked, Nar):
    """DPO for masked-diffusion models by the likelihood bound (VRPO of LLaDA 1.5, arXiv 2505.19223).

    The fields of `nar` that say what is masked count (``noised``, ``ends``, ``spans``, ``constraint``, ``logit_alignment``); how
    often it is follows from the bound.  ``draws``: masked copies of an answer.
    """

    mask: Any = component("mask", "full")
    not_read = (*_TIMES, "padding", "real_masks", "weigh")

    def __post_init__(self) -> None:
        _Preference.__post_init__(self)
        Nar.__post_init__(self)

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Every answer is one set of tokens."""
        return self.masked_plan(batch, gen, spans=False)

    clean_plan = plan


@OBJECTIVE.register("dpo_ttt")
@dataclass(frozen=True)
class DpoTtT(_Masked, TtT):
    """DPO for Text-to-Talk models: the text's likelihood is exact, that of each audio span is bounded given clean history.

    That is the factorisation of `ttt likelihood`.  A micro-batch costs one clean copy and, for each span (each block, under
    a mask of blocks) of the answer with most of them, ``draws`` masked ones.
    """

    mask: Any = component("mask", "hybrid")
    not_read = _TIMES

    def __post_init__(self) -> None:
        _Preference.__post_init__(self)
        TtT.__post_init__(self)

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Text on the clean copy, spans on masked ones."""
        return self.masked_plan(batch, gen, spans=True)

    clean_plan = plan
