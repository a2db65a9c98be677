"""What `SpeechTextLM.prepare` changes: time, nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.conftest import tiny_hf, tiny_tokenizer
from ttt.model.cache import PackedCall, SlotCache
from ttt.model.last_layer import is_narrow
from ttt.model.lm import SpeechTextLM
from ttt.packed_weights import Packed, available, pack, unpack

packs = pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN operators")


def model(kind="qwen2", layers=2):
    return SpeechTextLM(copy.deepcopy(tiny_hf(kind, layers)), tiny_tokenizer()).eval()


def two_calls(lm):
    """Wanted states of a call on two rows, one cached, and of the call that comes after it."""
    gen = torch.Generator().manual_seed(3)
    cache = SlotCache(1, 16)
    ids = torch.randint(0, 60, (12,), generator=gen)
    out = []
    for start, mask in ((0, torch.rand(6, 6, generator=gen) > 0.3), (4, None)):
        count = 6 if start == 0 else 3
        mask = mask if mask is None else mask | torch.eye(6, dtype=torch.bool)
        call = PackedCall(cache)
        call.add(ids[:count], 0, start, torch.tensor([1, count - 1]), mask)
        call.add(ids[count : count + 5], None, 0, torch.tensor([4]))
        with torch.no_grad():
            out.append(lm.hidden_of_rows(call))
    return out


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_wanted_states_are_the_same(kind, layers, monkeypatch):
    """Through the backbone's modules, through them with a narrow last layer, and in few steps."""
    lm = model(kind, layers)
    plain = two_calls(lm)
    with monkeypatch.context() as m:
        m.setattr("ttt.model.lm.fast", lambda decoder: None)
        lm.prepare()
        assert is_narrow(lm.hf.get_decoder()) and lm._fast is None
        narrow = two_calls(lm)
        lm.train()
        assert not is_narrow(lm.hf.get_decoder())
    lm.eval().prepare()
    assert (lm._fast is not None) == available()
    for others in (narrow, two_calls(lm)):
        for a, b in zip(plain, others, strict=True):
            assert a.shape == b.shape == (3, 32) and torch.allclose(a, b, atol=1e-5)


@packs
def test_biases_and_scaled_positions():
    """What a released backbone may have beside the plain case."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 5.0e5}  # fmt: skip
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        vocab_size=tiny_tokenizer().vocab.size, attention_bias=True, mlp_bias=True, rope_parameters=rope,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            if name.endswith("bias") or "norm" in name:
                p.normal_()
    lm = SpeechTextLM(hf, tiny_tokenizer()).eval()
    plain = two_calls(lm)
    lm.prepare()
    assert lm._fast is not None
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, two_calls(lm), strict=True))


@packs
def test_changed_weights_are_never_answered_with_old_ones():
    lm = model()
    lm.prepare()
    before = two_calls(lm)
    with torch.no_grad():
        for p in lm.hf.get_decoder().layers[0].parameters():
            p.mul_(1.5)
    changed = two_calls(lm)  # through the modules
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(before, changed, strict=True))
    lm.prepare()
    assert lm._fast.fresh
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(changed, two_calls(lm), strict=True))


def test_the_last_layer_does_no_more_than_it_has_to(monkeypatch):
    monkeypatch.setattr("ttt.model.lm.fast", lambda decoder: None)
    lm = model()
    seen = {}
    for name, module in lm.hf.get_decoder().layers[-1].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda m, x, n=name: seen.setdefault(n.split(".")[-1], []).append(x[0].shape[1])
            )
    lm.prepare()
    two_calls(lm)
    assert seen["down_proj"] == seen["o_proj"] == [3, 3]  # wanted tokens; all of them: 11 and 8
    assert seen["k_proj"] == [11, 3, 8, 3]


@packs
def test_packed_layers_follow_their_weights():
    lm, x = model(), torch.randn(7, 32)
    layer = lm.hf.get_decoder().layers[0].mlp.gate_proj
    names = list(lm.state_dict())
    with torch.no_grad():
        before = layer(x)
        pack(lm)
        assert isinstance(layer.forward, Packed) and torch.allclose(layer(x), before, atol=1e-6)
        assert list(lm.state_dict()) == names and type(layer) is torch.nn.Linear
        layer.weight.mul_(2)
        assert torch.allclose(layer(x), 2 * before, atol=1e-5)  # changed behind its back: computed plainly
        pack(lm)
        assert layer.forward.fresh and torch.allclose(layer(x), 2 * before, atol=1e-5)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    unpack(lm)
    assert "forward" not in vars(layer)


@packs
def test_head_of_a_range_of_ids():
    lm, hidden = model(), torch.randn(5, 32)
    with torch.no_grad():
        whole = lm.head(hidden)
        lm.prepare()
        for ids in (slice(0, 60), slice(100, lm.tokenizer.vocab.size), slice(0, 60)):
            assert torch.allclose(lm.head(hidden, ids), whole[:, ids], atol=1e-5)
        lm.hf.get_output_embeddings().weight.mul_(3)
        assert torch.allclose(lm.head(hidden, slice(0, 60)), 3 * whole[:, :60], atol=1e-4)


@packs
def test_a_row_does_not_feel_its_company():
    """What makes batches of any size give the same tokens, to the last bit."""
    layer = torch.nn.Linear(64, 96)
    packed, x = Packed(layer), torch.randn(40, 64)
    with torch.no_grad():
        whole = packed(x)
        assert all(torch.equal(packed(x[:n]), whole[:n]) for n in (1, 2, 7, 26))


@packs
def test_a_copy_computes_with_its_own_weights():
    lm, x = model(), torch.randn(3, 32)
    lm.prepare()
    pack(lm)
    twin = copy.deepcopy(lm)
    layer = twin.hf.get_decoder().layers[0].mlp.up_proj
    with torch.no_grad():
        layer.weight.zero_()
        assert not twin._fast.fresh and lm._fast.fresh
        assert not layer(x).any() and lm.hf.get_decoder().layers[0].mlp.up_proj(x).any()


def test_other_types_and_weights_that_are_elsewhere_are_left_alone():
    half, sharded = torch.nn.Linear(4, 4, dtype=torch.bfloat16), torch.nn.Linear(4, 4)
    sharded.weight.data = torch.empty(0)  # what ZeRO-3 leaves a rank between layers
    for layer in (half, sharded):
        pack(layer)
        assert "forward" not in vars(layer)


def test_a_pytorch_without_the_operators_is_named_once(monkeypatch, caplog):
    available.cache_clear()
    monkeypatch.setattr("ttt.packed_weights._NAMES", ("_reorder_linear_weight", "_gone"))
    lm = model()
    before = two_calls(lm)
    lm.prepare()
    assert lm._fast is None
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, two_calls(lm), strict=True))
    (line,) = [r.getMessage() for r in caplog.records if r.name == "ttt.packed_weights"]
    assert f"torch {torch.__version__}: " in line and "mkldnn::_gone are missing" in line
    available.cache_clear()
