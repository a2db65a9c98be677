"""What an attention rule owes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.check import world
from ttt.check.core import Broken, NotSaid, need, prop
from ttt.interfaces import MaskRule
from ttt.masks import materialize as carriers
from ttt.masks.draw import letters, mask_text
from ttt.masks.library import run_offsets
from ttt.masks.materialize import materialize
from ttt.objective.dual_stream import with_copies
from ttt.types import Kind, Layout

PROMISES = ("nothing", "runs", "answer_runs", "blocks", "prompt", "document")


@lru_cache(maxsize=1)
def _layouts() -> tuple[Layout, ...]:
    return tuple(world.batch(seed).layout() for seed in range(3))


def _with_copy(block_length: int) -> Layout:
    """A batch with noisy copies behind every row, as the dual stream makes them."""
    from dataclasses import replace

    batch = world.batch(3)
    wide, group, _ = with_copies(
        batch, (batch.kind == Kind.AUDIO) & batch.noisable & batch.visible, block_length, fill=bool(block_length)
    )
    return replace(wide.layout(), stream=(group >= 0).to(torch.uint8))


def dense(rule: MaskRule, layout: Layout) -> Tensor:
    """The rule's mask bool [B, T, T]; `Broken` when its predicate gives anything else."""
    allowed, shape = carriers.dense(rule, layout), (*layout.shape, layout.shape[1])
    need(allowed.dtype == torch.bool, f"the predicate's values are {allowed.dtype}, not bool")
    need(tuple(allowed.shape) == shape, f"the predicate gives {list(allowed.shape)}, not {list(shape)}")
    return allowed


def _all_layouts(rule: MaskRule) -> Iterator[Layout]:
    yield from _layouts()
    yield _with_copy(rule.block_length)


def _show(layout: Layout, allowed: Tensor, wrong: Tensor, why: str) -> None:
    """Raise `Broken` for the first cell of ``wrong`` bool [B, T, T], if there is one."""
    cells = wrong.nonzero()
    if not len(cells):
        return
    b, q, k = (int(x) for x in cells[0])
    strip = letters(layout.kind[b], layout.stream[b])
    names = {"t": "text", "a": "audio", "n": "noisy", ".": "padding"}
    verb = "sees" if bool(allowed[b, q, k]) else "does not see"
    # From the document's begin to what is needed: a drawing as small as the counter-example allows.
    inside = (layout.doc[b] == layout.doc[b, q]) | (layout.doc[b] == layout.doc[b, k])
    at = inside.nonzero().flatten()
    lo, hi = min(int(at[0]), q, k), max(int(at[-1]), q, k) + 1
    drawing = mask_text(
        allowed[b, lo:hi, lo:hi], layout.kind[b, lo:hi], stream=layout.stream[b, lo:hi], mark=[(q - lo, k - lo)]
    )
    raise Broken(
        f"row {b}: {names[str(strip[q])]} position {q} (document {int(layout.doc[b, q])}) {verb} "
        f"{names[str(strip[k])]} position {k} (document {int(layout.doc[b, k])}): {why}; {len(cells)} such pairs",
        drawing,
    )


def _real(layout: Layout) -> Tensor:
    """bool [B, T, T]: query and key are real tokens of one document."""
    same = layout.doc[:, :, None] == layout.doc[:, None, :]
    return same & layout.visible[:, :, None] & layout.visible[:, None, :]


def _ahead(layout: Layout) -> Tensor:
    column = torch.arange(layout.shape[1])
    return (column[None, :] > column[:, None])[None]


@prop("mask", "documents", "no position looks into another packed document")
def _documents(rule: MaskRule) -> None:
    for layout in _all_layouts(rule):
        allowed = dense(rule, layout)
        other = (layout.doc[:, :, None] != layout.doc[:, None, :]) & layout.visible[:, None, :] & layout.visible[:, :, None]
        _show(layout, allowed, allowed & other, "another document")


@prop("mask", "padding", "nobody looks at an invisible key")
def _padding(rule: MaskRule) -> None:
    for layout in _all_layouts(rule):
        allowed = dense(rule, layout)
        _show(layout, allowed, allowed & ~layout.visible[:, None, :], "it is padding")


@prop("mask", "future", "text never looks ahead, audio only inside its own run (unless `text_sees_future`)")
def _future(rule: MaskRule) -> None:
    if rule.text_sees_future:
        raise NotSaid("text_sees_future is set")
    for layout in _layouts():
        allowed = dense(rule, layout)
        audio = layout.kind == Kind.AUDIO
        one_run = audio[:, :, None] & audio[:, None, :] & (layout.run_id[:, :, None] == layout.run_id[:, None, :])
        _show(layout, allowed, allowed & _real(layout) & _ahead(layout) & ~one_run, "it lies in the future")


@prop("mask", "looks_ahead", "exactly those positions see what lies behind them that the rule says")
def _looks_ahead(rule: MaskRule) -> None:
    promise = rule.looks_ahead
    if not promise:
        raise NotSaid("the rule says nothing (looks_ahead is empty)")
    need(promise in PROMISES, f"looks_ahead is {promise!r}, none of {', '.join(PROMISES)}")
    for layout in _layouts():
        allowed, ahead = dense(rule, layout), _real(layout) & _ahead(layout)
        expected = _promised(promise, layout, rule.block_length) & ahead
        wrong = (allowed & ahead) != expected
        if not rule.text_sees_future:  # what `future` names is not named again
            wrong &= expected | (layout.kind == Kind.AUDIO)[:, :, None] & (layout.kind == Kind.AUDIO)[:, None, :] & (
                layout.run_id[:, :, None] == layout.run_id[:, None, :]
            )
        _show(layout, allowed, wrong, f"the rule says looks_ahead = {promise!r}")


def _promised(promise: str, layout: Layout, block_length: int) -> Tensor:
    """bool [B, T, T]: who sees whom when looking ahead inside one document; written apart from the rules themselves."""
    audio, prompt = layout.kind == Kind.AUDIO, layout.prompt
    out = torch.zeros(*layout.shape, layout.shape[1], dtype=torch.bool)
    if promise == "document":
        return ~out
    offset = run_offsets(layout)
    for b in range(layout.shape[0]):
        for q in range(layout.shape[1]):
            for k in range(q + 1, layout.shape[1]):
                here = slice(q, k + 1)
                if promise == "prompt":
                    fits = bool(prompt[b, here].all())
                    if not fits:
                        break
                    out[b, q, k] = True
                    continue
                if promise == "nothing" or not bool(audio[b, k]) or not bool(audio[b, q]):
                    break
                if promise == "answer_runs" and bool(prompt[b, q] | prompt[b, k]):
                    continue
                if promise == "blocks" and not bool(prompt[b, q]):
                    if int(offset[b, q]) // block_length != int(offset[b, k]) // block_length:
                        break
                out[b, q, k] = True
    return out


@prop("mask", "company", "a document's mask does not depend on what it is packed with")
def _company(rule: MaskRule) -> None:
    some = world.streams(7, 4)
    layout = world.pack([some[:2], some[2:]]).layout()
    together = dense(rule, layout)
    for number, (row, first) in enumerate([(0, 0), (0, len(some[0])), (1, 0), (1, len(some[2]))]):
        n = len(some[number])
        alone = dense(rule, world.pack([[some[number]]]).layout())[0]
        wrong = torch.zeros_like(together)
        here = slice(first, first + n)
        wrong[row, here, here] = together[row, here, here] != alone
        _show(layout, together, wrong, "alone in its row it is the other way round")


@prop("mask", "flex", "the predicate gives the same mask to flex_attention (torch's create_mask) as to dense attention")
def _flex(rule: MaskRule) -> None:
    from torch.nn.attention.flex_attention import create_mask

    for layout in (_layouts()[0], _with_copy(rule.block_length)):
        b, t = layout.shape
        allowed = dense(rule, layout)
        flexed = create_mask(rule.allow(layout), b, 1, t, t, device="cpu")[:, 0]
        _show(layout, allowed, flexed != allowed, "for flex_attention it is the other way round")


@prop("mask", "frozen", "positions called frozen never see anything appended later")
def _frozen(rule: MaskRule) -> None:
    for seed in range(40):
        now, grown, closed, n = _growing(seed)
        frozen = rule.frozen_prefix(now, closed)
        need(frozen.shape == closed.shape and not frozen.is_floating_point(), f"it gives {frozen}, not one length per row")
        before, after = dense(rule, now), dense(rule, grown)
        for b in range(len(closed)):
            f = int(frozen[b])
            need(0 <= f <= n, f"seed {seed}, row {b}: {f} of {n} positions are called frozen")
            wrong = torch.zeros_like(after)
            wrong[b, :f, n:] = after[b, :f, n:]
            wrong[b, :f, :n] = after[b, :f, :n] != before[b, :f, :n]
            state = "closed" if bool(closed[b]) else "open"
            _show(grown, after, wrong, f"the first {f} are called frozen ({state} run), {n} were there, the rest came later")


def _growing(seed: int) -> tuple[Layout, Layout, Tensor, int]:
    """(layout of n tokens, the same with more visible, closed, n): rows end in text, open or closed runs."""
    g = world.gen(seed)
    b, n, more = 3, 10, 5
    kind = torch.where(torch.rand(b, n + more, generator=g) < 0.65, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8)
    closed = torch.rand(b, generator=g) < 0.4
    kind[closed, n] = int(Kind.TEXT)
    column = torch.arange(n + more).expand(b, -1)
    start = torch.randint(0, n, (b, 1), generator=g)

    def layout(length: int) -> Layout:
        audio = (kind == Kind.AUDIO) & (column < length)
        return Layout(
            kind=torch.where(audio, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8), run_id=torch.cumsum(~audio, 1),
            doc=torch.zeros_like(column), position=column, prompt=column < start, visible=column < length,
            stream=torch.zeros_like(kind),
        )  # fmt: skip

    return layout(n), layout(n + more), closed, n


@prop("mask", "reach", "gradients of a one-layer network reach exactly the allowed positions (each token sees itself)")
def _reach(rule: MaskRule) -> None:
    layout = Layout(**{f.name: getattr(_layouts()[1], f.name)[:2] for f in fields(Layout)})
    allowed = dense(rule, layout)
    mask = materialize(rule, layout, "sdpa", torch.float32)
    g = world.gen(1)
    b, t, width = *layout.shape, 8
    x = torch.randn(b, t, width, generator=g)
    query, key, value = (torch.randn(width, width, generator=g) * 0.3 for _ in range(3))
    probe = torch.randn(width, generator=g)
    for at in range(t):
        leaf = x.clone().requires_grad_()
        seen = F.scaled_dot_product_attention(
            (leaf @ query)[:, None, at : at + 1], (leaf @ key)[:, None], (leaf @ value)[:, None], mask[:, :, at : at + 1]
        )[:, 0, 0]
        out = leaf[:, at] + seen  # [B, D], residual and attention
        (gradient,) = torch.autograd.grad((out @ probe)[layout.visible[:, at]].sum(), leaf, allow_unused=True)
        reached = gradient.abs().sum(-1) > 0  # [B, T]
        wrong = torch.zeros_like(allowed)
        wrong[:, at] = (reached != allowed[:, at]) & layout.visible[:, at, None]
        _show(layout, allowed, wrong, "the network does the opposite")
