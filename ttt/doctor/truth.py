"""The clean token behind every position of a plan, whatever the objective appended or noised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttt.doctor.finding import SHIFTS
from ttt.rng import generator
from ttt.types import Kind, PackedBatch, Plan, PlanTerm

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.interfaces import Objective


@dataclass(frozen=True)
class Truth:
    """The clean batch, looked up by (document, position) for every position of a plan.

    ``at(shift)``: clean id of the token ``shift`` further on in the document, -1 where there is none; ``is_target``:
    may carry loss.  Flat i64 / bool [B * T].
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

    def is_target(self, shift: int) -> Tensor:
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
    ids[at], target[at], span[at] = batch.ids[inside], batch.target[inside], batch.run_id[inside].long()
    audio = torch.zeros_like(target)
    audio[at] = batch.kind[inside] == Kind.AUDIO
    doc, position = plan.layout.doc.flatten(), plan.position_ids.flatten()
    # A copy that goes on behind the last position of its span fills a block up with the span's last token.
    runs = int(max(batch.run_id.max(), plan.layout.run_id.max())) + 2
    row, column = audio.nonzero(as_tuple=True)
    last = torch.full((batch.n_docs * runs,), -1)
    last.scatter_reduce_(0, row * runs + span[row, column], column, "amax")
    end = last[doc.clamp(min=0) * runs + plan.layout.run_id.flatten().long()]
    beyond = (plan.layout.stream.flatten() == 1) & (doc >= 0) & (end >= 0) & (position > end)
    filler = torch.where(beyond, ids[doc.clamp(min=0), end.clamp(min=0)], -1)
    return Truth(ids, target, doc, position, filler)


@dataclass(frozen=True)
class Planned:
    """A batch, the plan the run's own objective made of it, and the truth about it."""

    batch: PackedBatch
    plan: Plan
    truth: Truth
    before: bool = False  # masked tokens are predicted by the position before (objective.logit_alignment=next)

    def shift(self, name: str) -> int:
        """From the position whose logits are used to the one that the term ``name`` predicts."""
        return SHIFTS[name] + (self.before and name == "nar")

    def masked(self, term: PlanTerm) -> Tensor:
        """Flat positions of the masked tokens that the term ``nar`` predicts."""
        return term.source + self.shift("nar")


def planned(objective: Any, batch: PackedBatch, plan: Plan) -> Planned:
    """A plan of the objective with the truth behind it."""
    return Planned(batch, plan, truth_of(batch, plan), getattr(objective, "logit_alignment", "same") == "next")


def make_plans(objective: Objective, batches: Sequence[PackedBatch], seed: int) -> list[Planned]:
    """Training plans with draws of their own."""
    plans = [objective.plan(b, generator(seed, "doctor", i)) for i, b in enumerate(batches)]
    return [planned(objective, b, p) for b, p in zip(batches, plans, strict=True)]


def terms_of(plans: Sequence[Planned], name: str) -> Iterator[tuple[Planned, PlanTerm]]:
    """Plans that have something to predict in the loss term ``name``."""
    for p in plans:
        if name in p.plan.terms and len(p.plan.terms[name].source):
            yield p, p.plan.terms[name]
