"""Cross-entropy of an output layer without ever holding its logits: some rows at a time, [chunk, V] instead of [N, V].

A plain output layer takes three matrix products a chunk, all in the forward pass: logits, then, since softmax minus one-hot
is the gradient, both gradients right away (the idea of Liger Kernel, Hsu et al., arXiv 2410.10989).  That needs the factor
each row's loss will have in the total.  The caller says what it expects (``expected``, up to one common factor); should the
factors of the backward pass be others, the gradients are computed anew from them.

An output layer that is more than a matrix (adapters, weights sharded over ranks: whoever wraps a module wants it *called*)
is run chunk by chunk under activation checkpointing: the same memory, one product more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}  # of one chunk's logits: fits a CPU's cache, fills a GPU
LEAST_ROWS = 64  # fewer make slow matrix products
_AGREE = 1.0e-6  # relative difference up to which factors count as the expected ones


def chunked_nll(
    head: nn.Module, hidden: Tensor, targets: Tensor, expected: Tensor | None = None, rows: int = 0
) -> Tensor:
    """-log softmax(head(hidden))[targets], f32 (f64 for f64) [N]: full vocabulary, memory of one chunk.

    ``hidden`` [N, D], ``targets`` i64 [N]; ``expected`` f32 [N]: factor of each row in the loss, up to a common one
    (None: all alike); ``rows`` of a chunk (0: by `CHUNK_BYTES`).
    """
    size = rows or chunk_rows(getattr(head, "out_features", 0), hidden.device)
    if not is_plain(head):
        return _called(head, hidden, targets, size)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    else:
        dtype = hidden.dtype
    if expected is None:
        expected = torch.ones(len(hidden), device=hidden.device)
    assert isinstance(head, nn.Linear)
    return _ChunkedNll.apply(
        hidden, head.weight, head.bias, targets, expected, size, dtype, torch.is_grad_enabled()
    )  # fmt: skip


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


def _called(head: nn.Module, hidden: Tensor, targets: Tensor, size: int) -> Tensor:
    def piece(h: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(_wide(head(h)), t, reduction="none")

    keep = torch.is_grad_enabled() and len(hidden) > size
    pairs = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(piece, h, t, use_reentrant=False) if keep else piece(h, t) for h, t in pairs])


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _ChunkedNll(torch.autograd.Function):
    """See the module's docstring.  Gradients kept from the forward pass are handed out once and then forgotten."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, expected: Tensor, size: int,
        dtype: torch.dtype, with_gradients: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(hidden, weight, bias, targets, expected)
        ctx.size, ctx.dtype, ctx.kept = size, dtype, None
        factors = expected if with_gradients else None
        nll, ctx.kept = _run(hidden, weight, bias, targets, factors, size, dtype, ctx.needs_input_grad)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        hidden, weight, bias, targets, expected = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        common = _common_factor(grad, expected) if kept is not None else None
        if common is None:
            kept = None  # frees it before the next is made
            _, kept = _run(hidden, weight, bias, targets, grad, ctx.size, ctx.dtype, ctx.needs_input_grad)
        elif common != 1.0:
            kept = tuple(None if g is None else g.mul_(common) for g in kept)
        return *kept, None, None, None, None, None


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
    dtype: torch.dtype, needs: tuple[bool, ...],
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None] | None]:  # fmt: skip
    """(nll [N], gradients of sum(factors * nll) by hidden, weight and bias; None without factors)."""
    with torch.autocast(hidden.device.type, enabled=False):
        h_all, w = hidden.to(dtype), weight.to(dtype)
        b = None if bias is None else bias.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        want = factors is not None
        # Sums over many chunks keep full precision whatever the type of the weights.
        d_hidden = torch.empty_like(h_all) if want and needs[0] else None
        d_weight = weight.new_zeros(weight.shape, dtype=wide) if want and needs[1] else None
        d_bias = weight.new_zeros(len(weight), dtype=wide) if want and bias is not None and needs[2] else None
        found = []
        for start in range(0, len(hidden), size):
            at = slice(start, start + size)
            h = h_all[at]
            logits = F.linear(h, w, b).to(wide)  # [chunk, V], the only one there is
            target = targets[at, None]
            lse = logits.logsumexp(1, keepdim=True)
            found.append((lse - logits.gather(1, target))[:, 0])
            if factors is None:
                continue
            slope = logits.sub_(lse).exp_()
            slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
            slope *= factors[at, None].to(wide)
            if d_bias is not None:
                d_bias += slope.sum(0)
            slope = slope.to(dtype)
            if d_hidden is not None:
                torch.mm(slope, w, out=d_hidden[at])
            if d_weight is not None:
                if dtype == wide:
                    d_weight.addmm_(slope.t(), h)
                else:
                    d_weight += slope.t() @ h
        nll = torch.cat(found) if found else hidden.new_zeros(0, dtype=wide)
        if not want:
            return nll, None
        return nll, (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
        )
