"""The optimisers one can name in ``train.optimizer``.

What all have stands in the section ``train`` (lr, betas, eps, weight_decay); a block's own fields are what one of them has
alone.  An optimiser keeps its state by parameter, as tensors, so that checkpoints hold it by parameter name.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ttt.errors import ConfigError
from ttt.interfaces import OptimizerSpec
from ttt.registry import NonNegativeFloat, PositiveFloat, PositiveInt, ShareBelow1, name_of
from ttt.registry.families import OPTIMIZER

if TYPE_CHECKING:
    from ttt.config.schema import TrainSection

log = logging.getLogger(__name__)


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = True) -> list[dict]:
    """Two groups of trainable parameters, each parameter once: decayed, and not decayed.

    Not decayed: everything in a normalisation module, vectors and scalars (biases, gains), and, unless
    ``decay_embeddings``, the rows of embeddings with the output layer tied to them.  Raises `ConfigError` when nothing is
    trainable.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[int] = set()
    # Embeddings first: a matrix tied to the output layer counts as an embedding.
    for module in sorted(model.modules(), key=lambda m: not isinstance(m, nn.Embedding)):
        exempt = _is_norm(module) or (isinstance(module, nn.Embedding) and not decay_embeddings)
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                (plain if exempt or parameter.ndim < 2 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise ConfigError("train: the model has no trainable parameters; check what is frozen")
    _warn_of_half_precision(groups)
    return groups


@OPTIMIZER.register("adamw")
@dataclass(frozen=True)
class AdamW(OptimizerSpec):
    """torch's AdamW, fused where every parameter allows it; norms and vectors are not decayed."""

    elementwise: ClassVar[bool] = True
    beta1_may_move: ClassVar[bool] = True

    def build(self, model: nn.Module, train: TrainSection) -> torch.optim.AdamW:
        """The learning rate is set at each step."""
        groups = parameter_groups(model, train.weight_decay, train.decay_embeddings)
        return torch.optim.AdamW(groups, lr=train.lr, betas=_betas(train), eps=train.eps, fused=_may_fuse(groups))


@OPTIMIZER.register("adam")
@dataclass(frozen=True)
class Adam(OptimizerSpec):
    """torch's Adam: ``train.weight_decay`` is part of the gradient (L2), not a decay beside it."""

    elementwise: ClassVar[bool] = True
    beta1_may_move: ClassVar[bool] = True

    def build(self, model: nn.Module, train: TrainSection) -> torch.optim.Adam:
        """The learning rate is set at each step."""
        groups = parameter_groups(model, train.weight_decay, train.decay_embeddings)
        return torch.optim.Adam(groups, lr=train.lr, betas=_betas(train), eps=train.eps, fused=_may_fuse(groups))


@OPTIMIZER.register("muon")
@dataclass(frozen=True)
class MuonSpec(OptimizerSpec):
    """Muon on hidden matrices; AdamW for embeddings, heads, vectors and gains."""

    momentum: ShareBelow1 = 0.95  # of the matrices; the others have train.betas

    def build(self, model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
        """Groups with ``matrix`` True are orthogonalised."""
        from ttt.train.muon import Muon

        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        head = getattr(getattr(model, "hf", None), "get_output_embeddings", lambda: None)()
        tables |= {id(head.weight)} if head is not None else set()
        groups = []
        for group in parameter_groups(model, train.weight_decay, train.decay_embeddings):
            for matrix in (True, False):
                chosen = [p for p in group["params"] if (p.ndim == 2 and id(p) not in tables) == matrix]
                if chosen:
                    groups.append({"params": chosen, "weight_decay": group["weight_decay"], "matrix": matrix})
        return Muon(groups, train.lr, _betas(train), train.eps, self.momentum)


@OPTIMIZER.register("eve")
@dataclass(frozen=True)
class EveSpec(OptimizerSpec):
    """Adam whose ``train.weight_decay``, not multiplied by the learning rate, acts only on tensors above ``target_rms``."""

    target_rms: PositiveFloat = 0.1  # root mean square above which a tensor is decayed

    def build(self, model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
        """All parameters; Eve itself spares single numbers."""
        from ttt.train.eve import Eve

        parameters = [p for g in parameter_groups(model, 0.0) for p in g["params"]]
        return Eve(parameters, train.lr, _betas(train), train.eps, train.weight_decay, self.target_rms)


@OPTIMIZER.register("scaled_adam")
@dataclass(frozen=True)
class ScaledAdamSpec(OptimizerSpec):
    """Steps relative to each tensor's size, which is learned besides; clips by the median of past norms, decays nothing."""

    clipping_scale: NonNegativeFloat = 2.0  # gradients are cut at this many times the median norm; 0: never
    clipping_update_period: PositiveInt = 100  # updates whose norms the median is of, and after which it is taken again
    clip_gradient: bool = True  # false: a cut gradient enters only the learning of sizes (a known quirk of some forks)
    scalar_lr_scale: NonNegativeFloat = 0.1  # learning rate of sizes and of single numbers, as a share of train.lr
    param_min_rms: NonNegativeFloat = 1.0e-5  # a smaller tensor moves as if it were this large, and its size stays
    param_max_rms: NonNegativeFloat = 3.0  # a larger tensor shrinks
    scalar_max: NonNegativeFloat = 10.0  # single numbers stay within +- this
    size_update_period: PositiveInt = 4  # updates between changes of sizes

    clips: ClassVar[bool] = True

    def build(self, model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
        """All trainable parameters, in one group."""
        from dataclasses import asdict

        from ttt.train.scaled_adam import ScaledAdam

        parameters = [p for g in parameter_groups(model, 0.0) for p in g["params"]]
        return ScaledAdam(parameters, train.lr, _betas(train), train.eps, **asdict(self))


def _betas(train: TrainSection) -> tuple[float, float]:
    return train.betas[0], train.betas[1]


def _may_fuse(groups: list[dict]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for g in groups for p in g["params"])


def _warn_of_half_precision(groups: list[dict]) -> None:
    for p in (p for g in groups for p in g["params"] if p.dtype in (torch.bfloat16, torch.float16)):
        log.warning(
            "weights are trained in %s: updates below its precision are lost; model.dtype=float32 with "
            "train.autocast=bfloat16 keeps them", p.dtype,
        )  # fmt: skip
        return


def _is_norm(module: nn.Module) -> bool:
    known = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    # Backbones define their own RMSNorm classes, which share no base but end in this word.
    return isinstance(module, known) or type(module).__name__.endswith("Norm")


def optimizer_of(train: TrainSection) -> OptimizerSpec:
    """``train.optimizer`` as an object, if it is only a name yet."""
    return OPTIMIZER.build(train.optimizer, "train.optimizer")


def optimizer_name(train: TrainSection) -> str:
    """The name ``train.optimizer`` is registered under."""
    return name_of(optimizer_of(train))


def build_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """The optimiser of a run over the model's trainable parameters."""
    return optimizer_of(train).build(model, train)


def set_progress(group: dict[str, Any], lr: float, beta1: float | None) -> None:
    """Put the values of one update into a parameter group of an optimiser."""
    group["lr"] = lr
    if beta1 is not None:
        group["betas"] = (beta1, group["betas"][1])
