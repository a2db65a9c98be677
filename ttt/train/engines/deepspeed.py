"""ZeRO stages 1, 2 and 3: DeepSpeed spreads optimiser state, gradients and weights over the ranks.

The whole of a forward pass, loss included, runs inside DeepSpeed's own forward (`_Work`), so an objective may call the
network as often as it likes or use a weight by itself: stage 3 gathers what is touched and releases it afterwards.

Checkpoints do not hold DeepSpeed's pickled files but the common format: rank zero writes the gathered float32 weights as
a model folder, each rank its own share of the moments by parameter name (`ttt.train.engines.optimizer_state`).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ttt.config.schema import TrainSection
from ttt.errors import CheckpointError, ConfigError, MissingExtraError, TttError
from ttt.train.engines.base import Engine, load_weights
from ttt.train.engines.deepspeed_config import check_deepspeed, deepspeed_config
from ttt.train.engines.optimizer_state import STEP, Moments, read_scaler, write_record, write_scaler, write_share
from ttt.train.engines.ranks import Ranks, pick_device
from ttt.train.optimizers import build_optimizer, set_progress

T = TypeVar("T")

# Fragments are found by attributes that DeepSpeed does not document (`_hp_mapping`, `grad_position`, ...).
VERSIONS = ("0.19",)
SCALER_STATE = ("cur_iter", "last_overflow_iter", "cur_hysteresis")  # of DeepSpeed's loss scaler, besides the scale
REQUIREMENT = "'deepspeed>=0.19,<0.20'"  # as in setup.py


class _Work(nn.Module):
    """The module DeepSpeed wraps: its forward is whatever has to be computed with the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[nn.Module], Tensor]) -> Tensor:
        return work(self.model)


@dataclass(frozen=True)
class Fragment:
    """This rank's share of a parameter: its positions ``start`` .. ``start + number`` lie at ``offset`` of ``flat``.

    ``flat`` f32: a flat buffer of master weights, which is what the optimiser knows as a parameter.
    """

    name: str
    start: int
    number: int
    flat: Tensor
    offset: int

    def part(self, values: Tensor) -> Tensor:
        """The fragment's place in a buffer laid out like ``flat``."""
        return values[self.offset : self.offset + self.number]


class DeepSpeedEngine(Engine):
    """``train.engine: deepspeed``.  One process works too.

    With ``train.autocast: bfloat16`` the network's weights are bfloat16 and the optimiser's float32.
    """

    lockstep = True

    def __init__(self, model: nn.Module, train: TrainSection, device: str = "auto") -> None:
        check_deepspeed(train)
        self.device = pick_device(device)
        deepspeed = _import(self.device)
        self.ranks = Ranks(self.device, train.rank_timeout_s, always=True)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        self.model = model
        if train.autocast == "none" and any(p.dtype == torch.bfloat16 for p in model.parameters()):
            raise ConfigError("model.dtype: bfloat16 weights need train.autocast=bfloat16 with train.engine=deepspeed")
        if not all(p.is_floating_point() for p in model.parameters()):
            raise ConfigError(
                "model.lora: quantized weights cannot be spread; use train.engine=local, or no quantization"
            )
        self._named = dict(model.named_parameters())
        self._numel = sum(p.numel() for p in self._named.values())
        self._shapes = {n: p.shape for n, p in self._named.items()}
        self._shell = _shell(model) if self.rank == 0 else None
        optimizer = build_optimizer(model.to(self.device), train)
        names = {id(p): n for n, p in self._named.items()}
        self._groups = [
            {"parameters": [names[id(p)] for p in g["params"]], "weight_decay": g.get("weight_decay", 0.0)}
            for g in optimizer.param_groups
        ]
        self._trained = [n for g in self._groups for n in g["parameters"]]
        self._trained_numel = sum(math.prod(self._shapes[n]) for n in self._trained)
        shape = getattr(getattr(model, "hf", None), "config", None)
        config = deepspeed_config(train, self.world_size, getattr(shape, "hidden_size", None))
        self.stage = config["zero_optimization"]["stage"]
        drawn = getattr(model, "drawn_parameters", None)  # that a micro-batch may leave out; None: none
        self._drawn = None if drawn is None else [n for n in self._trained if n in drawn]
        if drawn is not None:
            _check_stage(self.stage, config)
        self._scales = train.autocast == "float16"
        half = config["bf16"]["enabled"] or self._scales
        full = {n: p.detach().float().cpu() for n, p in self._named.items()} if half and self.rank == 0 else {}
        try:
            self._ds, self._zero, *_ = deepspeed.initialize(
                model=_Work(model), optimizer=optimizer, config=config, dist_init_required=False
            )
        except (ValueError, AssertionError, TypeError) as error:  # pydantic's errors are ValueErrors
            where = train.deepspeed or "the recipe"
            raise ConfigError(
                f"train.engine: deepspeed refuses {where}: {' '.join(str(error).split())[:400]}"
            ) from error
        if self.stage == 3:
            self._hold_output_layer()
        self._fragments = self._find_fragments()
        self._seen: set[str] = set()
        for name in self._trained:
            self._named[name].register_post_accumulate_grad_hook(lambda _, name=name: self._seen.add(name))
        if half:
            self._set_weights(full)  # DeepSpeed made the masters from weights it had rounded to 16 bits

    def compute(self, work: Callable[[nn.Module], tuple[Tensor, T]]) -> tuple[Tensor, T]:
        """See `Engine.compute`; every rank has to come here equally often."""
        results: list[T] = []

        def inside(model: nn.Module) -> Tensor:  # DeepSpeed hooks every tensor that comes out: only the loss may
            loss, result = work(model)
            results.append(result)
            if self._drawn is not None and torch.is_grad_enabled():
                # A gradient of 0 for what this micro-batch leaves out: everything, if it has nothing to predict.
                left_out = self._drawn if loss.requires_grad else self._trained
                loss = loss + 0.0 * sum((self._named[n].sum() for n in left_out), torch.zeros((), device=loss.device))
            return loss

        return self._ds(inside), results[0]

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See `Engine.micro_batch`.  Raises `TttError` when a parameter got no gradient.

        Ranks would average other parameters than their fellows then, and stage 3 would use an old gradient.
        """
        self._seen.clear()
        yield
        unused = [n for n in self._trained if n not in self._seen]
        if unused:
            raise TttError(
                f"train.engine: deepspeed: {len(unused)} trainable parameters got no gradient in a micro-batch (first "
                f"{unused[0]!r}); ZeRO needs all of them in each: freeze them, or use train.engine=local"
            )
        if not last:
            self._ds.step()  # only counts the micro-batch

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed reduces gradients while they arise (stages 2 and 3)."""
        self._ds.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float, beta1: float | None = None) -> float:
        """See `Engine.step`."""
        if not self._ds.is_gradient_accumulation_boundary():
            raise TttError(
                f"train.accumulate: {self._ds.gradient_accumulation_steps()}, but a window had another length"
            )
        for group in self._zero.param_groups:
            set_progress(group, lr, beta1)
        try:
            self._ds.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise TttError(
                "train.autocast: gradients are not finite in float16 at the least scale of losses; use bfloat16"
            ) from error
        return float(self._ds.get_global_grad_norm()) if self._ds.was_step_applied() else float("inf")

    @property
    def loss_scale(self) -> float | None:
        """See `Engine.loss_scale`."""
        return float(self._zero.loss_scale) if self._scales else None

    def whole_weights(self) -> AbstractContextManager[Any]:
        """Stage 3 gathers all weights on every rank, in the type they are computed in, and gives them back at the end."""
        if self.stage < 3:
            return nullcontext()
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        return unwrap_model_for_generation(self._ds)

    def save(self, folder: Path) -> list[Path]:
        """Every rank its share; nothing is gathered."""
        tensors: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        for fragment in self._fragments.values():
            starts[fragment.name] = fragment.start
            for moment, value in self._base.state.get(fragment.flat, {}).items():
                share = value if value.ndim == 0 else fragment.part(value)
                tensors[f"{moment}/{fragment.name}"] = share.detach().cpu().clone()
        if self.rank == 0:
            write_record(folder, self._base, self._groups)
            if self._scales:
                scaler = self._zero.loss_scaler
                state = {name: getattr(scaler, name) for name in SCALER_STATE if hasattr(scaler, name)}
                updates = state.get("cur_iter", 0) - state.get("last_overflow_iter", -1) - 1
                write_scaler(folder, {"scale": scaler.cur_scale, "updates": updates, **state})
        return [write_share(folder, self.rank, self.world_size, tensors, starts)]

    def load(self, folder: Path) -> None:
        """This rank's share of what any engine on any number of ranks wrote."""
        stored = Moments(folder, self._base, self._trained)
        if self._scales:
            scaler, scale = self._zero.loss_scaler, read_scaler(folder)
            scaler.cur_scale = scale["scale"]
            for name in SCALER_STATE:
                if name in scale:  # not there: another engine wrote it
                    setattr(scaler, name, int(scale[name]))
        if not stored.moments:
            return  # saved before the first update
        steps = {name: stored.step(name) for name in self._trained}
        ages = {None if s is None else float(s) for s in steps.values()}
        if len(ages) > 1:
            raise CheckpointError(
                f"{folder}: some parameters had fewer updates than others ({sorted(map(str, ages))}), ZeRO keeps one count "
                "for all; go on with train.engine=local"
            )
        age = next(iter(steps.values()))
        for fragment in self._fragments.values():
            state = self._base.state[fragment.flat]
            state.setdefault(STEP, self._step_like(age, fragment.flat))
            for moment in stored.moments[fragment.name]:
                flat = state.setdefault(moment, torch.zeros_like(fragment.flat))
                fragment.part(flat).copy_(stored.read(moment, fragment.name, fragment.start, fragment.number))

    def save_model(self, folder: Path) -> None:
        """Gathered to rank zero's host memory in float32, one parameter at a time, and written as any model."""
        self._fill_shell()
        if self._shell is not None:
            try:
                self._shell.save(folder)  # type: ignore[operator]
            finally:
                _empty(self._shell)

    def load_model(self, folder: Path) -> None:
        """Rank zero reads, everyone takes its share."""
        import torch.distributed as dist

        self._fill_shell()  # a folder may hold some of the weights only (adapters)
        full: dict[str, Tensor] = {}
        with self.ranks.all_or_none():
            if self._shell is not None:
                load_weights(self._shell, folder)
                full = {n: p.data for n, p in self._shell.named_parameters()}
        self._set_weights(full)
        for number, buffer in enumerate(self.model.buffers()):
            if self._shell is not None:
                buffer.data.copy_(list(self._shell.buffers())[number])
            dist.broadcast(buffer.data, 0)
        if self._shell is not None:
            _empty(self._shell)

    def state_bytes(self) -> int:
        """Float32 weights and two moments."""
        return 4 * self._numel + 8 * self._trained_numel

    def close(self) -> None:
        """Give back DeepSpeed's hooks and leave the group."""
        self._ds.destroy()
        super().close()

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The optimiser of the recipe, which knows flat pieces by now."""
        return self._zero.optimizer

    def _hold_output_layer(self) -> None:
        """The loss uses the output layer's matrix by itself, some rows at a time: it stays whole for all of a pass."""
        from deepspeed.runtime.zero import register_external_parameter

        head = getattr(getattr(self.model, "hf", None), "get_output_embeddings", lambda: None)()
        if head is not None:
            for parameter in head.parameters():
                register_external_parameter(self._ds.module, parameter)

    def _find_fragments(self) -> dict[str, Fragment]:
        """By parameter; a rank has one piece of it at most."""
        fragments = {}
        for name in self._trained:
            parameter = self._named[name]
            if self.stage == 3:
                group, offset, padded = self._zero.grad_position[self._zero.get_param_id(parameter)]
                start = padded * self.rank
                number = min(padded, math.prod(self._shapes[name]) - start)  # the last rank's share is filled up
                if number > 0:
                    fragments[name] = Fragment(name, start, number, self._zero.fp32_partitioned_groups_flat[group], offset)
                continue
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:  # None: all of it lies on other ranks
                piece, master = mapping.lp_fragment_address, mapping.hp_fragment_address
                flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
                fragments[name] = Fragment(name, piece.start, piece.numel, flat, master.start)
        return fragments

    def _gather(self, name: str) -> Tensor:
        """Float32 [numel], zero outside this rank's fragment."""
        value = torch.zeros(math.prod(self._shapes[name]), device=self.device)
        fragment = self._fragments.get(name)
        if fragment is not None:
            value[fragment.start : fragment.start + fragment.number] = fragment.part(fragment.flat.data).to(self.device)
        return value

    @torch.no_grad()
    def _fill_shell(self) -> None:
        """Gather all weights into rank zero's shell, one at a time."""
        import torch.distributed as dist

        whole = dict(self._shell.named_parameters()) if self._shell is not None else {}
        trained = set(self._trained)
        for name, parameter in self._named.items():
            if name in trained:
                value = self._gather(name)
                dist.reduce(value, 0)
            else:
                value = self._frozen(parameter)
            if self.rank == 0:
                whole[name].data = value.view(self._shapes[name]).to("cpu", whole[name].dtype, copy=True)
        if self._shell is not None:
            for copy, buffer in zip(self._shell.buffers(), self.model.buffers(), strict=True):
                copy.data.copy_(buffer)

    def _frozen(self, parameter: nn.Parameter) -> Tensor:
        with self._gathered(parameter):
            return parameter.data.detach().clone().flatten()

    def _set_weights(self, full: dict[str, Tensor]) -> None:
        """Set weights and masters to rank zero's ``full``."""
        import torch.distributed as dist

        with torch.no_grad():
            for name, parameter in self._named.items():
                wide = torch.float32 if parameter.is_floating_point() else parameter.dtype
                value = torch.empty(self._shapes[name], dtype=wide, device=self.device)
                if self.rank == 0:
                    value.copy_(full[name])
                dist.broadcast(value, 0)
                with self._gathered(parameter, modifier_rank=0):
                    if self.stage < 3 or self.rank == 0:
                        parameter.data.copy_(value)
                fragment = self._fragments.get(name)
                if fragment is not None:
                    share = value.flatten()[fragment.start : fragment.start + fragment.number]
                    fragment.part(fragment.flat.data).copy_(share)

    def _gathered(self, parameter: nn.Parameter, modifier_rank: int | None = None) -> AbstractContextManager[Any]:
        if self.stage < 3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters([parameter], modifier_rank=modifier_rank)

    def _step_like(self, age: Tensor | None, flat: Tensor) -> Tensor:
        """Fused and capturable optimisers keep their count beside the numbers, the others on the CPU."""
        group = self._base.param_groups[0]
        beside = bool(group.get("fused")) or bool(group.get("capturable"))
        assert age is not None
        return age.clone().to(flat.device if beside else "cpu")


def _check_stage(stage: int, config: dict[str, Any]) -> None:
    """Raise `ConfigError` where ranks that use different parameters would exchange the wrong gradients.

    Stage 1 exchanges them when all are there, in one order; the others as they arise, in the order of each rank's own pass.
    """
    overlap = bool(config["zero_optimization"].get("overlap_comm"))
    if stage > 1 or overlap:
        setting = "overlap_comm" if stage == 1 else f"stage {stage}"
        raise ConfigError(
            f"train.zero_stage: {setting} exchanges gradients while they arise, and the ranks of this architecture train different "
            "parameters in an update; use train.zero_stage=1 without overlap_comm, or train.engine=local"
        )


def check_version(version: str) -> None:
    """Raise `MissingExtraError` for a DeepSpeed whose private attributes may not be those of `VERSIONS`."""
    if version.split(".")[:2] not in [v.split(".") for v in VERSIONS]:
        raise MissingExtraError(
            f"train.engine: deepspeed {version}: checkpoints use parts of DeepSpeed that are not public, known for versions "
            f"{', '.join(VERSIONS)} only; pip install {REQUIREMENT}, or train.engine=local"
        )


def _import(device: torch.device) -> Any:
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise MissingExtraError(
            f"train.engine: deepspeed: {error}; pip install {REQUIREMENT}, or train.engine=local"
        ) from error
    check_version(deepspeed.__version__)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Of DeepSpeed's calls; the user can do nothing about them.
    warnings.filterwarnings("ignore", "`?torch.distributed.*deprecated", FutureWarning)
    if on_cpu:
        # DeepSpeed would compile a kernel for ranks of one machine (minutes, at the first start); gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _shell(model: nn.Module) -> nn.Module:
    """The model without its weights: what the gathered ones are put into to be saved."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        wide = torch.float32 if parameter.is_floating_point() else parameter.dtype
        memo[id(parameter)] = nn.Parameter(torch.empty(0, dtype=wide), requires_grad=parameter.requires_grad)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        memo[id(tokenizer)] = tokenizer
    return copy.deepcopy(model, memo)


def _empty(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype)
