"""DeepSpeed's configuration: the recipe decides, "auto" is filled in, contradictions name both values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError, MissingExtraError
from ttt.train.engines import check_engine
from ttt.train.engines.deepspeed_config import deepspeed_config

SHIPPED = Path(__file__).resolve().parents[3] / "recipes/_shared/ds_zero3.json"


def section(**values) -> TrainSection:
    return TrainSection(
        **{"steps": 10, "engine": "deepspeed", "accumulate": 16, "lr": 2e-5, "autocast": "bfloat16", **values}
    )


def made(tmp_path: Path, own: dict | None = None, hidden: int | None = 64, **values) -> dict:
    if own is not None:
        path = tmp_path / "ds.json"
        path.write_text(json.dumps(own))
        values["deepspeed"] = str(path)
    return deepspeed_config(section(**values), 8, hidden)


def test_everything_comes_from_the_recipe(tmp_path):
    config = made(tmp_path, zero_stage=3, offload=["optimizer", "params"], clip_norm=0.5)
    assert config == {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 16, "train_batch_size": 128, "gradient_clipping": 0.5,
        "bf16": {"enabled": True, "check_grad_overflow": True}, "data_types": {"grad_accum_dtype": "fp32"},
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"},
            "reduce_bucket_size": 1_000_000, "stage3_prefetch_bucket_size": 3686, "stage3_param_persistence_threshold": 640,
        },
    }  # fmt: skip
    assert made(tmp_path)["zero_optimization"]["stage"] == 2


def test_auto_means_the_recipe(tmp_path):
    config = made(tmp_path, json.loads(SHIPPED.read_text()), hidden=2000)
    assert config["zero_optimization"] == {
        "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 4_000_000,
        "stage3_prefetch_bucket_size": 3_600_000, "stage3_param_persistence_threshold": 20_000,
    }  # fmt: skip
    assert (
        config["bf16"]["enabled"] is True and config["train_batch_size"] == 128 and config["gradient_clipping"] == 1.0
    )
    assert "auto" not in json.dumps(config) and "optimizer" not in config


def test_the_options_of_published_files_pass_through(tmp_path):
    zero = {
        "stage": 3, "allgather_partitions": True, "allgather_bucket_size": 5e8, "overlap_comm": True, "reduce_scatter": True,
        "contiguous_gradients": True, "sub_group_size": 1e9, "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    }  # fmt: skip
    autos = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    own = {"zero_optimization": {**zero, **dict.fromkeys(autos, "auto")}, "zero_allow_untested_optimizer": True}
    config = made(tmp_path, own, hidden=1000)
    assert config["zero_optimization"] == {**zero, **dict(zip(autos, (1_000_000, 900_000, 10_000)))}
    left = made(tmp_path, own, hidden=None)["zero_optimization"]
    assert left == zero  # without a size to go by, DeepSpeed's own defaults


def test_values_that_agree_are_welcome(tmp_path):
    own = {
        "gradient_accumulation_steps": 16, "gradient_clipping": 1, "bf16": {"enabled": True}, "steps_per_print": 100,
        "optimizer": {"type": "adamw", "params": {"lr": 2e-5, "betas": [0.9, 0.95], "torch_adam": True}},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 7},
    }  # fmt: skip
    config = made(tmp_path, own, zero_stage=1)
    assert config["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 7} and config["steps_per_print"] == 100


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"gradient_accumulation_steps": 4},
            r"gradient_accumulation_steps is 4, the recipe has 16 \(train.accumulate\)",
        ),
        ({"gradient_clipping": 0.3}, r"gradient_clipping is 0.3, the recipe has 1.0 \(train.clip_norm\)"),
        ({"bf16": {"enabled": False}}, r"bf16.enabled is False, the recipe has True \(train.autocast\)"),
        ({"fp16": {"enabled": True}}, r"fp16.enabled is True, the recipe has False"),
        ({"optimizer": {"type": "Lamb"}}, r"optimizer.type is 'Lamb', the recipe has 'AdamW' \(train.optimizer\)"),
        ({"optimizer": {"params": {"lr": 1e-4}}}, r"optimizer.params.lr is 0.0001, the recipe has 2e-05 \(train.lr\)"),
        ({"train_micro_batch_size_per_gpu": 4}, r"is 4, the recipe has 1 \(data.batch_tokens: .*write \"auto\"\)"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization.stage is 3, the recipe has 2 \(train.zero_stage\)"),
        ({"zero_optimization": {"stage": 0}}, r"zero_optimization.stage is 0, the recipe has 2 \(train.zero_stage\)"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            r"offload_optimizer.device is 'cpu', the recipe has 'none' \(train.offload\)",
        ),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, r"offload_param.device"),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, r"zero_hpz_partition_size: not supported"),
        ({"zero_optimization": {"sub_group_size": "auto"}}, r'sub_group_size: the recipe has no value for "auto"'),
        ({"zero_optimization": {"zero_hpz_partition_size": "two"}}, r"zero_hpz_partition_size: not supported"),
        ({"zero_optimization": True}, r"zero_optimization: must be an object"),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, r"offload_optimizer: must be an object {...}, got 'cpu'"),
        ({"zero_optimization": {"offload_param": None}}, r"offload_param: must be an object {...}, got None; mend or rem"),
        ({"bf16": True}, r"bf16: must be an object {...}, got True; mend or remove it"),
        ({"fp16": False}, r"fp16: must be an object"),
        ({"data_types": "fp32"}, r"data_types: must be an object {...}, got 'fp32'"),
        ({"optimizer": "AdamW"}, r"optimizer: must be an object"),
        ({"optimizer": {"params": [1]}}, r"optimizer.params: must be an object"),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler: the recipe sets the learning rate"),
        ({"gradient_cliping": 1.0}, r"gradient_cliping: not supported. Did you mean 'gradient_clipping'\?"),
    ],
)
def test_contradictions_are_refused(tmp_path, own, message):
    with pytest.raises(ConfigError, match=message) as info:
        made(tmp_path, own, zero_stage=2)
    assert str(tmp_path) in str(info.value)


def test_fp32_sums_of_bfloat16_gradients_need_stage_two(tmp_path):
    with pytest.raises(ConfigError, match="grad_accum_dtype: fp32 with bf16 needs zero_optimization.stage 2 or 3"):
        made(tmp_path, {"data_types": {"grad_accum_dtype": "fp32"}}, zero_stage=1)
    assert "data_types" not in made(tmp_path, zero_stage=1)


def test_a_broken_file_names_its_line(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"bf16": {"enabled": "auto"},\n "x": }')
    with pytest.raises(ConfigError, match=r"ds.json:2: not JSON"):
        check_engine(section(deepspeed=str(path)))
    with pytest.raises(ConfigError, match=r"none.json: no such file"):
        check_engine(section(deepspeed=str(tmp_path / "none.json")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "deepsped"}, "engine: no 'deepsped'. Did you mean 'deepspeed'?"),
        (
            {"engine": "local", "zero_stage": 2},
            "train.zero_stage: 2 needs train.engine=deepspeed, the recipe has 'local'",
        ),
        ({"zero_stage": 4}, "zero_stage: no 4. Choices: 0, 1, 2, 3"),
        ({"offload": ["optimiser"]}, "offload[0]: no 'optimiser'. Did you mean 'optimizer'?"),
        ({"optimizer": "muon"}, "train.optimizer: 'muon' needs whole parameters"),
        ({"rank_timeout_s": 0.0}, "rank_timeout_s: must be > 0"),
    ],
)
def test_sections_that_cannot_run(values, message):
    with pytest.raises(ConfigError) as info:
        check_engine(section(**values))
    assert message in str(info.value)


@pytest.mark.parametrize("version", ["0.18.9", "0.20.0", "1.0.0"])
def test_versions_with_other_private_parts_are_refused(version):
    from ttt.train.engines.deepspeed import REQUIREMENT, check_version

    check_version("0.19.0")
    check_version("0.19.8+cpu")
    with pytest.raises(MissingExtraError, match=rf"deepspeed {version}: .* known for versions 0.19 only; pip install"):
        check_version(version)
    assert REQUIREMENT.strip("'") in (SHIPPED.parents[2] / "setup.py").read_text()
