"""Where the network runs: backward, gradient averaging, update, and their state.  The trainer knows only `Engine`."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttt.config.schema import TrainSection
from ttt.errors import CheckpointError, ConfigError, suggest
from ttt.train.optim import build_optimizer

log = logging.getLogger(__name__)

BUCKET_NUMBERS = 25_000_000  # gradients that travel together in one all-reduce


def world() -> tuple[int, int]:
    """(rank, number of ranks) as told by torchrun; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Engine(ABC):
    """One optimiser and the ranks it is spread over.

    Of one update: `micro_batch` around each forward and backward, then `step` once.  ``model`` is what objectives call;
    engines *average* gradients over ranks, so the caller multiplies its loss by ``world_size``.
    """

    model: nn.Module
    device: torch.device
    rank: int = 0
    world_size: int = 1

    @abstractmethod
    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Surrounds one forward and backward: no gradient exchange before the ``last`` of the window."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` [] to this rank's."""

    @abstractmethod
    def step(self, lr: float) -> float:
        """Average gradients over ranks, clip, update, clear.  -> norm before clipping.

        When the norm is not finite, nothing was updated.
        """

    @abstractmethod
    def sum_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum by name; a name that some ranks lack counts as 0 there.  Every rank gets the same answer."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait for every rank."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the optimiser's state; called on every rank.  No pickle."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote; called on every rank.  Raises `CheckpointError` when it is of another model."""

    @abstractmethod
    def state_bytes(self) -> int:
        """About how large a checkpoint is."""

    def save_model(self, folder: Path) -> None:
        """Write the weights; called on every rank."""
        if self.rank == 0:
            self.model.save(folder)  # type: ignore[operator]

    def load_model(self, folder: Path) -> None:
        """Read what `save_model` wrote; called on every rank."""
        load_weights(self.model, folder)

    def autocast(self) -> AbstractContextManager[Any]:
        """Surrounds every forward pass: the number type to compute in."""
        return nullcontext()

    def close(self) -> None:  # noqa: B027 (most engines have nothing to leave)
        """Leave the group of ranks."""


class LocalEngine(Engine):
    """Plain torch: one process, or data parallelism over the ranks of torchrun (gloo on CPU, nccl on GPU).

    Gradients are averaged here, in buckets, once per window, and not by `DistributedDataParallel`: its hooks need every
    rank to pass through ``forward`` equally often and with the same parameters, which a micro-batch without audio (or
    without targets) does not; and objectives get to see the model itself, not a wrapper.
    """

    def __init__(self, model: nn.Module, train: TrainSection, device: str = "auto") -> None:
        self.rank, self.world_size = world()
        self.device = pick_device(device)
        self.clip_norm, self._autocast = train.clip_norm, train.autocast
        self._control: Any = None
        self._owns_group = False
        if self.world_size > 1:
            import torch.distributed as dist

            if not dist.is_initialized():
                dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
                self._owns_group = True
            self._control = dist.new_group(backend="gloo")  # counts and logs travel on the CPU
        self.model = model.to(self.device)
        self.optimizer = build_optimizer(self.model, train)
        self.names = {id(p): n for n, p in self.model.named_parameters()}
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        if self.world_size > 1:
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                dist.broadcast(tensor.data, 0)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Nothing to do: gradients are exchanged in `step`."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where torch allows it, when asked for."""
        if self._autocast == "none":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def backward(self, loss: Tensor) -> None:
        """Plain autograd; a loss that depends on nothing adds nothing."""
        if loss.requires_grad:
            loss.backward()

    def step(self, lr: float) -> float:
        """See `Engine.step`."""
        if self.world_size > 1:
            self._average_gradients()
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or float("inf")))
        if torch.isfinite(torch.tensor(norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def sum_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        """See `Engine.sum_over_ranks`; summed in rank order, so every rank rounds alike."""
        if self.world_size == 1:
            return dict(values)
        import torch.distributed as dist

        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, dict(values), group=self._control)
        total: dict[str, float] = {}
        for part in parts:
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.barrier(group=self._control)

    def save(self, folder: Path) -> None:
        """``optimizer.safetensors``: one tensor per parameter and moment; ``optimizer.json``: the groups."""
        if self.rank:
            return
        from safetensors.torch import save_file

        tensors = {
            f"{key}/{self.names[id(parameter)]}": value.detach().contiguous()
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "optimizer.safetensors")
        groups = [
            {"parameters": [self.names[id(p)] for p in g["params"]], "weight_decay": g["weight_decay"]}
            for g in self.optimizer.param_groups
        ]
        record = {"optimizer": type(self.optimizer).__name__.lower(), "groups": groups}
        (folder / "optimizer.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Moments by parameter name."""
        from safetensors.torch import load_file

        record = json.loads((folder / "optimizer.json").read_text(encoding="utf-8"))
        here = [self.names[id(p)] for p in self.parameters]
        there = [n for g in record["groups"] for n in g["parameters"]]
        if sorted(here) != sorted(there):
            odd = sorted(set(here) ^ set(there))
            raise CheckpointError(
                f"{folder}: the optimizer state is of other parameters ({len(odd)} differ, first {odd[0]!r}); "
                "resume with the model it was written for"
            )
        tensors = load_file(folder / "optimizer.safetensors")
        number = {name: i for i, name in enumerate(here)}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            moment, _, name = key.partition("/")
            state.setdefault(number[name], {})[moment] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def state_bytes(self) -> int:
        """Weights and two moments."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return weights + 2 * sum(p.numel() * p.element_size() for p in self.parameters)

    def close(self) -> None:
        """Leave the process group if this engine made it."""
        if self._owns_group:
            import torch.distributed as dist

            dist.destroy_process_group()
            self._owns_group = False

    def _average_gradients(self) -> None:
        import torch.distributed as dist

        # A parameter that no rank used keeps no gradient, so that it is not decayed either: as in one process.
        used = torch.tensor([p.grad is not None for p in self.parameters], dtype=torch.int32, device=self.device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
        wanted = [p for p, u in zip(self.parameters, used.tolist(), strict=True) if u]
        for bucket in _buckets(wanted):
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in grads])  # [sum of sizes]
            dist.all_reduce(flat)
            flat /= self.world_size
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)


ENGINES = {"local": LocalEngine}


def build_engine(model: nn.Module, train: TrainSection, device: str = "auto") -> Engine:
    """The engine named by ``train.engine``."""
    if train.engine not in ENGINES:
        raise ConfigError(
            f"train.engine: no {train.engine!r}.{suggest(train.engine, ENGINES)} Known: {', '.join(ENGINES)}"
        )
    return ENGINES[train.engine](model, train, device)


def pick_device(name: str) -> torch.device:
    """``auto`` -> this rank's GPU if there is one, else the CPU."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"run.device: must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: cuda asked for, but torch sees no GPU; use run.device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy the safetensors of ``folder`` into ``model`` (into its ``hf``, if it has one), in place.

    Only weights tied to a stored one may be missing.  A model with a format of its own brings ``load_weights(folder)``.
    """
    own = getattr(model, "load_weights", None)
    if own is not None:
        own(folder)
        return
    from safetensors.torch import load_file

    target = getattr(model, "hf", model)
    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(path))
    if not stored:
        raise CheckpointError(f"{folder}: no *.safetensors here; this is not a model folder")
    have = target.state_dict()
    present = {have[name].data_ptr() for name in stored if name in have}
    missing = [name for name, value in have.items() if name not in stored and value.data_ptr() not in present]
    odd = [name for name in stored if name not in have]
    shapes = [n for n in stored if n in have and have[n].shape != stored[n].shape]
    if missing or odd or shapes:
        raise CheckpointError(
            f"{folder}: weights of another model: {len(missing)} missing{_first(missing)}, "
            f"{len(odd)} unknown{_first(odd)}, {len(shapes)} of another shape{_first(shapes)}"
        )
    target.load_state_dict(stored, strict=False)


def _first(names: list[str]) -> str:
    return f" (first {names[0]!r})" if names else ""


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size, dtype = 0, None
    for parameter in parameters:
        if not buckets or size + parameter.numel() > BUCKET_NUMBERS or parameter.dtype != dtype:
            buckets.append([])
            size, dtype = 0, parameter.dtype
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
