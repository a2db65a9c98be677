"""A small stand-in for a network, and how a sampler is asked to fill spans from it."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import torch

from tests.conftest import gen
from ttt.registry.families import SAMPLER
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import run_each

CODES, MASK, EOA, PAD, V = range(8), 8, 9, 10, 12  # id 11 may never be written
SMALL = {
    "block_length": 4, "gen_length": 12, "diffusion_steps": 6, "num_iterations": 4, "remasking_ratio": 0.6,
    "initial_length": 5, "length_increment": 3,
}  # fmt: skip


class Toy:
    """Logits that depend on the row's context and on every token of the tail, near ones most; remembers its calls."""

    def __init__(self, contexts, seed=0, end_bias=-2.0):
        g = gen(seed)
        self.contexts, self.calls = contexts, []
        self.place = 2 * torch.randn(64, V, generator=g, dtype=torch.float64)
        self.mix = torch.randn(V, V, generator=g, dtype=torch.float64)
        self.end_bias = end_bias

    def __call__(self, rows, tails, last, unconditional=""):
        self.calls.append((rows.tolist(), tails.clone(), unconditional))
        return torch.stack([self.row(self.contexts[r], t)[-last:] for r, t in zip(rows.tolist(), tails, strict=True)])

    def row(self, context, tail):
        at = torch.arange(len(tail), dtype=torch.float64)
        near = (-(at[:, None] - at[None]).abs()).exp()
        near.fill_diagonal_(0)
        logits = self.place[context : context + len(tail)] + near @ self.mix[tail]
        logits[:, EOA] += self.end_bias
        logits[:, MASK] += 9.0  # what may not be written is what it likes best
        logits[:, 11] += 9.0
        return logits.float()


FIXED = {"entropy_bound": {"remask"}}  # fields in which a sampler leaves no choice


def build(name, **more):
    known = {f.name for f in fields(SAMPLER.get(name))} - FIXED.get(name, set())
    return SAMPLER.build({"name": name, **{k: v for k, v in {**SMALL, **more}.items() if k in known}}, "s")


def request(toy, canvas="span", limits=(30, 3, 7), seed=0, **more):
    allowed = torch.zeros(len(limits), V, dtype=torch.bool)
    allowed[:, [*CODES, EOA]] = True
    base = SpanRequest(
        run=run_each(toy), mask_id=MASK, end_ids=[(EOA,)] * len(limits), allowed=allowed, exact=[None] * len(limits),
        limit=limits, gens=[gen(100 * seed + i) for i in range(len(limits))], force_end=canvas == "span",
        pad_id=None if canvas == "span" else PAD,
    )  # fmt: skip
    return replace(base, **more)


def fill(sampler, r):
    out = [[] for _ in range(r.rows)]
    ended = [False] * r.rows
    for block in sampler.span(r):
        assert not ended[block.row], "nothing comes after the end"
        out[block.row] += block.ids.tolist()
        ended[block.row] = block.ended
    return out


class Sure:
    """Every position is certain of its code to the degree listed, whatever is written; remembers what was open."""

    def __init__(self, confidences, ends=()):
        self.p, self.ends, self.open = confidences, ends, []

    def __call__(self, rows, tails, last, unconditional=""):
        at = tails.shape[1]
        self.open.append((tails[0, -last:] == MASK).nonzero().flatten().tolist())
        logits = torch.full((1, last, V), -torch.inf)
        for i, place in enumerate(range(at - last, at)):
            p = self.p[place]
            best, other = (EOA, 0) if place in self.ends else (place % 7 + 1, 0)
            logits[0, i, best], logits[0, i, other] = math.log(p), math.log(1 - p)
        return logits
