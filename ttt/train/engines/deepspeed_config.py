"""DeepSpeed's configuration from the recipe, or the user's own JSON with the recipe's values filled in.

In a JSON file ``"auto"`` means: what the recipe says.  A value that contradicts the recipe is refused with both values
named, so there is one place where a learning rate or a batch size is decided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError, suggest
from ttt.registry.families import OPTIMIZER
from ttt.train.optim import optimizer_name, optimizer_of

AUTO = "auto"
DEFAULT_STAGE = 2

# Sections of a JSON file that DeepSpeed may read as they are; everything else would be decided twice, or not at all.
PASSED = (
    "zero_optimization", "bf16", "data_types", "communication_data_type", "prescale_gradients",
    "gradient_predivide_factor", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger",
    "flops_profiler", "disable_allgather", "aio", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
)  # fmt: skip
DECIDED = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "fp16", "optimizer",
)  # fmt: skip
# Of these, what must be an object {...}.
SECTIONS = (
    "zero_optimization", "zero_optimization.offload_optimizer", "zero_optimization.offload_param", "bf16", "fp16", "data_types",
    "optimizer", "optimizer.params", "comms_logger", "flops_profiler", "aio",
)  # fmt: skip
INSTEAD = {
    "scheduler": "the recipe sets the learning rate (train.schedule, train.warmup_steps); remove the block",
    "amp": "use train.autocast=bfloat16",
    "torch_autocast": "use train.autocast=bfloat16, which keeps float32 master weights",
    "activation_checkpointing": "use model.gradient_checkpointing=true",
    "tensorboard": "use train.tensorboard", "wandb": "metrics.jsonl has every value",
    "csv_monitor": "metrics.jsonl has every value",
    "checkpoint": "checkpoints have a format of their own (docs/training.md)",
}  # fmt: skip


def check_deepspeed(train: TrainSection) -> None:
    """Refuse what cannot run, before anything heavy starts.  Reads the JSON file, does not import deepspeed."""
    if not optimizer_of(train).elementwise:
        fitting = [e.name for e in OPTIMIZER.entries() if getattr(e.cls, "elementwise", False)]
        raise ConfigError(
            f"train.optimizer: {optimizer_name(train)!r} needs whole parameters, ZeRO hands out flat pieces of them; use "
            f"train.optimizer={'|'.join(fitting)}, or train.engine=local"
        )
    deepspeed_config(train, 1, None)


def deepspeed_config(train: TrainSection, world_size: int, hidden_size: int | None) -> dict[str, Any]:
    """What ``deepspeed.initialize`` gets.

    ``hidden_size``: of the network, for ``"auto"`` bucket sizes; without it they are left to DeepSpeed.
    """
    path = train.deepspeed
    own = read_json(path) if path else {}
    stage = _stage(train, own)
    values = recipe_values(train, world_size, stage, hidden_size)
    config: dict[str, Any] = {}
    for key, value in own.items():
        if key in INSTEAD:
            raise ConfigError(f"{path}: {key}: {INSTEAD[key]}")
        if key not in PASSED + DECIDED:
            raise ConfigError(f"{path}: {key}: not supported.{suggest(key, PASSED + DECIDED)}")
        _check_sections(value, key, path)
        config[key] = _merged(value, key, values, path)
    _refuse_unsafe(config, path)
    for dotted, value in values.items():
        if not path or dotted in ALWAYS:
            _put(config, dotted, value)
    for key in ("optimizer", "fp16"):
        config.pop(key, None)  # the optimiser is handed over as an object; fp16 is known to be off
    bf16 = bool(config.get("bf16", {}).get("enabled"))
    if stage == 1 and bf16 and config.get("data_types", {}).get("grad_accum_dtype") == "fp32":
        raise ConfigError(f"{path}: data_types.grad_accum_dtype: fp32 with bf16 needs zero_optimization.stage 2 or 3")
    if bf16 and stage > 1:  # sixteen micro-batches summed in bfloat16 would lose half their bits
        config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    return config


# Filled in even where a JSON file is silent.
ALWAYS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "bf16.enabled",
    "bf16.check_grad_overflow", "zero_optimization.stage", "zero_force_ds_cpu_optimizer",
    "zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device",
)  # fmt: skip


def recipe_values(train: TrainSection, world_size: int, stage: int, hidden_size: int | None) -> dict[str, Any]:
    """What the recipe says, by dotted key of DeepSpeed's configuration: what ``"auto"`` becomes."""
    bf16, plain = train.autocast == "bfloat16", optimizer_name(train) == "adam"
    values: dict[str, Any] = {
        # Micro-batches are counted in tokens; DeepSpeed uses this number for its own throughput line only.
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": train.accumulate,
        "train_batch_size": train.accumulate * world_size, "gradient_clipping": train.clip_norm,
        "bf16.enabled": bf16, "fp16.enabled": False, "zero_optimization.stage": stage,
        "optimizer.type": "Adam" if plain else "AdamW", "optimizer.params.lr": train.lr,
        "optimizer.params.betas": list(train.betas), "optimizer.params.eps": train.eps,
        "optimizer.params.weight_decay": train.weight_decay, "optimizer.params.torch_adam": True,
        "optimizer.params.adam_w_mode": not plain, "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip
    if bf16:
        # A gradient that is not finite must stop the run, not reach the weights.
        values["bf16.check_grad_overflow"] = True
    if "optimizer" in train.offload:
        values["zero_optimization.offload_optimizer.device"] = "cpu"
    if "params" in train.offload:
        values["zero_optimization.offload_param.device"] = "cpu"
    if hidden_size:
        values["zero_optimization.reduce_bucket_size"] = max(hidden_size**2, 1_000_000)
    if hidden_size and stage == 3:
        values["zero_optimization.stage3_prefetch_bucket_size"] = int(0.9 * hidden_size**2)
        values["zero_optimization.stage3_param_persistence_threshold"] = 10 * hidden_size
    return values


# Whose value the user may choose freely; the recipe only has a word for "auto".
SUGGESTED = (
    "zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold", "optimizer.params.torch_adam",
)  # fmt: skip
# How the recipe spells what a key of the JSON contradicts.
RECIPE_KEYS = {
    "gradient_accumulation_steps": "train.accumulate", "gradient_clipping": "train.clip_norm", "bf16.enabled": "train.autocast",
    "fp16.enabled": "train.autocast", "zero_optimization.stage": "train.zero_stage", "optimizer.type": "train.optimizer",
    "optimizer.params.lr": "train.lr", "optimizer.params.betas": "train.betas", "optimizer.params.eps": "train.eps",
    "optimizer.params.weight_decay": "train.weight_decay", "zero_optimization.offload_optimizer.device": "train.offload",
    "zero_optimization.offload_param.device": "train.offload",
    "train_micro_batch_size_per_gpu": "data.batch_tokens (micro-batches are counted in tokens; write \"auto\")",
    "train_batch_size": "train.accumulate and the number of ranks (write \"auto\")",
}  # fmt: skip


def read_json(path: str) -> dict[str, Any]:
    """The user's file.  Raises `ConfigError` with the line of a fault."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"train.deepspeed: {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(f"train.deepspeed: {path}{line}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"train.deepspeed: {path}: must be an object {{...}}, got {type(found).__name__}")
    return found


def _stage(train: TrainSection, own: Mapping[str, Any]) -> int:
    zero = own.get("zero_optimization", {})
    _check_sections(zero, "zero_optimization", train.deepspeed)
    said = zero.get("stage", AUTO)
    if said == AUTO:
        return train.zero_stage or DEFAULT_STAGE
    if train.zero_stage not in (0, said):
        raise ConfigError(
            f"{train.deepspeed}: zero_optimization.stage is {said!r}, the recipe has train.zero_stage={train.zero_stage}; "
            'make them agree, or write "auto"'
        )
    if said not in (1, 2, 3):
        raise ConfigError(f"{train.deepspeed}: zero_optimization.stage: must be 1, 2 or 3, got {said!r}")
    return int(said)


def _check_sections(value: Any, key: str, path: str) -> None:
    if key in SECTIONS and not isinstance(value, dict):
        raise ConfigError(f"{path}: {key}: must be an object {{...}}, got {value!r}; mend or remove it")
    for name, inner in value.items() if key in SECTIONS else ():
        _check_sections(inner, f"{key}.{name}", path)


def _merged(value: Any, key: str, values: Mapping[str, Any], path: str) -> Any:
    if isinstance(value, Mapping):
        return {
            k: merged for k, v in value.items() if (merged := _merged(v, f"{key}.{k}", values, path)) is not DROPPED
        }
    if value == AUTO and isinstance(value, str):
        if key in values:
            return values[key]
        if key in SUGGESTED:
            return DROPPED  # DeepSpeed's own default
        raise ConfigError(f'{path}: {key}: the recipe has no value for "auto"; give a number, or remove the key')
    if key not in SUGGESTED and key in (*values, *RECIPE_KEYS) and not _same(value, values.get(key)):
        said = values.get(key, "nothing")
        where = RECIPE_KEYS.get(key, key)
        raise ConfigError(
            f'{path}: {key} is {value!r}, the recipe has {said!r} ({where}); make them agree, or write "auto"'
        )
    return value


DROPPED = object()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.lower() == other.lower()
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return float(one) == float(other) and isinstance(one, bool) == isinstance(other, bool)
    return one == other or (one == "none" and other is None)


def _refuse_unsafe(config: Mapping[str, Any], path: str) -> None:
    """Options whose state a checkpoint would not hold, or that change the arithmetic without a word in the recipe."""
    zero = config.get("zero_optimization", {})
    for part in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(part), Mapping) and zero[part].get("device") == "nvme":
            raise ConfigError(f"{path}: zero_optimization.{part}.device: nvme is not supported by checkpoints; use cpu")
    quantized = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")
    for option in ("zenflow", *quantized):
        if zero.get(option):
            raise ConfigError(f"{path}: zero_optimization.{option}: not supported; remove it")
    if zero.get("zero_hpz_partition_size", 1) != 1:
        raise ConfigError(f"{path}: zero_optimization.zero_hpz_partition_size: not supported; remove it")
    for option in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        if config.get("bf16", {}).get(option):
            raise ConfigError(f"{path}: bf16.{option}: checkpoints hold float32 master weights; remove it")


def _put(config: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value
