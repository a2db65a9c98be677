"""Plain torch: one process, or data parallelism over the ranks of a launcher."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttt.config.schema import TrainSection
from ttt.train.average import WeightAverage
from ttt.train.engines.base import Engine
from ttt.train.engines.optimizer_state import Moments, read_scaler, write_record, write_scaler, write_whole
from ttt.train.engines.ranks import Ranks, pick_device
from ttt.train.optimizers import build_optimizer, optimizer_of, set_progress

BUCKET_NUMBERS = 25_000_000  # gradients that travel together in one all-reduce


class LocalEngine(Engine):
    """One process, or several that each hold everything (gloo on CPU, nccl on GPU).

    Gradients are averaged here, in buckets, once per window, and not by `DistributedDataParallel`: its hooks need every
    rank to pass through ``forward`` equally often and with the same parameters, which a micro-batch without audio (or
    without targets) does not; and objectives get to see the model itself, not a wrapper.
    """

    def __init__(self, model: nn.Module, train: TrainSection, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.ranks = Ranks(self.device, train.rank_timeout_s)
        self.clip_norm = 0.0 if optimizer_of(train).clips else train.clip_norm
        self._dtype = None if train.autocast == "none" else getattr(torch, train.autocast)
        self._scaler = torch.amp.GradScaler(self.device.type) if train.autocast == "float16" else None
        self.model = model.to(self.device)
        self.optimizer = build_optimizer(self.model, train)
        self.names = {id(p): n for n, p in self.model.named_parameters()}
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        if self.world_size > 1:
            import torch.distributed as dist

            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                dist.broadcast(tensor.data, 0)
        if train.ema:
            self.average = WeightAverage(self.model, train.ema)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Nothing to do: gradients are exchanged in `step`."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 or float16 where torch allows it, when asked for."""
        return nullcontext() if self._dtype is None else torch.autocast(self.device.type, dtype=self._dtype)

    @property
    def loss_scale(self) -> float | None:
        """See `Engine.loss_scale`."""
        return self._scaler.get_scale() if self._scaler is not None else None

    def backward(self, loss: Tensor) -> None:
        """Plain autograd; a loss that depends on nothing adds nothing."""
        if loss.requires_grad:
            (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, lr: float, beta1: float | None = None) -> float:
        """See `Engine.step`."""
        if self.world_size > 1:
            self._average_gradients()
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or float("inf")))
        if torch.isfinite(torch.tensor(norm)):
            for group in self.optimizer.param_groups:
                set_progress(group, lr, beta1)
            self.optimizer.step()
        if self._scaler is not None:
            self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def discard(self) -> None:
        """See `Engine.discard`."""
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> list[Path]:
        """One tensor per parameter and moment, by rank zero."""
        if self.rank:
            return []
        write_whole(folder, {
            f"{key}/{self.names[id(parameter)]}": value.detach().contiguous()
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        })  # fmt: skip
        groups = [
            {"parameters": [self.names[id(p)] for p in g["params"]], "weight_decay": g.get("weight_decay", 0.0)}
            for g in self.optimizer.param_groups
        ]
        write_record(folder, self.optimizer, groups)
        if self._scaler is not None:
            state = self._scaler.state_dict()
            write_scaler(folder, {"scale": state["scale"], "updates": state["_growth_tracker"]})
        return []

    def load(self, folder: Path) -> None:
        """Moments by parameter name."""
        names = [self.names[id(p)] for p in self.parameters]
        stored = Moments(folder, self.optimizer, names)
        state: dict[int, dict[str, Tensor]] = {}
        for number, (name, parameter) in enumerate(zip(names, self.parameters, strict=True)):
            moments = {moment: stored.whole(moment, name, parameter) for moment in stored.moments.get(name, ())}
            step = stored.step(name)
            if step is not None:
                moments["step"] = step
            if moments:
                state[number] = moments
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self._scaler is not None:
            scaler = read_scaler(folder)
            own = {"scale": scaler["scale"], "_growth_tracker": int(scaler["updates"])}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **own})

    def state_bytes(self) -> int:
        """Weights and two moments."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        averages = self.average.state_bytes() if self.average is not None else 0
        return weights + averages + 2 * sum(p.numel() * p.element_size() for p in self.parameters)

    def _average_gradients(self) -> None:
        import torch.distributed as dist

        # A parameter that no rank used keeps no gradient, so that it is not decayed either: as in one process.
        used = torch.tensor([p.grad is not None for p in self.parameters], dtype=torch.int32, device=self.device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
        for bucket in _buckets(p for p, u in zip(self.parameters, used.tolist(), strict=True) if u):
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in grads])  # [sum of sizes]
            dist.all_reduce(flat)
            flat /= self.world_size
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)


def _buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size, dtype = 0, None
    for parameter in parameters:
        if not buckets or size + parameter.numel() > BUCKET_NUMBERS or parameter.dtype != dtype:
            buckets.append([])
            size, dtype = 0, parameter.dtype
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
