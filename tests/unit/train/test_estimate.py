"""Estimates: parameters and activations against what torch really holds, arithmetic against the textbook."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from ttt.cli.main import main
from ttt.config.load import load_config
from ttt.errors import ConfigError
from ttt.train import estimate

ROOT = Path(__file__).resolve().parents[3]
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY = [
    "model.preset=toy", f"model.overrides={json.dumps(SHAPE)}", "data.row_tokens=64", "data.batch_tokens=256",
    "data.num_codes=64", "data.bpe_size=300", "train.steps=2", "objective.strategies=[]",
    "model.attention=sdpa",
]  # fmt: skip


def config(*settings: str):
    return load_config([], [*TINY, *settings])


@pytest.fixture(scope="module")
def bench():
    """benchmarks/memory.py."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import memory

    return memory


def built(c):
    from transformers import AutoModelForCausalLM

    from ttt.model.shape import described

    hf = AutoModelForCausalLM.from_config(described(c.model, estimate.vocab_size(c)[0]), attn_implementation="sdpa")
    return hf.to(getattr(torch, c.model.dtype))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.autocast=bfloat16"],
        ["model.dtype=bfloat16"],
        ["model.gradient_checkpointing=true"],
        ["train.autocast=bfloat16", "model.gradient_checkpointing=true"],
    ],
)
def test_kept_activations_are_those_that_autograd_keeps(settings, bench):
    from types import SimpleNamespace

    from ttt.model.backbone import enable_checkpointing
    from ttt.model.lm import SpeechTextLM

    c = config(*settings)
    hf = built(c).train()
    if c.model.gradient_checkpointing:
        enable_checkpointing(hf)
    size = hf.config.vocab_size
    model = SpeechTextLM(hf, SimpleNamespace(vocab=SimpleNamespace(size=size)))
    measured = bench.saved_bytes(c, model, bench.batch_of(c, size))
    guess = c.data.batch_tokens * estimate.kept_bytes(c, estimate.shape_of(c))
    assert guess == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("extra", [[], ["model.overrides.tie_word_embeddings=false"]])
def test_parameters_are_counted_by_part(extra):
    c = config(*extra)
    shape, hf = estimate.shape_of(c), built(c)
    assert shape.parameters == sum(p.numel() for p in hf.parameters())
    assert shape.linear == sum(p.numel() for n, p in hf.named_parameters() if "_proj" in n)
    assert shape.parts["head"] == (hf.lm_head.weight.numel() if extra else 0)


def test_states_are_shared_out_as_zero_says():
    c = config("train.autocast=bfloat16")
    shape = estimate.shape_of(c)
    n = shape.parameters
    byte = {s: estimate.state_bytes(c, shape, s, 8) for s in range(4)}
    assert byte[0]["weights"] + byte[0]["gradients"] + byte[0]["optimizer"] == 16 * n
    assert byte[1] == {"weights": 2 * n, "gradients": 2 * n, "optimizer": 12 * n / 8}
    assert byte[2] == {"weights": 2 * n, "gradients": 4 * n / 8, "optimizer": 12 * n / 8}
    assert byte[3] == {"weights": 2 * n / 8, "gradients": 4 * n / 8, "optimizer": 12 * n / 8}


def test_averaged_weights_are_float32():
    c = config("train.ema=0.9", "train.autocast=float16")
    shape = estimate.shape_of(c)
    held = estimate.state_bytes(c, shape, 0, 1)
    assert held["averaged weights"] == 4.0 * sum(estimate.trained_parameters(c, shape).values())
    assert held["autocast copies"] == 2.0 * shape.linear


def test_arithmetic_is_six_per_weight_and_eight_with_checkpointing():
    plain, again = config("data.row_tokens=8"), config("data.row_tokens=8", "model.gradient_checkpointing=true")
    shape = estimate.shape_of(plain)
    head = 6.0 * shape.vocab * shape.width
    attention = 4.0 * 3 * 64 * 8
    assert estimate.flops_per_token(plain, shape, 1.0) == 6 * shape.linear + 3 * attention + head
    assert estimate.flops_per_token(again, shape, 1.0) == 8 * shape.linear + 4 * attention + head


@pytest.mark.parametrize("freeze", ("text_rows", "body", "text_model"))
@pytest.mark.parametrize("kind", ("qwen2", "qwen2-untied"))
def test_frozen_parts_have_no_gradient(tmp_path, kind, freeze):
    sys.path.insert(0, str(ROOT / "tests/unit/model"))
    from local_backbones import extended, make_backbone, section

    from ttt.model.causal_lm import start_lm

    folder = make_backbone(tmp_path, kind, width=64)
    c = config(f"model.path={folder}", f"model.freeze={freeze}", "data.num_codes=32", "model.overrides={}")
    model = start_lm(section(folder, freeze=freeze), extended(folder), 1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(estimate.trained_parameters(c, estimate.shape_of(c)).values()) == trained
    assert estimate.state_bytes(c, estimate.shape_of(c), 0, 1)["optimizer"] == 8 * trained


def test_adapters_hold_little(tmp_path):
    pytest.importorskip("peft")
    sys.path.insert(0, str(ROOT / "tests/unit/model"))
    from local_backbones import extended, make_backbone, section

    from ttt.config.schema import LoraSection
    from ttt.model.causal_lm import build_lm

    folder = make_backbone(tmp_path, "qwen2-untied", width=64)
    c = config(f"model.path={folder}", "model.lora.rank=8", "data.num_codes=32", "model.overrides={}")
    shape = estimate.shape_of(c)
    model = build_lm(section(folder, LoraSection(rank=8)), extended(folder), 1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(estimate.trained_parameters(c, shape).values()) == trained
    byte = estimate.state_bytes(c, shape, 0, 1)
    assert (
        byte["weights"]
        == 4 * sum(p.numel() for p in model.parameters()) - 4 * estimate.trained_parameters(c, shape)["adapters"]
    )
    assert byte["optimizer"] == 8 * trained


def test_the_verb_prints_time_and_money_and_refuses_another_batch(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: {row_tokens: 64, batch_tokens: 256}\nmodel: {preset: toy}\ntrain: {steps: 10, accumulate: 2}\n"
    )
    assert main(["estimate", str(recipe), "--gpus", "4", "--price", "2", "--tokens", "1e9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["update"] == {"rows": 32, "of": "rows", "tokens": 2048, "steps": 10}
    assert found["hours"] == pytest.approx(1e9 / found["tokens_per_s"] / 3600)
    assert found["cost"] == pytest.approx(2 * found["gpu_hours"]) == pytest.approx(8 * found["hours"])
    assert main(["estimate", str(recipe), "--gpus", "4", "--price", "2"]) == 0
    out = capsys.readouterr().out
    assert "ZeRO-3" in out and "at 40% of 312 TFLOP/s (assumed)" in out and "(10 updates, rows taken as full)" in out
    for argv, message in (
        (["--gpus", "4", "--global-batch", "64"], "accumulate 2 = 32 rows an update, not 64: give train.accumulate=4"),
        (["--gpus", "3", "--global-batch", "64"], "give another number of GPUs"),
        (["--gpu", "a100"], "--gpu: no 'a100'. Did you mean 'a100-"),
        (["--mfu", "40"], "--mfu and --loss-share in (0, 1]"),
        (["--tokens", "-1"], "--tokens: must be a finite number >= 0, got -1"),
        (["--price", "nan"], "--price: must be a finite number >= 0, got nan"),
        (["--vocab", "-5"], "--vocab: must be a finite number >= 0, got -5"),
        (["--global-batch", "-64"], "needs --gpus and --global-batch >= 1, got 8 and -64"),
        (["--global-batch", "64", "data.batch_tokens=32"], "data.batch_tokens: 32 must be a multiple of data.row_tokens = 64"),
        (["data.batch_tokens=32"], "data.batch_tokens: 32 must be a multiple of data.row_tokens = 64"),
        (["data.row_tokens=0"], "data.row_tokens: must be >= 1, got 0"),
        (["train.accumulate=0"], "train.accumulate: must be >= 1, got 0"),
        (["model.overrides.num_attention_heads=0"], "model.overrides.num_attention_heads: must be a whole number >= 1, got 0"),
        (["model.overrides.num_hidden_layers=0"], "model.overrides.num_hidden_layers: must be a whole number >= 1, got 0"),
        (["model.preset=toyy"], "name a folder with model.path, or a shape"),
    ):  # fmt: skip
        assert main(["estimate", str(recipe), *argv]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["model.lora.rank=2", "model.lora.quantize=nf4"], "quantized weights cannot be spread"),
        (["model.dtype=bfloat16"], "bfloat16 weights need train.autocast=bfloat16"),
        (["train.ema=0.9"], "train.ema needs whole weights"),
        (["train.optimizer=muon"], "muon needs whole parameters"),
        (["model.lora.rank=2"], ""),
    ],
)
def test_what_zero_refuses_has_no_columns(settings, reason):
    """As the DeepSpeed engine says, which is not asked: it would need the weights."""
    from ttt.train.estimate_page import estimate_page

    found = estimate.estimate(config(*settings), gpus=8, gpu="h100-80gb", mfu=0.4)
    assert found["zero_refuses"] == reason and list(found["memory"]) == [f"zero-{s}" for s in range(1 if reason else 4)]
    page = estimate_page(found, False, 0.0).splitlines()
    (fits,) = (line.split() for line in page if "fits" in line)
    assert fits == (["fits", "-", "-", "-"] if reason else ["fits"] * 4)
    assert any(f"ZeRO: {reason}; train.engine=local" in line for line in page) == bool(reason)


def test_a_single_micro_batch_does_not_add_gradients_to_activations():
    one, two = config("train.accumulate=1"), config("train.accumulate=2")
    shape = estimate.shape_of(one)
    first, more = (estimate.memory(c, shape, 0, 1, 0.6) for c in (one, two))
    layer = one.data.batch_tokens * estimate.layer_bytes(one, shape)
    either = max(first["activations"] + first["loss"], first["gradients"] + layer)
    assert first["total"] == pytest.approx(first["weights"] + first["optimizer"] + either)
    assert more["total"] == pytest.approx(sum(v for k, v in more.items() if k != "total"))
    assert more["total"] > first["total"]


def test_unknown_targets_are_refused():
    c = config("model.lora.rank=2", "model.lora.targets=[wqkv]")
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: no 'wqkv'"):
        estimate.trained_parameters(c, estimate.shape_of(c))
