"""The reference weights, put into a folder as the official program would save them, imported, and used."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.parity.conftest import cases, folder, need, rows, tensors
from ttt.masks.library import Hybrid
from ttt.masks.materialize import materialize
from ttt.model.causal_lm import load_lm
from ttt.model.lm import SpeechTextLM
from ttt.model.official import export, import_official, weight_files
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.samplers.blocks import Blockwise
from ttt.sampling.samplers.remask import LowConfidence
from ttt.types import ModelInputs, Prompt

NAMES = {
    "pad_id": "<|endoftext|>", "im_start_id": "<|im_start|>", "im_end_id": "<|im_end|>", "begin_of_audio_id": "<|begin_of_audio|>",
    "end_of_audio_id": "<|end_of_audio|>", "begin_of_quad_id": "<|begin_of_quad|>", "audio_tag_id": "<|audio|>",
    "mask_id": "<|mask_token|>", "end_of_audio_new_id": "<|end_of_audio_new|>",
    "end_of_audio_span_last_id": "<|end_of_audio_span_last|>",
}  # fmt: skip


@pytest.fixture(scope="session")
def official(layout, tmp_path_factory):
    """Weight file -> an official checkpoint folder with these weights."""
    from tokenizers import Tokenizer, models

    def make(file: str):
        out = tmp_path_factory.mktemp("official")
        config = dict(json.loads(need("config.json").read_text())["model"])
        config |= {
            "architectures": ["Qwen2ForARDiffLM"], "torch_dtype": config.pop("dtype"), "mask_token": layout["mask_id"],
            "audio_token_id_start": layout["audio_token_id_start"], "learn_padding": False,
        }  # fmt: skip
        (out / "config.json").write_text(json.dumps(config))
        shutil.copyfile(need(file), out / "model.safetensors")
        spelled = {layout[key]: name for key, name in NAMES.items()}
        spelled |= {i: f"<|audio_{i - layout['audio_code_first']}|>" for i in range(
            layout["audio_code_first"], layout["audio_code_last"] + 1)}  # fmt: skip
        words = {spelled.get(i, f"word{i}"): i for i in range(layout["vocab_size"])}
        Tokenizer(models.WordLevel(words, unk_token="word10")).save(str(out / "tokenizer.json"))
        return out

    return make


@pytest.fixture(scope="session")
def imported(official, tmp_path_factory):
    """Weight file -> the model that ``ttt model import`` makes of it."""
    loaded: dict[str, SpeechTextLM] = {}

    def get(file: str) -> SpeechTextLM:
        if file not in loaded:
            out = tmp_path_factory.mktemp("imported") / "model"
            import_official(official(file), out)
            loaded[file] = load_lm(out).eval()
        return loaded[file]

    return get


def test_ids_are_the_reference_ones(imported, vocab):
    assert imported("model_random.safetensors").tokenizer.vocab == vocab


@pytest.mark.parametrize("file", ["model_random.safetensors", "model_trained.safetensors"])
def test_round_trip(file, official, tmp_path):
    source = official(file)
    import_official(source, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", "official")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    before, after = (json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "back"))
    assert {k: after[k] for k in before} == before
    assert [p.name for p in weight_files(tmp_path / "back")] == ["model.safetensors"]


@pytest.mark.parametrize("case", cases("losses.json"))
def test_logits(case, vocab, imported):
    found, name = tensors("losses.safetensors"), case["name"]
    if f"{name}.logits" not in found:
        pytest.skip("the case has no logits")
    model = imported(json.loads((folder() / "losses.json").read_text())["model"])
    clean = found[f"{name}.input_ids"].long()
    batch = rows(clean, vocab, attention_mask=found[f"{name}.attention_mask"])
    ids = found.get(f"{name}.noisy_input_ids", clean).long()
    at = found[f"{name}.logit_positions"].long() + torch.arange(len(ids))[:, None] * ids.shape[1]
    mask = materialize(Hybrid(), batch.layout(), model.attention, model.dtype)
    with torch.no_grad():
        logits = model(ModelInputs(ids, batch.position, mask, at.flatten()))
    assert torch.allclose(logits.view(*at.shape, -1), found[f"{name}.logits"], atol=1e-4)


@pytest.mark.parametrize("case", cases("generate.json"))
def test_decoding(case, imported):
    p = case["params"]
    sampler = Blockwise(
        block_length=p["block_length"], gen_length=p["diffusion_gen_length"], diffusion_steps=p["diffusion_steps"],
        cfg_scale=p["cfg_scale"], temperature=p["diffusion_temperature"], remask=LowConfidence(),
    )  # fmt: skip
    settings = DecodeSettings(
        max_tokens=p["max_gen_len"], temperature=p["ar_temperature"], top_k=p["top_k"] or 0, top_p=p["top_p"] or 1.0,
        min_text_tokens_after_audio=p["min_text_tokens_after_audio"], strict=False,
    )  # fmt: skip
    (answer,) = Decoder(imported(case["model"]), Hybrid(), sampler, settings).generate(
        [Prompt("x", case["prompt_ids"])]
    )
    assert list(answer.ids) == case["new_ids"]
