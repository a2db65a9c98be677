"""Cross-entropy of an output layer without ever holding its logits: some rows at a time, [chunk, V] instead of [N, V].

A plain output layer takes three matrix products a chunk, all in the forward pass: logits, then, since softmax minus one-hot
is the gradient, both gradients right away (the idea of Liger Kernel, Hsu et al., arXiv 2410.10989).  That needs the factor
each row's loss will have in the total.  The caller says what it expects (``expected``, up to one common factor); should the
factors of the backward pass be others, the gradients are computed anew from them.

An output layer that is more than a matrix (adapters, weights sharded over ranks: whoever wraps a module wants it *called*)
is run chunk by chunk under activation checkpointing: the same memory, one product more.

Where a target's softmax goes over some ids only (`Columns`), rows are worked on by their set of ids, and only those rows of
the matrix are multiplied: seven positions of 4,096 codes cost a thirty-eighth of a vocabulary of 157,000.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ttt.model.rows import SplitHead
from ttt.types import Columns

CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}  # of one chunk's logits: fits a CPU's cache, fills a GPU
LEAST_ROWS = 64  # fewer make slow matrix products
_AGREE = 1.0e-6  # relative difference up to which factors count as the expected ones


Ranges = tuple[tuple[int, int], ...]
# Rows of the input (None: all, in order) whose softmax goes over some ids (None: all).
Group = tuple[Tensor | None, Ranges | None]


def chunked_nll(
    head: nn.Module, hidden: Tensor, targets: Tensor, expected: Tensor | None = None, rows: int = 0,
    columns: Columns | None = None,
) -> Tensor:  # fmt: skip
    """-log softmax(head(hidden))[targets], f32 (f64 for f64) [N], with the memory of one chunk.

    ``hidden`` [N, D], ``targets`` i64 [N]; ``expected`` f32 [N]: factor of each row in the loss, up to a common one
    (None: all alike); ``rows`` of a chunk (0: by `CHUNK_BYTES`); ``columns``: over which ids each softmax goes (None: all),
    its target must be among them.
    """
    return chunked_scores(head, hidden, targets, expected, rows, columns, False)[0]


def chunked_scores(
    head: nn.Module, hidden: Tensor, targets: Tensor, expected: Tensor | None = None, rows: int = 0,
    columns: Columns | None = None, hits: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(`chunked_nll`, bool [N]: is the target the likeliest of its ids; empty without ``hits``)."""
    size = rows or chunk_rows(getattr(head, "out_features", 0), hidden.device)
    groups = _groups(columns, hidden.device)
    if not is_plain(head):
        return _called(head, hidden, targets, size, groups, hits)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    else:
        dtype = hidden.dtype
    if expected is None:
        expected = torch.ones(len(hidden), device=hidden.device)
    assert isinstance(head, nn.Linear)
    return _ChunkedNll.apply(
        hidden, head.weight, head.bias, targets, expected, size, dtype, torch.is_grad_enabled(), groups, hits
    )  # fmt: skip


def _groups(columns: Columns | None, device: torch.device) -> list[Group]:
    if columns is None:
        return [(None, None)]
    numbers = columns.index.unique().tolist()
    return [
        ((columns.index == n).nonzero().flatten().to(device), None if n < 0 else columns.sets[n]) for n in numbers
    ]  # fmt: skip


def column_of(ids: Tensor, ranges: Ranges) -> Tensor:
    """Places of ``ids`` i64 [n] in the ids of ``ranges`` put side by side.

    >>> column_of(torch.tensor([7, 20]), ((5, 9), (20, 21))).tolist()
    [2, 4]
    """
    found, before = torch.zeros_like(ids), 0
    for start, stop in ranges:
        found = torch.where((ids >= start) & (ids < stop), ids - start + before, found)
        before += stop - start
    return found


def take(values: Tensor, ranges: Ranges, dim: int = 0) -> Tensor:
    """The entries of ``ranges`` along ``dim``, side by side; a view where there is one range."""
    parts = [values.narrow(dim, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def chunk_rows(vocab: int, device: torch.device) -> int:
    """Rows of a chunk for a vocabulary of ``vocab`` (0: unknown)."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(LEAST_ROWS, budget // (4 * max(vocab, 1 << 16 if not vocab else 1)))


def is_plain(head: nn.Module) -> bool:
    """Is ``head`` nothing but its own matrix and bias, whole on this rank?"""
    # ZeRO-3 marks the parameters it shards and hooks every module.  Its engine holds the output layer's whole for all of a
    # pass, and ranks with different numbers of chunks must not call the module, which would gather it anew each time.
    if type(head) is nn.Linear and hasattr(head.weight, "ds_id"):
        return head.weight.numel() == getattr(head.weight, "ds_numel", 0)
    hooks = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    if type(head) is not nn.Linear or hooks:
        return False
    return type(head.weight) is nn.Parameter  # other kinds of sharding replace the type


def _held(head: nn.Module) -> bool:
    """Does ZeRO-3 shard ``head``, and is it whole for now?"""
    parts = list(head.parameters())
    return all(hasattr(p, "ds_id") and p.numel() == getattr(p, "ds_numel", 0) for p in parts)


def _called(
    head: nn.Module, hidden: Tensor, targets: Tensor, size: int, groups: list[Group], hits: bool
) -> tuple[Tensor, Tensor]:
    # As for plain layers under ZeRO-3: ranks with different numbers of chunks must not call the module itself.
    logits_of = head.forward if isinstance(head, SplitHead) and _held(head) else head

    def piece(h: Tensor, t: Tensor, ranges: Ranges | None) -> tuple[Tensor, Tensor]:
        logits = _wide(logits_of(h))
        if ranges is not None:
            logits, t = take(logits, ranges, 1), column_of(t, ranges)
        hit = logits.detach().gather(1, t[:, None])[:, 0] >= logits.detach().amax(1) if hits else t[:0] > 0
        return F.cross_entropy(logits, t, reduction="none"), hit

    keep = torch.is_grad_enabled() and len(hidden) > size
    order, nll, hit = [], [], []
    for rows, ranges in groups:
        at = torch.arange(len(hidden), device=hidden.device) if rows is None else rows
        for some in at.split(size):
            h, t = hidden[some], targets[some]
            a, b = checkpoint(piece, h, t, ranges, use_reentrant=False) if keep else piece(h, t, ranges)
            order.append(some)
            nll.append(a)
            hit.append(b)
    back = torch.cat(order).argsort()
    found = torch.cat(hit)
    return torch.cat(nll)[back], found[back] if hits else found


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _ChunkedNll(torch.autograd.Function):
    """See the module's docstring.  Gradients kept from the forward pass are handed out once and then forgotten."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, expected: Tensor, size: int,
        dtype: torch.dtype, with_gradients: bool, groups: list[Group], hits: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(hidden, weight, bias, targets, expected)
        ctx.size, ctx.dtype, ctx.kept, ctx.groups = size, dtype, None, groups
        factors = expected if with_gradients else None
        needs = ctx.needs_input_grad
        nll, hit, ctx.kept = _run(hidden, weight, bias, targets, factors, size, dtype, needs, groups, hits)
        ctx.mark_non_differentiable(hit)
        return nll, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple:  # type: ignore[override]
        hidden, weight, bias, targets, expected = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        common = _common_factor(grad, expected) if kept is not None else None
        if common is None:
            kept = None  # frees it before the next is made
            needs = ctx.needs_input_grad
            _, _, kept = _run(hidden, weight, bias, targets, grad, ctx.size, ctx.dtype, needs, ctx.groups, False)
        elif common != 1.0:
            kept = tuple(None if g is None else g.mul_(common) for g in kept)
        return *kept, None, None, None, None, None, None, None


def _common_factor(grad: Tensor, expected: Tensor) -> float | None:
    """The number c with grad = c * expected, or None."""
    e, g = expected.double(), grad.double()
    norm = float((e * e).sum())
    if norm == 0:
        return None
    c = float((g * e).sum()) / norm
    return c if bool(((g - c * e).abs() <= _AGREE * abs(c) * e.abs()).all()) else None


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, factors: Tensor | None, size: int,
    dtype: torch.dtype, needs: tuple[bool, ...], groups: list[Group], hits: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor | None] | None]:  # fmt: skip
    """(nll [N], hits [N] or [0], gradients of sum(factors * nll) by hidden, weight and bias; None without factors)."""
    with torch.autocast(hidden.device.type, enabled=False):
        h_all, w = hidden.to(dtype), weight.to(dtype)
        b = None if bias is None else bias.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        want = factors is not None
        # Sums over many chunks keep full precision whatever the type of the weights.
        d_hidden = torch.empty_like(h_all) if want and needs[0] else None
        d_weight = weight.new_zeros(weight.shape, dtype=wide) if want and needs[1] else None
        d_bias = weight.new_zeros(len(weight), dtype=wide) if want and bias is not None and needs[2] else None
        nll = hidden.new_empty(len(hidden), dtype=wide)
        hit = torch.zeros(len(hidden) if hits else 0, dtype=torch.bool, device=hidden.device)
        for rows, ranges in groups:
            ws, bs = (w, b) if ranges is None else (take(w, ranges), None if b is None else take(b, ranges))
            n, step = (len(hidden) if rows is None else len(rows)), size * max(1, len(w) // max(1, len(ws)))
            for start in range(0, n, step):
                at = slice(start, start + step) if rows is None else rows[start : start + step]
                h = h_all[at]
                logits = F.linear(h, ws, bs).to(wide)  # [chunk, ids], the only one there is
                target = (targets[at] if ranges is None else column_of(targets[at], ranges))[:, None]
                lse = logits.logsumexp(1, keepdim=True)
                own = logits.gather(1, target)
                nll[at] = (lse - own)[:, 0]
                if hits:
                    hit[at] = (own >= logits.amax(1, keepdim=True))[:, 0]
                if factors is None:
                    continue
                slope = logits.sub_(lse).exp_()
                slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
                slope *= factors[at, None].to(wide)
                if d_bias is not None:
                    _add(d_bias, slope.sum(0), ranges)
                slope = slope.to(dtype)
                if d_hidden is not None:
                    if rows is None:
                        torch.mm(slope, ws, out=d_hidden[at])
                    else:
                        d_hidden[at] = slope @ ws
                if d_weight is not None:
                    if dtype == wide and (ranges is None or len(ranges) == 1):
                        (d_weight if ranges is None else take(d_weight, ranges)).addmm_(slope.t(), h)
                    else:
                        _add(d_weight, slope.t() @ h, ranges)
        if not want:
            return nll, hit, None
        return nll, hit, (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
        )


def _add(total: Tensor, part: Tensor, ranges: Ranges | None) -> None:
    """total[ids of ranges] += part, in place."""
    if ranges is None:
        total += part
        return
    at = 0
    for start, stop in ranges:
        total[start:stop] += part[at : at + stop - start]
        at += stop - start
