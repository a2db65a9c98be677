"""LLaDA's and Dream's published layouts: names, numbers against a re-computation, how they are read, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from local_backbones import section
from safetensors.torch import load_file, save_file

from tests.published_folders import text_backend, write_dream, write_llada
from tests.tiny_runs import talk
from ttt.api import load
from ttt.cli.main import main
from ttt.data.encode import encode_example
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.masks.library import Full
from ttt.model.causal_lm import build_lm, load_lm
from ttt.model.published import import_any
from ttt.objective.row_logits import row_logits
from ttt.registry.families import SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Prompt, Span, Turn

ROOT = Path(__file__).resolve().parents[3]
SFT = str(ROOT / "recipes/llada/conf/sft.yaml")
QUERIES = "model.transformer.blocks.1.q_proj.weight"
SMALL = ["eval.sampler.gen_length=8", "eval.sampler.initial_length=4", "eval.sampler.num_iterations=2", "eval.max_tokens=8"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """``llada`` and ``dream`` as published, ``*_ours`` imported."""
    folder = tmp_path_factory.mktemp("published")
    write_llada(folder / "llada", n_kv_heads=2)
    write_dream(folder / "dream")
    for name in ("llada", "dream"):
        assert main(["model", "import", str(folder / name), str(folder / f"{name}_ours")]) == 0
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def recomputed(folder: Path, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] from the published names and configuration: norm, attention both ways, gated feed-forward part."""
    config, weights = json.loads((folder / "config.json").read_text()), tensors(folder)
    heads, groups, width = config["n_heads"], config["n_kv_heads"], config["d_model"]
    size = width // heads

    def of(name: str, layer: int | None = None) -> torch.Tensor:
        return weights["model.transformer." + ("" if layer is None else f"blocks.{layer}.") + f"{name}.weight"].double()

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * weight

    angle = torch.arange(len(ids)).double()[:, None] / config["rope_theta"] ** (torch.arange(0, size, 2).double() / size)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]  # [T, 1, size / 2]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        whole = torch.complex(x[..., : size // 2].contiguous(), x[..., size // 2 :].contiguous()) * turn
        return torch.cat([whole.real, whole.imag], -1)

    x = of("wte")[ids]
    for layer in range(config["n_layers"]):
        h = norm(x, of("attn_norm", layer))
        q = rotated((h @ of("q_proj", layer).T).view(len(ids), heads, size))
        k = rotated((h @ of("k_proj", layer).T).view(len(ids), groups, size)).repeat_interleave(heads // groups, 1)
        v = (h @ of("v_proj", layer).T).view(len(ids), groups, size).repeat_interleave(heads // groups, 1)
        share = (torch.einsum("qhd,khd->hqk", q, k) / size**0.5).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", share, v).reshape(len(ids), width) @ of("attn_out", layer).T
        h = norm(x, of("ff_norm", layer))
        x = x + (F.silu(h @ of("ff_proj", layer).T) * (h @ of("up_proj", layer).T)) @ of("ff_out", layer).T
    return norm(x, of("ln_f")) @ of("ff_out").T


def test_an_imported_llada_gives_the_published_numbers_here_and_in_plain_transformers(folders):
    from transformers import AutoModelForCausalLM

    ours = folders / "llada_ours"
    model = load_lm(ours).eval()
    ids = [model.tokenizer.vocab.mask_id, 5, 17, 60, 41, model.tokenizer.vocab.mask_id, 7, 8, 9]
    wanted = recomputed(folders / "llada", ids).float()
    found, _ = row_logits(model, Full(), np.array(ids))
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4) and wanted.std() > 0.1
    plain = AutoModelForCausalLM.from_pretrained(ours).eval()
    with torch.no_grad():
        assert torch.allclose(plain(torch.tensor([ids])).logits[0], wanted, atol=1e-4), "is_causal: false is obeyed"
    assert len(list(ours.glob("*.safetensors"))) == 2 and "is_causal" in (ours / "README.md").read_text()


def test_a_chat_is_written_as_published_and_the_mask_is_the_published_one(folders):
    tokenizer = load_lm(folders / "llada_ours").tokenizer
    assert tokenizer.vocab.mask_id == json.loads((folders / "llada/config.json").read_text())["mask_token_id"]
    chat = Example("a", (Turn("system", ()), Turn("user", (Span("text", "a cat"),))), "chat")
    stream = encode_example(chat, tokenizer, open_answer=True)
    spelled = "".join(tokenizer.backend.decode([int(i)], skip_special_tokens=False) for i in stream.ids)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert spelled == f"<|startoftext|>{head.format('user')}a cat<|eot_id|>{head.format('assistant')}"
    assert tokenizer.vocab.num_codes == 0 and not tokenizer.vocab.is_audio(np.arange(tokenizer.vocab.size)).any()


def test_dream_is_read_with_shifted_logits_and_with_nothing_else(folders):
    ours = folders / "dream_ours"
    config = json.loads((ours / "config.json").read_text())
    assert config["model_type"] == "qwen2" and config["ttt_reading"]["logit_alignment"] == "next"
    assert tensors(ours).keys() == tensors(folders / "dream").keys()
    with pytest.raises(ConfigError, match="'same', but the weights were trained with 'next' .*logit_alignment=next"):
        load(ours, *SMALL, config=SFT)
    model = load(ours, "objective.logit_alignment=next", "eval.strict=false", *SMALL, config=SFT)
    assert model.decoder().settings.logit_alignment == "next"
    assert model.generate("a cat", task="chat").generation.ids
    with pytest.raises(ConfigError, match="objective.mask: 'causal', but the weights were trained with 'full'"):
        load(ours, config=str(ROOT / "recipes/ar/conf/base.yaml"))


def test_chat_and_raw_completion_of_an_imported_folder(folders, monkeypatch, capsys):
    given = ("--config", SFT, *SMALL)
    code, out = talk(monkeypatch, capsys, folders / "llada_ours", ["a cat", "/save x/../../nowhere/s"], *given)
    assert code == 0 and out.count("model> ") == 1
    code, out = talk(monkeypatch, capsys, folders / "llada_ours", ["a cat", "/show", "/system be kind"], "--raw", *given)
    assert code == 0 and "has no place for a system message" in out
    from ttt.chat.conversation import Conversation

    tokenizer = load_lm(folders / "llada_ours").tokenizer
    talk_raw = Conversation(tokenizer, 100, raw=True)
    question = Turn("user", (Span("text", "a cat sat"),))
    assert list(talk_raw.ask(question, 8).prompt.ids) == tokenizer.encode("a cat sat"), "no template"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_type": "sequential"}, "block_type is 'sequential', in LLaDA's published models 'llama'"),
        ({"include_qkv_bias": True}, "include_qkv_bias is True"),
        ({"mask_token_id": 9999}, "mask_token_id 9999 is no token of tokenizer.json"),
        ({"n_layers": None}, "copy the folder again"),
        ({"n_layers": 3}, "weights missing, first 'model.layers.2"),
        ({"embedding_size": 40, "vocab_size": 40}, "40 token rows for"),
    ],
)
def test_what_is_no_published_llada_is_refused_and_nothing_written(folders, tmp_path, changes, says):
    shutil.copytree(folders / "llada", tmp_path / "other")
    config = {**json.loads((tmp_path / "other/config.json").read_text()), **changes}
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, DataError), match=says):
        import_any(tmp_path / "other", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {"model.transformer.blocks.1.query.weight": t}, r"1 of 21 weights missing.*1 of 21 weights unknown.*1\.query"),
        (lambda t: {QUERIES: t[:16].contiguous()}, rf"another shape, first '{QUERIES}': \(16, 32\) stored, \(32, 32\)"),
        (lambda t: {QUERIES: t.to(torch.int8)}, rf"no floats, first '{QUERIES}': I8"),
        (lambda t: {QUERIES: t.masked_fill(torch.eye(32).bool(), torch.nan)}, rf"model-00002.*{QUERIES} holds NaN"),
        (None, "model-00002-of-00002.safetensors: not readable as safetensors"),
    ],
)
def test_damaged_weights_are_refused_by_the_names_of_the_users_folder(folders, tmp_path, change, says):
    source = tmp_path / "other"
    shutil.copytree(folders / "llada", source)
    shard, index = source / "model-00002-of-00002.safetensors", source / "model.safetensors.index.json"
    if change is None:
        shard.write_bytes(shard.read_bytes()[:3000])
    else:
        stored = load_file(shard)
        stored |= change(stored.pop(QUERIES))
        save_file(stored, shard, metadata={"format": "pt"})
        places = json.loads(index.read_text())["weight_map"]
        places = {name: file for name, file in places.items() if file != shard.name} | dict.fromkeys(stored, shard.name)
        index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=says) as caught:
        import_any(source, tmp_path / "out")
    assert ".tmp" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["other"]


def backbone(folder: Path, kind: str, **fields) -> Path:
    """A random model of class ``kind`` with the tokenizer of the imitations."""
    from transformers import AutoConfig, AutoModelForCausalLM

    backend = text_backend("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask_token|>")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id"), 1)
    config = AutoConfig.for_model(kind, vocab_size=backend.get_vocab_size(), initializer_range=0.2, **sizes, **ends, **fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_experts_are_a_backbone_and_encoders_are_refused(tmp_path):
    experts = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    folder = backbone(tmp_path / "experts", "qwen3_moe", **experts)
    tokenizer = TextTokenizer.extended(folder, 0)
    model = build_lm(section(folder), tokenizer, 1).eval()
    ids = np.array([5, 6, tokenizer.vocab.mask_id, 9])
    found, _ = row_logits(model, Full(), ids)
    model.hf.config.is_causal = False
    with torch.no_grad():
        assert np.allclose(found, model.hf(torch.from_numpy(ids)[None]).logits[0].numpy(), atol=1e-4)
    settings = [DecodeSettings(max_tokens=8, cache=cache) for cache in ("exact", "none")]
    sampler = SAMPLER.build({"name": "blockwise", "canvas": "answer", "gen_length": 8, "block_length": 8}, "s")
    one, two = (Decoder(model, Full(), sampler, s).generate([Prompt("a", (5, 6, 7))])[0].ids for s in settings)
    assert list(one) == list(two) and one
    folder = backbone(tmp_path / "encoder", "bert", is_decoder=True)
    with pytest.raises(ConfigError, match=r"BertLMHeadModel has weights between .*cls.predictions.transform"):
        build_lm(section(folder), TextTokenizer.extended(folder, 0), 1)


def test_the_logits_of_a_run_and_the_attention_they_came_from(folders):
    model = load(folders / "llada_ours", "model.attention=eager", *SMALL, config=SFT)
    ids = [[5, 17, 60], [41, 7, 8]]
    logits, maps = model.logits(ids, attentions=True)
    assert np.allclose(logits[1], recomputed(folders / "llada", ids[1]).numpy(), atol=1e-4)
    assert maps.shape == (2, 2, 4, 3, 3) and np.allclose(maps.sum(-1), 1, atol=1e-5) and (maps > 0).all(), "both directions"
    assert np.array_equal(model.logits(ids[0]), logits[0])
    with pytest.raises(DataError, match="id 9999 in the row"):
        model.logits([5, 9999])
    with pytest.raises(ConfigError, match="attention maps need model.attention=eager"):
        load(folders / "llada_ours", *SMALL, config=SFT).logits(ids, attentions=True)


def test_likelihood_and_text_benchmarks_of_an_imported_folder(folders):
    from ttt.config.load import load_config
    from ttt.textbench.opening import make_scorer
    from ttt.textbench.scorer import ScorerSettings

    config = load_config([SFT], SMALL)
    scorer = make_scorer(folders / "llada_ours", config, ScorerSettings(max_tokens=8))
    vocab = scorer.tokenizer.vocab
    context, target = scorer.tokenizer.encode("a cat"), scorer.tokenizer.encode(" sat")[:1]
    (score,) = scorer.loglikelihood([("a cat", scorer.tokenizer.decode(target))])
    row = recomputed(folders / "llada", [*context, vocab.mask_id])[-1]
    row[~scorer.allowed] = -torch.inf
    assert score.logprob == pytest.approx(float(row.log_softmax(-1)[target[0]]), abs=1e-4)
    assert len(scorer.generate([("a cat sat", {})])) == 1
    with pytest.raises(ConfigError, match="were trained with 'full'"):
        make_scorer(folders / "llada_ours", load_config([], []), ScorerSettings())
