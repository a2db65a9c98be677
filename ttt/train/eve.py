"""Eve: Adam whose weight decay acts on large tensors only (the optimiser of k2's pruned-transducer recipes)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Eve(torch.optim.Optimizer):
    """Adam with full bias correction.  Before the update, a tensor of more than one number whose root mean square is above
    ``target_rms`` is multiplied by ``1 - weight_decay``; the learning rate has no part in that.
    """

    def __init__(
        self, groups: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 1e-3,
        target_rms: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "target_rms": target_rms}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                n = float(state["step"])
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                if p.numel() > 1 and decay:
                    large = p.square().mean().sqrt() > group["target_rms"]
                    p.mul_(1 - decay * large.to(p.dtype))
                spread = (state["exp_avg_sq"] / (1 - beta2**n)).sqrt_().add_(group["eps"])
                p.addcdiv_(state["exp_avg"], spread, value=-lr / (1 - beta1**n))
