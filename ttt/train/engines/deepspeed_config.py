"""DeepSpeed's configuration from the recipe, or the user's own JSON file with the recipe's values filled in.

What the recipe decides (learning rate, batch size, ...) a JSON file may say as ``"auto"`` or with the equal value; another
value is refused with both named, so that there is one place where it is decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError, suggest
from ttt.io.json_input import read_json
from ttt.registry.families import OPTIMIZER
from ttt.train.optimizers import optimizer_name, optimizer_of

AUTO = "auto"
NONE = "none"  # DeepSpeed's own word for "not offloaded"
DEFAULT_STAGE = 2

# What a JSON file may hold besides the recipe's own keys; DeepSpeed reads it as it is.
PASSED = (
    "zero_optimization", "bf16", "fp16", "optimizer", "data_types", "communication_data_type", "prescale_gradients",
    "gradient_predivide_factor", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger",
    "flops_profiler", "disable_allgather", "aio", "zero_allow_untested_optimizer",
)  # fmt: skip
SECTIONS = {  # of these and of the recipe's keys, what must be an object {...}
    "zero_optimization", "zero_optimization.offload_optimizer", "zero_optimization.offload_param", "bf16", "fp16", "data_types",
    "optimizer", "optimizer.params", "comms_logger", "flops_profiler", "aio",
}  # fmt: skip
# Bucket sizes "auto" stands for; the user may choose freely.
SUGGESTED = (
    "zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
)  # fmt: skip
_NO_CHECKPOINT = "checkpoints hold float32 master weights; remove it"
REFUSED = {
    "scheduler": "the recipe sets the learning rate (train.schedule, train.warmup_steps); remove the block",
    "amp": "use train.autocast=bfloat16",
    "torch_autocast": "use train.autocast=bfloat16, which keeps float32 master weights",
    "activation_checkpointing": "use model.gradient_checkpointing=true",
    "tensorboard": "use train.tensorboard",
    "wandb": "metrics.jsonl has every value",
    "csv_monitor": "metrics.jsonl has every value",
    "checkpoint": "checkpoints have a format of their own (docs/training.md)",
    "bf16.bf16_master_weights_and_grads": _NO_CHECKPOINT,
    "bf16.bf16_optimizer_states": _NO_CHECKPOINT,
    "fp16.fp16_master_weights_and_grads": _NO_CHECKPOINT,
    **dict.fromkeys(
        (f"zero_optimization.{name}" for name in (
            "zenflow", "zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights",
            "zero_hpz_partition_size",
        )),
        "not supported; remove it",
    ),
}  # fmt: skip


def check_deepspeed(train: TrainSection) -> None:
    """Refuse what cannot run, before anything heavy starts.  Reads the JSON file, does not import deepspeed."""
    if not optimizer_of(train).elementwise:
        fitting = [e.name for e in OPTIMIZER.entries() if getattr(e.cls, "elementwise", False)]
        raise ConfigError(
            f"train.optimizer: {optimizer_name(train)!r} needs whole parameters, ZeRO hands out flat pieces of them; use "
            f"train.optimizer={'|'.join(fitting)}, or train.engine=local"
        )
    if train.ema:
        raise ConfigError(
            f"train.ema: {train.ema}, but ZeRO leaves no rank the whole weights to average; use train.engine=local, or ema=0"
        )
    deepspeed_config(train, 1, None)


def deepspeed_config(train: TrainSection, world_size: int, hidden_size: int | None) -> dict[str, Any]:
    """What ``deepspeed.initialize`` gets.  Raises `ConfigError` naming the file and the key.

    ``hidden_size``: of the network, for ``"auto"`` bucket sizes; without it they are left to DeepSpeed.
    """
    path = train.deepspeed
    own = _leaves(read_json(path, "name a JSON file in train.deepspeed", error=ConfigError), path) if path else {}
    own_stage = own.get("zero_optimization.stage")
    stage = train.zero_stage or (own_stage if own_stage in (1, 2, 3) else DEFAULT_STAGE)
    decided, suggested = recipe_values(train, world_size, stage), bucket_sizes(hidden_size, stage)
    leaves: dict[str, Any] = {} if path else dict(suggested)
    for key, value in own.items():
        _check_key(key, value, decided, path)
        if value != AUTO:
            leaves[key] = value
        elif key in suggested:
            leaves[key] = suggested[key]
    leaves |= {key: value for key, (value, _) in decided.items() if value != NONE}
    if leaves["bf16.enabled"]:
        # A gradient that is not finite must stop the run, not reach the weights.
        leaves["bf16.check_grad_overflow"] = True
        accumulated = leaves.get("data_types.grad_accum_dtype")
        if stage == 1 and accumulated == "fp32":
            raise ConfigError(f"{path}: data_types.grad_accum_dtype: fp32 with bf16 needs zero_optimization.stage 2 or 3")
        if stage > 1 and accumulated is None:  # sixteen micro-batches summed in bfloat16 would lose half their bits
            leaves["data_types.grad_accum_dtype"] = "fp32"
    if train.autocast == "float16" and stage > 1:
        leaves.setdefault("data_types.grad_accum_dtype", "fp32")
    # The optimizer is handed over as an object.
    own_parts = ("optimizer.",) if leaves["fp16.enabled"] else ("optimizer.", "fp16.")
    return _nested({key: value for key, value in leaves.items() if not key.startswith(own_parts)})


def recipe_values(train: TrainSection, world_size: int, stage: int) -> dict[str, tuple[Any, str]]:
    """What the recipe decides: dotted key of DeepSpeed's configuration -> (value, key of the recipe)."""
    plain_adam = optimizer_name(train) == "adam"
    return {
        # Micro-batches are counted in tokens; DeepSpeed uses this number for its own throughput line only.
        "train_micro_batch_size_per_gpu": (1, 'data.batch_tokens: micro-batches are counted in tokens, write "auto"'),
        "gradient_accumulation_steps": (train.accumulate, "train.accumulate"),
        "train_batch_size": (train.accumulate * world_size, "train.accumulate and the number of ranks"),
        "gradient_clipping": (train.clip_norm, "train.clip_norm"),
        "bf16.enabled": (train.autocast == "bfloat16", "train.autocast"),
        "fp16.enabled": (train.autocast == "float16", "train.autocast"),
        "zero_optimization.stage": (stage, "train.zero_stage"),
        "zero_optimization.offload_optimizer.device": ("cpu" if "optimizer" in train.offload else NONE, "train.offload"),
        "zero_optimization.offload_param.device": ("cpu" if "params" in train.offload else NONE, "train.offload"),
        "zero_force_ds_cpu_optimizer": (False, "train.optimizer"),
        "optimizer.type": ("Adam" if plain_adam else "AdamW", "train.optimizer"),
        "optimizer.params.lr": (train.lr, "train.lr"),
        "optimizer.params.betas": (list(train.betas), "train.betas"),
        "optimizer.params.eps": (train.eps, "train.eps"),
        "optimizer.params.weight_decay": (train.weight_decay, "train.weight_decay"),
        "optimizer.params.adam_w_mode": (not plain_adam, "train.optimizer"),
    }


def bucket_sizes(hidden_size: int | None, stage: int) -> dict[str, int]:
    """Values for "auto" of `SUGGESTED`, by the rules that transformers has for them; none without a size."""
    if not hidden_size:
        return {}
    sizes = max(hidden_size**2, 1_000_000), int(0.9 * hidden_size**2), 10 * hidden_size
    return dict(zip(SUGGESTED, sizes if stage == 3 else sizes[:1], strict=False))


def _leaves(node: Mapping[str, Any], path: str, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key.  Raises `ConfigError` for a section that is no object."""
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in SECTIONS and not isinstance(value, Mapping):
            raise ConfigError(f"{path}: {key}: must be an object {{...}}, got {value!r}; mend or remove it")
        leaves |= _leaves(value, path, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return leaves


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, value in leaves.items():
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return config


def _check_key(key: str, value: Any, decided: Mapping[str, tuple[Any, str]], path: str) -> None:
    for refused, reason in REFUSED.items():
        inside = key == refused or key.startswith(f"{refused}.")
        harmless = value in (False, None) or (key.endswith("zero_hpz_partition_size") and value == 1)
        if inside and ("." not in refused or not harmless):
            raise ConfigError(f"{path}: {refused}: {reason}")
    top, known = key.partition(".")[0], (*PASSED, *decided)
    if top not in known:
        raise ConfigError(f"{path}: {top}: not supported.{suggest(top, [k for k in known if '.' not in k])}")
    if key in decided:
        recipe_value, recipe_key = decided[key]
        if value != AUTO and not _equal(value, recipe_value):
            raise ConfigError(
                f'{path}: {key} is {value!r}, the recipe has {recipe_value!r} ({recipe_key}); make them agree, or write "auto"'
            )
    elif value == AUTO and key not in SUGGESTED and not key.startswith("optimizer."):
        raise ConfigError(f'{path}: {key}: the recipe has no value for "auto"; give a number, or remove the key')


def _equal(value: Any, recipe_value: Any) -> bool:
    if isinstance(value, str) and isinstance(recipe_value, str):
        return value.lower() == recipe_value.lower()
    return isinstance(value, bool) == isinstance(recipe_value, bool) and value == recipe_value
