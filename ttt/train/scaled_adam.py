"""ScaledAdam: Adam whose steps are relative to each tensor's size, which is learned besides.

Yao et al. 2023 (Zipformer), section 3.3, with the gradient clipping of its reference implementation: the norm of what every
tensor would move relative to its size is compared with the median of the last norms.  A parameter without a gradient is
left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_DEFAULTS: dict[str, Any] = {
    "clipping_scale": 2.0, "clipping_update_period": 100, "clip_gradient": True, "scalar_lr_scale": 0.1, "param_min_rms": 1e-5,
    "param_max_rms": 3.0, "scalar_max": 10.0, "size_update_period": 4,
}  # fmt: skip


class ScaledAdam(torch.optim.Optimizer):
    """``settings``: the fields of `ttt.train.optimizers.ScaledAdamSpec`, for all groups.

    State of a tensor: ``step``, ``delta`` (its momentum, in units of the parameter), ``exp_avg_sq``; of more than one number
    also ``param_rms``, ``scale_exp_avg_sq`` and the last ``scale_grads`` [period].  The first parameter of all also holds
    what clipping remembers: ``norms`` [period], ``norms_seen``, ``threshold``.
    """

    def __init__(
        self, groups: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, **settings: Any
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, **_DEFAULTS, **settings})
        self._owner = self.param_groups[0]["params"][0]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        groups = [(g, [p for p in g["params"] if p.grad is not None]) for g in self.param_groups]
        for group, used in groups:
            for p in used:
                self._prepare(p, group["size_update_period"])
        factor = self._clipping_factor([p for _, used in groups for p in used])
        for group, used in groups:
            if used:
                self._update(group, used, factor)

    def _prepare(self, p: Tensor, period: int) -> None:
        state = self.state[p]
        if "exp_avg_sq" in state:
            return
        state["step"] = torch.zeros(())
        state["delta"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        if p.numel() > 1:
            state["param_rms"] = _rms(p)
            state["scale_exp_avg_sq"] = torch.zeros((), device=p.device)
            state["scale_grads"] = torch.zeros(period, device=p.device)

    def _clipping_factor(self, used: list[Tensor]) -> float:
        """What gradients are multiplied by: 1 until ``clipping_update_period`` norms are known."""
        settings = self.param_groups[0]
        scale, period = settings["clipping_scale"], settings["clipping_update_period"]
        if not scale or not used:
            return 1.0
        memory = self.state[self._owner]
        if "norms" not in memory:
            memory["norms"], memory["norms_seen"] = torch.zeros(period), torch.zeros(())
            memory["threshold"] = torch.zeros(())
        seen = int(memory["norms_seen"])
        memory["norms_seen"] += 1
        if seen == 0:  # the very first gradient says little
            return 1.0
        parts = [self.state[p].get("param_rms", 1.0) * _grad(p).norm() for p in used]
        norm = float(torch.stack([x.float() for x in parts]).norm())
        memory["norms"][seen % period] = norm
        if seen % period == 0:
            ordered = memory["norms"].sort().values
            quartiles = [float(ordered[min(period - 1, period // 4 * n)]) for n in range(5)]
            memory["threshold"].fill_(scale * quartiles[2])
            log.info(
                "scaled_adam: quartiles of the last %d gradient norms %s, threshold %.3g", period,
                " ".join(f"{q:.3g}" for q in quartiles), float(memory["threshold"]),
            )  # fmt: skip
        return 1.0 if seen < period else min(1.0, float(memory["threshold"]) / (norm + 1e-20))

    def _update(self, group: dict[str, Any], used: list[Tensor], factor: float) -> None:
        lr, (beta1, beta2), period = group["lr"], group["betas"], group["size_update_period"]
        states = [self.state[p] for p in used]
        grads = [_grad(p) for p in used]
        clipped: list[Tensor] = list(torch._foreach_mul(grads, factor)) if factor < 1.0 else grads
        main = clipped if group["clip_gradient"] else grads
        delta = [s["delta"] for s in states]
        torch._foreach_mul_(delta, beta1)
        for p, g, state in zip(used, clipped, states, strict=True):
            if p.numel() > 1:
                self._size(group, p, g, state, period)
        second = [s["exp_avg_sq"] for s in states]
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, main, main, 1 - beta2)
        steps = [float(s["step"]) + 1 for s in states]
        spread = torch._foreach_div(
            second, [_correction(beta2, n, p.numel()) for n, p in zip(steps, used, strict=True)]
        )
        torch._foreach_sqrt_(spread)
        torch._foreach_add_(spread, group["eps"])
        moves = torch._foreach_div(main, spread)
        for p, d, move, state in zip(used, delta, moves, states, strict=True):
            if p.numel() > 1:
                size = state["param_rms"].clamp(min=group["param_min_rms"])
                d.add_(move * size, alpha=-lr * (1 - beta1))
            else:
                d.add_(move, alpha=-lr * group["scalar_lr_scale"] * (1 - beta1))
                p.clamp_(-group["scalar_max"], group["scalar_max"])
            state["step"] += 1
        torch._foreach_add_(used, delta)

    @staticmethod
    def _size(group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Any], period: int) -> None:
        """Learn the tensor's scale: once every ``size_update_period`` steps, from the products of those steps."""
        lr, (beta1, beta2) = group["lr"], group["betas"]
        number = int(state["step"])
        state["scale_grads"][number % period] = (p * g).sum()
        if number % period != period - 1:
            return
        state["param_rms"] = _rms(p)
        beta = beta2**period
        second, products = state["scale_exp_avg_sq"], state["scale_grads"]
        second.mul_(beta).add_(products.square().mean(), alpha=1 - beta)
        fair = (1 - beta ** ((number + 1) // period)) ** 0.5
        change = -lr * group["scalar_lr_scale"] * fair * products.sum() / (second.sqrt() + group["eps"])
        largest = -lr * group["scalar_lr_scale"] * period
        change = torch.where(state["param_rms"] < group["param_min_rms"], torch.zeros_like(change), change)
        change = torch.where(state["param_rms"] > group["param_max_rms"], torch.full_like(change, largest), change)
        state["delta"].add_(p * change, alpha=1 - beta1)


def _correction(beta2: float, steps: float, numbers: int) -> float:
    """Bias correction of the second moment; left out of tensors once it is close to 1, as in the reference."""
    correction = 1 - beta2**steps
    return correction if numbers == 1 or correction < 0.99 else 1.0


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _rms(p: Tensor) -> Tensor:
    return p.square().mean().sqrt()
