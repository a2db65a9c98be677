"""AdamW with parameter groups by module type, and the learning rate as a pure function of progress."""

from __future__ import annotations

import logging
import math

import torch
from torch import nn

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError, suggest

log = logging.getLogger(__name__)

SCHEDULES = ("cosine", "linear", "constant")
PROGRESS = ("steps", "seconds")


def lr_at(train: TrainSection, update: int, elapsed_s: float = 0.0) -> float:
    """Learning rate of update number ``update`` (from 0).

    Warm-up is linear over ``warmup_steps`` updates.  The decay goes from progress ``decay_start`` to 1, where progress
    is ``update / steps`` (and the decay waits for the warm-up's end), or with ``schedule_by: seconds`` the larger of
    that and ``elapsed_s / max_seconds``.

    >>> train = TrainSection(steps=10, lr=1.0, schedule="linear", warmup_steps=2)
    >>> [lr_at(train, u) for u in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    progress = update / train.steps
    start = max(train.decay_start, train.warmup_steps / train.steps)
    if train.schedule_by == "seconds":
        progress = max(progress, elapsed_s / train.max_seconds)
        start = train.decay_start
    x = 0.0 if progress <= start else min(1.0, (progress - start) / (1.0 - start))
    if train.schedule == "cosine":
        falling = 0.5 * (1.0 + math.cos(math.pi * x))
    elif train.schedule == "linear":
        falling = 1.0 - x
    else:
        falling = 1.0
    warm = min(1.0, (update + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return train.lr * warm * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * falling)


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = True) -> list[dict]:
    """Two groups of trainable parameters, each parameter once: decayed, and not decayed.

    Not decayed: everything in a normalisation module, vectors and scalars (biases, gains), and, unless
    ``decay_embeddings``, the rows of embeddings with the output layer tied to them.
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
    return [g for g in groups if g["params"]]


def build_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """``train.optimizer``: AdamW, or Muon on hidden matrices with AdamW for embeddings, heads, vectors and gains."""
    if train.optimizer == "adamw":
        return build_adamw(model, train)
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
    if not groups:
        raise ConfigError("train: the model has no trainable parameters; check what is frozen")
    return Muon(groups, train.lr, (train.betas[0], train.betas[1]), train.eps)


def build_adamw(model: nn.Module, train: TrainSection) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused where every parameter allows it.  The learning rate is set at each step."""
    groups = parameter_groups(model, train.weight_decay, train.decay_embeddings)
    if not groups:
        raise ConfigError("train: the model has no trainable parameters; check what is frozen")
    parameters = [p for g in groups for p in g["params"]]
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters):
        log.warning(
            "weights are trained in %s: updates below its precision are lost; model.dtype=float32 with "
            "train.autocast=bfloat16 keeps them", parameters[0].dtype,
        )  # fmt: skip
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), eps=train.eps, fused=fused)


def check_section(train: TrainSection) -> None:
    """Refuse values that cannot run, naming the key."""
    for key, known in (
        ("optimizer", ("adamw", "muon")), ("schedule", SCHEDULES), ("schedule_by", PROGRESS),
        ("autocast", ("none", "bfloat16")),
    ):  # fmt: skip
        value = getattr(train, key)
        if value not in known:
            raise ConfigError(f"train.{key}: no {value!r}.{suggest(value, known)} Known: {', '.join(known)}")
    for key, least in (("steps", 1), ("accumulate", 1), ("keep_checkpoints", 1), ("warmup_steps", 0)):
        if not isinstance(getattr(train, key), int) or getattr(train, key) < least:
            raise ConfigError(f"train.{key}: must be a whole number >= {least}, got {getattr(train, key)!r}")
    every = ("log_every_steps", "eval_every_steps", "save_every_steps")
    for key in (*every, "clip_norm", "max_seconds", "weight_decay", "lr"):
        if getattr(train, key) < 0:
            raise ConfigError(f"train.{key}: must be >= 0, got {getattr(train, key)!r}")
    for key in ("decay_start", "min_lr_ratio"):
        if not 0.0 <= getattr(train, key) <= 1.0:
            raise ConfigError(f"train.{key}: must lie in [0, 1], got {getattr(train, key)!r}")
    if train.schedule_by == "seconds" and train.max_seconds <= 0:
        raise ConfigError("train.schedule_by: seconds needs train.max_seconds > 0, the time the decay is spread over")


def _is_norm(module: nn.Module) -> bool:
    known = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    # Backbones define their own RMSNorm classes, which share no base but end in this word.
    return isinstance(module, known) or type(module).__name__.endswith("Norm")
