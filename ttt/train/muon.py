"""Muon: momentum whose matrices are orthogonalised, for the hidden matrices; AdamW for everything else.

Jordan et al. 2024 (Muon); the factor 0.2 sqrt(max(rows, columns)) that makes one learning rate serve both halves is Liu
et al., arXiv 2502.16982, section 2.2.  Newton-Schulz runs in float32, because half precision is slow on CPUs; matrices of one
shape run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # quintic Newton-Schulz coefficients of the reference


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """Nearest (roughly) semi-orthogonal matrix of each ``g`` f32 [n, rows, columns]: singular values near 1.

    >>> u = orthogonalize(torch.diag(torch.tensor([3.0, 1.0]))[None])[0]
    >>> bool(((torch.linalg.svdvals(u) - 1).abs() < 0.35).all())
    True
    """
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Groups with ``matrix`` True get orthogonalised momentum, the others plain AdamW; weight decay is decoupled."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "momentum": momentum, "weight_decay": 0.0, "matrix": False}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            used = [p for p in group["params"] if p.grad is not None]
            if group["matrix"]:
                self._matrices(group, used)
            else:
                self._adamw(group, used)

    def _matrices(self, group: dict[str, Any], used: list[Tensor]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for p in used:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        for shape, same in by_shape.items():
            updates = []
            for p in same:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                assert p.grad is not None
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(state["momentum"], group["momentum"]))  # Nesterov
            scale = 0.2 * max(shape) ** 0.5
            for p, u in zip(same, orthogonalize(torch.stack(updates).float()), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(u.to(p.dtype), alpha=-group["lr"] * scale)

    def _adamw(self, group: dict[str, Any], used: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        for p in used:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            assert p.grad is not None
            state["step"] += 1
            n = float(state["step"])
            state["exp_avg"].lerp_(p.grad, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            spread = (state["exp_avg_sq"] / (1 - beta2**n)).sqrt_().add_(group["eps"])
            p.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - beta1**n))
