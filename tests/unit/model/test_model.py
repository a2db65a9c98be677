import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import random_batch, tiny_hf, tiny_tokenizer
from ttt.config.schema import ModelSection
from ttt.errors import CheckpointError, ConfigError
from ttt.masks.library import Causal, Hybrid
from ttt.masks.materialize import materialize
from ttt.model.backbone import build_backbone, load_hf
from ttt.model.cache import PackedCall, SlotCache, attend
from ttt.model.causal_lm import load_lm
from ttt.model.lm import SpeechTextLM
from ttt.registry.families import INITIALIZER
from ttt.types import ModelInputs

TOKENIZER = tiny_tokenizer()
V = TOKENIZER.vocab
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}

SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}


def section(init="normal", **fields):
    fields = fields if "path" in fields or "preset" in fields else {"preset": "toy", "overrides": SMALL, **fields}
    return ModelSection(init=INITIALIZER.build(init, "model.init"), **fields)


def embedding(hf):
    return hf.get_input_embeddings().weight.detach()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A saved text model whose vocabulary ends before the audio tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("base")
    config = AutoConfig.for_model(
        "qwen2", **SMALL, num_key_value_heads=2, vocab_size=V.soa_id - 5, tie_word_embeddings=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_preset_has_a_row_per_id_and_is_deterministic():
    one, two, other = (build_backbone(section(), V, seed) for seed in (1, 1, 2))
    assert embedding(one).shape == (V.size, 32) and torch.equal(embedding(one), embedding(two))
    assert not torch.equal(embedding(one), embedding(other)) and one.config.pad_token_id == V.pad_id


def test_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_backbone(section(), V, 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("init", ["normal", "mean"])
def test_new_rows(init, base):
    hf = build_backbone(section(init, path=str(base)), V, 3)
    old = embedding(load_hf(base))
    table, new = embedding(hf), embedding(hf)[len(old) :]
    assert torch.equal(table[: len(old)], old), "what was there before is unchanged"
    assert len(table) == V.size == hf.config.vocab_size
    if init == "normal":
        assert float(new.std()) == pytest.approx(0.02, rel=0.1) and abs(float(new.mean())) < 0.003
    else:
        assert torch.allclose(new.mean(0), old.mean(0), atol=3 * 0.1 * 0.02 / len(new) ** 0.5 + 1e-3)
    head = hf.get_output_embeddings().weight
    assert len(head) == V.size and not torch.equal(head[len(old) :], new), "an untied head gets rows of its own"
    again = build_backbone(section(init, path=str(base)), V, 3)
    assert torch.equal(embedding(again), table)


def test_larger_folders_are_not_cut(base, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("qwen2", **SMALL, num_key_value_heads=2, vocab_size=V.size + 40)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert embedding(build_backbone(section(path=str(tmp_path)), V, 1)).shape[0] == V.size + 40


def test_codes_start_where_they_sound_alike():
    vectors = np.random.default_rng(0).normal(size=(1, V.num_codes, 6)).astype(np.float32)
    vectors[0, 1] = vectors[0, 0] + 0.01
    hf = build_backbone(section("codes"), V, 1, vectors)
    rows = embedding(hf)[V.code_start : V.code_stop]
    assert float(rows.std()) == pytest.approx(0.02, rel=0.15)
    distance = torch.cdist(rows, rows) + 9 * torch.eye(len(rows))
    assert int(distance[0].argmin()) == 1 and float(distance[0, 1]) > 0, "twins are near each other and not equal"


def test_codes_need_vectors_of_this_vocabulary():
    with pytest.raises(ConfigError, match="model.init: 'codes' needs a codec with code vectors"):
        build_backbone(section("codes"), V, 1)
    with pytest.raises(ConfigError, match="the codec has 7 codes, the vocabulary 32"):
        build_backbone(section("codes"), V, 1, np.zeros((1, 7, 4), np.float32))


def test_save_and_load_in_plain_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = SpeechTextLM(tiny_hf(), TOKENIZER)
    model.save(tmp_path)
    plain, batch = AutoModelForCausalLM.from_pretrained(tmp_path), random_batch()
    again = load_lm(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == V.size and again.tokenizer.vocab == V
    n = int(batch.visible[0].sum())
    ids, at = batch.ids[:1, :n], torch.arange(n)
    layout = replace(batch.layout(), **{k: torch.zeros_like(batch.doc) for k in ("doc", "stream")})
    layout = type(layout)(**{k: getattr(layout, k)[:1, :n] for k in layout.__dataclass_fields__})
    mask = materialize(Causal(), layout, "sdpa", torch.float32)
    with torch.no_grad():
        ours = [m(ModelInputs(ids, at[None], mask, at)) for m in (model, again)]
        theirs = plain(input_ids=ids).logits[0]
    assert torch.equal(ours[0], ours[1]) and torch.allclose(ours[0], theirs, atol=1e-5)


def test_forward_gives_the_selected_positions_only():
    model, batch = SpeechTextLM(tiny_hf(), TOKENIZER), random_batch()
    mask = materialize(Hybrid(), batch.layout(), model.attention, model.dtype)
    with torch.no_grad():
        every = model(ModelInputs(batch.ids, batch.position, mask, torch.arange(batch.ids.numel())))
        some = model(ModelInputs(batch.ids, batch.position, mask, torch.tensor([7, 3])))
    assert some.shape == (2, V.size) and torch.allclose(some, every[[7, 3]], atol=1e-6)


@pytest.mark.parametrize(
    "fields, pattern",
    [
        ({"preset": "mnii"}, r"^model\.preset: no shape named 'mnii'\. Did you mean 'mini'\? Shapes: toy, mini"),
        ({"preset": "toy", "overrides": {"hiden_size": 8}}, r"^model\.overrides\.hiden_size: qwen2 has no .*'hidden_size'"),
        ({"preset": "toy", "attention": "flash_attention_2"}, "^attention: no 'flash_attention_2'. Did you mean 'flex_attention'"),
        ({"preset": "toy", "dtype": "flaot16"}, "^dtype: no 'flaot16'. Did you mean 'float16'"),
        ({"preset": ""}, r"^model\.path: missing; give a local folder, or a shape with model\.preset=toy\|mini"),
        ({"preset": "toy", "overrides": SLIDING}, "sliding_attention would ignore their window"),
    ],
)  # fmt: skip
def test_refusals(fields, pattern):
    with pytest.raises(ConfigError, match=pattern):
        build_backbone(section(**fields), V, 1)


def test_folders_that_are_no_model(tmp_path, base):
    with pytest.raises(CheckpointError, match=r"gone: no model here \(config\.json is missing\)"):
        load_hf(tmp_path / "gone")
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(CheckpointError, match="no weights; save the model as safetensors"):
        load_hf(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\), which can run code"):
        load_hf(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 0.5])
def test_cut_short_weights(tmp_path, base, size):
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    whole = (base / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: int(len(whole) * size) if isinstance(size, float) else size])
    with pytest.raises(CheckpointError, match="cannot be loaded: ") as error:
        load_hf(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_config(tmp_path, base):
    (tmp_path / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_hf(tmp_path)


def test_tokenizer_of_another_model(base):
    with pytest.raises(CheckpointError, match="they do not belong together"):
        SpeechTextLM(load_hf(base), TOKENIZER)


def test_gradient_checkpointing_and_bfloat16():
    hf = build_backbone(section(gradient_checkpointing=True, dtype="bfloat16"), V, 1)
    assert hf.is_gradient_checkpointing and hf.dtype == torch.bfloat16


def test_slot_cache_keeps_rows_apart_and_grows():
    """Three calls on rows of their own lengths give the attention that each row alone would have."""
    cache, module = SlotCache(3, 4), SimpleNamespace(layer_idx=0)
    keys = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(1))  # [row, heads, position, width]
    values = keys.flip(2)

    def call(*parts):
        """``parts``: (row, first new position, one past the last)."""
        packed = PackedCall(cache)
        for row, start, stop in parts:
            packed.add(torch.zeros(stop - start, dtype=torch.long), row, start, torch.arange(stop - start))
        pick = lambda x: torch.cat([x[row, :, start:stop] for row, start, stop in parts], 1)[None]  # noqa: E731
        out, _ = attend(module, pick(keys), pick(keys), pick(values), packed=packed)
        alone = [
            torch.nn.functional.scaled_dot_product_attention(keys[r, :, a:b], keys[r, :, :b], values[r, :, :b])
            for r, a, b in parts
        ]
        assert torch.allclose(out[0].transpose(0, 1), torch.cat(alone, 1), atol=1e-6)

    call((0, 0, 3), (1, 0, 1), (2, 0, 2))
    call((2, 2, 6), (0, 1, 5))  # beyond the first capacity; row 0 writes two columns anew
    call((1, 1, 2))
    assert cache.capacity == 8
