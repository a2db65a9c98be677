"""Training that starts from another run's weights."""

import dataclasses

import pytest
import torch

from tests.conftest import tiny_hf, tiny_tokenizer
from ttt.config.schema import LoraSection, ModelSection
from ttt.errors import ConfigError
from ttt.model.causal_lm import start_lm
from ttt.model.lm import SpeechTextLM


def test_the_sections_type_and_checkpointing_hold_for_other_weights_too(tmp_path):
    before = SpeechTextLM(tiny_hf(), tiny_tokenizer())
    before.save(tmp_path)
    section = ModelSection(dtype="bfloat16", gradient_checkpointing=True)
    model = start_lm(section, tiny_tokenizer(), 1, start=tmp_path)
    assert model.training and model.dtype == torch.bfloat16
    assert all(torch.equal(p, q.bfloat16()) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    calls = []
    layer = model.hf.model.layers[0].self_attn
    layer.register_forward_hook(lambda *a: calls.append(1))
    x = torch.tensor([[1, 2, 3]])
    model.hidden(x, x, None).sum().backward()
    assert len(calls) == 2, "computed again in the backward pass"


def test_adapters_need_a_base_of_their_own(tmp_path):
    section = ModelSection(lora=dataclasses.replace(LoraSection(), rank=4))
    with pytest.raises(ConfigError, match=r"^train\.init_from: adapters .* name it with model\.path="):
        start_lm(section, tiny_tokenizer(), 1, start=tmp_path)
