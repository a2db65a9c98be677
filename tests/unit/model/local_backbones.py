"""Backbone folders as people have them: a text model, its tokenizer.json, more rows in the table than tokens."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tests.conftest import NUM_CODES, SENTENCES
from ttt.config.schema import LoraSection, ModelSection
from ttt.registry.families import INITIALIZER
from ttt.text.tokenizer import TextTokenizer, train_bpe

KINDS = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 16},
    "llama": {"tie_word_embeddings": False, "rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 5.0e5}},
    "qwen2-untied": {"tie_word_embeddings": False},
}  # fmt: skip
PADDING = 7  # rows of the table beyond the tokenizer


@lru_cache(maxsize=1)
def text_tokenizer() -> Any:
    """A byte-level BPE with a chat model's special tokens and nothing else."""
    from tokenizers import AddedToken, Tokenizer

    plain = json.loads(train_bpe(SENTENCES * 3, 290, 1).backend.to_str())
    plain["added_tokens"] = []
    backend = Tokenizer.from_str(json.dumps(plain))
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return backend


def make_backbone(folder: Path, kind: str, seed: int = 0, width: int = 32, **save: Any) -> Path:
    """A random model of class ``kind`` over the text tokenizer, saved with `save_pretrained` (its options: ``save``)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    backend = text_tokenizer()
    config = AutoConfig.for_model(
        kind.split("-")[0], hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1,
        vocab_size=backend.get_vocab_size(with_added_tokens=True) + PADDING, **KINDS[kind],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder, **save)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def extended(folder: Path) -> TextTokenizer:
    return TextTokenizer.extended(folder, NUM_CODES)


def section(folder: Path, lora: LoraSection | None = None, init: Any = "normal", **fields: Any) -> ModelSection:
    return ModelSection(
        path=str(folder), init=INITIALIZER.build(init, "model.init"), lora=lora or LoraSection(), **fields
    )
