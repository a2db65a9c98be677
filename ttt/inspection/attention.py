"""How a model attends: entropy, distance and shares of attention, by layer, head and kind of position.

Letters: ``L`` layers, ``H`` heads, ``T`` positions of one row, ``q`` queries (who looks), ``k`` keys (what is looked at).
Every number is a mean over queries of one kind; sums and counts are kept, so that examples add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ttt.errors import ConfigError
from ttt.masks.materialize import dense
from ttt.registry import name_of
from ttt.types import Kind, PackedBatch, Plan

if TYPE_CHECKING:
    from ttt.interfaces import Objective

# What a position is: the prompt (system, user, template), the answer's text and audio, and what is masked at this time.
KINDS = ("prompt", "text", "audio", "mask")
# Sums over queries; `summary` divides.  most_entropy: of looking at everything allowed alike; ahead: at later positions.
MEASURES = ("entropy", "most_entropy", "distance", "ahead", *(f"to_{k}" for k in KINDS))


def plan_at(objective: Objective, batch: PackedBatch, time: float | None, gen: torch.Generator) -> Plan:
    """The objective's own plan of a batch, all documents noised at ``time`` in [0, 1]; None: its validation plan.

    Strategies are left out.  Raises `ConfigError` for an objective that noises nothing at a given time (it has no
    ``maskable`` and ``plan_from``, see `ttt.objective.library.TtT`).
    """
    if time is None:
        return objective.clean_plan(batch, gen)
    if not 0 <= time <= 1:
        raise ConfigError(f"--time: must lie in [0, 1], got {time}")
    if not has_time(objective):
        name = name_of(objective)
        raise ConfigError(f"--time: objective {name!r} has no diffusion time; leave the option out")
    maskable = objective.maskable(batch)  # type: ignore[attr-defined]
    u = torch.rand(tuple(batch.ids.shape), generator=gen)
    return objective.plan_from(batch, maskable, torch.full((batch.n_docs,), float(time)), u)  # type: ignore[attr-defined]


def has_time(objective: Objective) -> bool:
    """Can its batches be noised at a chosen time?"""
    return hasattr(objective, "maskable") and hasattr(objective, "plan_from")


def kinds_of(plan: Plan, mask_id: int, row: int = 0) -> np.ndarray:
    """Index into `KINDS` of every position i64 [T]; -1: padding."""
    ids, layout = plan.input_ids[row].cpu().numpy(), plan.layout
    kind, prompt, visible = (getattr(layout, n)[row].cpu().numpy() for n in ("kind", "prompt", "visible"))
    found = np.where(prompt, 0, np.where(kind == Kind.AUDIO, 2, 1))
    found = np.where(ids == mask_id, 3, found)
    return np.where(visible & (kind != Kind.PAD), found, -1)


@dataclass
class Tally:
    """Sums over the queries of one kind: ``sums`` f64 [L, H, len(MEASURES)], ``uniform`` f64 [4], ``n`` queries.

    ``uniform``: the shares that the same queries would give if they looked at everything allowed alike.
    """

    sums: np.ndarray
    uniform: np.ndarray = field(default_factory=lambda: np.zeros(len(KINDS)))
    n: int = 0

    def add(self, other: Tally) -> None:
        """Another example's queries."""
        self.sums = self.sums + other.sums
        self.uniform = self.uniform + other.uniform
        self.n += other.n


def measure(maps: Sequence[torch.Tensor], plan: Plan, mask_id: int) -> dict[str, Tally]:
    """Sums of one row, by kind of query (kinds that do not occur are left out).

    ``maps``: per layer f32 [H, T, T], rows sum to 1.  Distances are in tokens, by position: the noisy copy of a dual
    stream stands where its original does.
    """
    kinds = kinds_of(plan, mask_id)
    position = plan.position_ids[0].cpu().double()
    allowed = dense(plan.mask, plan.layout)[0].cpu().double()  # [q, k]
    away = position[None, :] - position[:, None]  # [q, k], > 0: the key lies behind the query
    of_kind = torch.stack([torch.from_numpy(kinds == i) for i in range(len(KINDS))], 1).double()  # [k, 4]
    number = allowed.sum(1).clamp(min=1)
    out: dict[str, Tally] = {}
    for i, name in enumerate(KINDS):
        rows = torch.from_numpy(np.flatnonzero(kinds == i))
        if not len(rows):
            continue
        sums = np.zeros((len(maps), maps[0].shape[0], len(MEASURES)))
        for layer, heads in enumerate(maps):
            a = heads[:, rows].double()  # [H, n, k]
            values = [
                -torch.special.xlogy(a, a).sum(-1), number[rows].log().expand(a.shape[0], -1), (a * away[rows].abs()).sum(-1),
                (a * (away[rows] > 0)).sum(-1), *(a @ of_kind).unbind(-1),
            ]  # fmt: skip
            sums[layer] = torch.stack([v.sum(-1) for v in values], -1).numpy()
        uniform = ((allowed[rows] @ of_kind) / number[rows, None]).sum(0).numpy()
        out[name] = Tally(sums, uniform, len(rows))
    return out


def averages(sums: np.ndarray, n: float) -> dict[str, Any]:
    """Means of one set of sums f64 [len(MEASURES)] over ``n`` queries."""
    s = dict(zip(MEASURES, sums.tolist(), strict=True))
    return {
        "entropy": s["entropy"] / n, "entropy_share": s["entropy"] / s["most_entropy"] if s["most_entropy"] else None,
        "distance": s["distance"] / n, "ahead": s["ahead"] / n, "to": {k: s[f"to_{k}"] / n for k in KINDS},
    }  # fmt: skip


def summary(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """``{query kind: {queries, uniform, layers: [{mean, heads}]}}``: entropy in nats, distance in tokens, shares of 1."""
    return {
        name: {
            "queries": t.n, "uniform": dict(zip(KINDS, (t.uniform / t.n).tolist(), strict=True)),
            "layers": [
                {"mean": averages(heads.mean(0), t.n), "heads": [averages(h, t.n) for h in heads]} for heads in t.sums
            ],
        }
        for name, t in tallies.items()
    }  # fmt: skip


def table(found: Mapping[str, Any], heads: bool = False) -> str:
    """The summary of one time for a terminal; a ``x1.8`` says how much more a kind gets than if all alike were looked at."""
    lines: list[str] = []
    for name in [k for k in KINDS if k in found and k != "prompt"] or list(found):
        part = found[name]
        seen = [k for k in KINDS if part["uniform"][k] > 0]
        lines.append(f"who looks: {name} ({part['queries']} positions)")
        header = f"  {'layer':>6}  {'entropy':>8} {'of most':>8} {'distance':>9} {'ahead':>6}"
        lines.append(header + "".join(f"  {'to ' + k:>13}" for k in seen))
        for number, layer in enumerate(part["layers"]):
            lines.append(_line(str(number), layer["mean"], part["uniform"], seen))
            if heads:
                lines += [_line(f"{number}.{h}", v, part["uniform"], seen) for h, v in enumerate(layer["heads"])]
        alike = "".join(f"  {_percent(part['uniform'][k]):>6} {'':6}" for k in seen)
        lines.append(f"  {'alike':>6}  {'':>8} {'100%':>8} {'':>9} {'':>6}{alike}".rstrip())
    return "\n".join(lines)


def _line(label: str, v: Mapping[str, Any], uniform: Mapping[str, float], seen: Sequence[str]) -> str:
    share = "-" if v["entropy_share"] is None else _percent(v["entropy_share"])
    cells = "".join(f"  {_percent(v['to'][k]):>6} x{v['to'][k] / uniform[k]:<5.2f}" for k in seen)
    return (
        f"  {label:>6}  {v['entropy']:8.3f} {share:>8} {v['distance']:9.1f} {_percent(v['ahead']):>6}{cells}".rstrip()
    )


def _percent(x: float) -> str:
    return f"{100 * x:.0f}%" if math.isfinite(x) else "-"
