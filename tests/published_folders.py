"""Tiny folders in the layout of published diffusion language models: names, configuration and tokenizer, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.conftest import SENTENCES
from ttt.text.special_tokens import HEADER_TOKENS
from ttt.text.tokenizer import train_bpe

LLADA = {
    "activation_type": "silu", "alibi": False, "architectures": ["LLaDAModelLM"], "attention_layer_norm": False,
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "bias_for_layer_norm": False, "block_type": "llama", "d_model": 32, "include_bias": False, "include_qkv_bias": False,
    "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms", "max_sequence_length": 256, "mlp_hidden_size": 48,
    "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": 4, "n_kv_heads": 4, "n_layers": 2,
    "rms_norm_eps": 1e-5, "rope": True, "rope_theta": 500000.0, "scale_logits": False, "weight_tying": False,
}  # fmt: skip


def text_backend(*special: str) -> Any:
    """A byte-level BPE with these special tokens and no others."""
    from tokenizers import AddedToken, Tokenizer

    plain = json.loads(train_bpe(SENTENCES * 3, 290, 1).backend.to_str())
    plain["added_tokens"] = []
    backend = Tokenizer.from_str(json.dumps(plain))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend


def write_llada(folder: Path, seed: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    """GSAI-ML/LLaDA-8B in small, in two shards; ``changes`` of its configuration.  -> tensors by their published names."""
    backend = text_backend(*HEADER_TOKENS, "<|mdm_mask|>")
    rows = backend.get_vocab_size() + 9  # rows that only fill the table up
    config = {**LLADA, "vocab_size": rows, "embedding_size": rows, "mask_token_id": backend.token_to_id("<|mdm_mask|>")}
    config |= {"eos_token_id": backend.token_to_id("<|endoftext|>"), **changes}
    width, inner, kv = config["d_model"], config["mlp_hidden_size"], config["n_kv_heads"] * 8
    gen = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen) * 0.2

    shards: list[dict[str, torch.Tensor]] = [{"model.transformer.wte.weight": drawn(rows, width)}, {}]
    for layer, shard in enumerate(shards):
        shapes = {
            "attn_norm": (width,), "q_proj": (width, width), "k_proj": (kv, width), "v_proj": (kv, width),
            "attn_out": (width, width), "ff_norm": (width,), "ff_proj": (inner, width), "up_proj": (inner, width),
            "ff_out": (width, inner),
        }  # fmt: skip
        for name, shape in shapes.items():
            shard[f"model.transformer.blocks.{layer}.{name}.weight"] = drawn(*shape) + (len(shape) == 1)
    shards[1] |= {"model.transformer.ln_f.weight": drawn(width) + 1, "model.transformer.ff_out.weight": drawn(rows, width)}
    folder.mkdir(parents=True)
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("configuration_llada.py", "modeling_llada.py"):
        (folder / file).write_text("raise RuntimeError('this code must not run')\n")
    backend.save(str(folder / "tokenizer.json"))
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def write_dream(folder: Path, seed: int = 0) -> None:
    """Dream-org/Dream-v0 in small: Qwen2's names under another ``model_type``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    backend = text_backend("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")
    config = AutoConfig.for_model(
        "qwen2", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.2, vocab_size=backend.get_vocab_size() + 5, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    stored |= {
        "model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": backend.token_to_id("<|mask|>"),
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "modeling_dream.py").write_text("raise RuntimeError('this code must not run')\n")
    backend.save(str(folder / "tokenizer.json"))
