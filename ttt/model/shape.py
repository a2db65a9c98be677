"""Backbones without weights: what a configuration describes, counted on torch's ``meta`` device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ttt.config.schema import ModelSection
from ttt.errors import CheckpointError, ConfigError, TttError
from ttt.io.pretrained import from_settings, load_settings, own_code
from ttt.model.backbone import PRESETS, check_preset, quiet
from ttt.model.folder import refuse_other_arch
from ttt.registry import name_of
from ttt.text.special_tokens import FINAL_SPECIALS, MULTIMODAL_SPECIALS

QWEN_TOKENS = 151_665  # ids of the Qwen2.5 tokenizer
ADDED = len(MULTIMODAL_SPECIALS) + len(FINAL_SPECIALS)


def expected_weights(folder: Path) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """(name -> shape of every tensor that ``folder/config.json`` describes, names that may be absent because they are tied)."""
    hf = meta_model(read_hf_config(folder))
    once = {name for name, _ in hf.named_parameters()}
    twice = {name for name, _ in hf.named_parameters(remove_duplicate=False)}
    return {name: tuple(value.shape) for name, value in hf.state_dict().items()}, twice - once


def read_hf_config(folder: Path) -> Any:
    """transformers' configuration object of a model folder.  Raises `CheckpointError`."""
    from transformers import AutoConfig

    refuse_other_arch(folder, "causal_lm")
    quiet()
    try:
        return load_settings(AutoConfig, folder)
    except TttError:
        raise
    except Exception as error:  # damaged files surface as many types
        raise CheckpointError(
            f"{folder / 'config.json'}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def meta_model(config: Any) -> Any:
    """The causal LM of a configuration object, shapes only."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return from_settings(AutoModelForCausalLM, config)
    except TttError:
        raise
    except Exception as error:  # values that cannot be surface as many types
        raise CheckpointError(
            f"{getattr(config, '_name_or_path', '')}/config.json: transformers cannot build such a model: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def described(section: ModelSection, vocab_size: int) -> Any:
    """The configuration object of ``section`` with ``vocab_size`` ids at least; reads ``config.json``, no weights."""
    arch = section.arch
    name = arch if isinstance(arch, str) else name_of(arch)
    if name != "causal_lm":
        raise ConfigError(f"model.arch: the shape of a {name!r} stands in its own fields; this counts causal LMs only")
    if section.path:
        if not (Path(section.path) / "config.json").is_file():
            raise CheckpointError(f"{section.path}: no model here (config.json is missing)")
        with own_code(section.trust_remote_code):
            config = read_hf_config(Path(section.path))
    elif section.preset in PRESETS:
        quiet()
        config = check_preset(section, vocab_size)
    else:
        raise ConfigError(f"model: name a folder with model.path, or a shape with model.preset={'|'.join(PRESETS)}")
    config.vocab_size = max(int(config.vocab_size), vocab_size)
    return config


def parameter_counts(hf: Any) -> dict[str, int]:
    """Parameters by part: ``embedding``, ``head`` (0 when tied), ``attention``, ``mlp``, ``rest`` (norms and others)."""
    counts = {"embedding": 0, "head": 0, "attention": 0, "mlp": 0, "rest": 0}
    embedding, head = hf.get_input_embeddings().weight, hf.get_output_embeddings().weight
    for name, parameter in hf.named_parameters():
        if parameter is embedding:
            part = "embedding"
        elif parameter is head:
            part = "head"
        elif ".mlp." in name:
            part = "mlp"
        elif "attn" in name and parameter.ndim > 1 or name.endswith("_proj.bias"):
            part = "attention"
        else:
            part = "rest"
        counts[part] += parameter.numel()
    return counts
