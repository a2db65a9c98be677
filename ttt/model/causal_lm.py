"""Makes speech-text language models: from a configuration, from a folder, or from the weights of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ttt.config.schema import ModelSection
from ttt.errors import ConfigError
from ttt.model.backbone import build_backbone, compile_layers, enable_checkpointing, load_hf, weight_type
from ttt.model.folder import check_tokenizer, refuse_other_arch
from ttt.model.frozen import frozen
from ttt.model.lm import SpeechTextLM
from ttt.model.lora import AdaptedLM, is_adapter, load_merged
from ttt.text.tokenizer import TextTokenizer, stored_chat_template


def start_lm(
    section: ModelSection, tokenizer: TextTokenizer, seed: int, code_vectors: Any = None, start: str | Path = ""
) -> SpeechTextLM:
    """The model that a run of ``section`` starts with: frozen, compiled and checkpointed as it says.

    With ``start``, a model folder, its weights in ``section``'s type instead of the backbone's.  Adapters in ``start`` are
    merged first: training goes on with a whole model.
    """
    if not start:
        model = frozen(build_lm(section, tokenizer, seed, code_vectors), section)
    elif section.lora.rank:
        raise ConfigError(
            "train.init_from: adapters (model.lora) sit on a frozen base, which must be a folder of its own: name it with "
            f"model.path={start} and leave train.init_from empty"
        )
    else:
        model = load_lm(start, section.attention, weight_type(section))
        if section.gradient_checkpointing:
            enable_checkpointing(model.hf)
        model = frozen(model, section).train()
    if section.compile:
        compile_layers(model.hf)
    return model


def build_lm(
    section: ModelSection, tokenizer: TextTokenizer, seed: int, code_vectors: Any = None
) -> SpeechTextLM:
    """From a configuration (`build_backbone`); with ``section.lora``, adapters around it (`ttt.model.lora`)."""
    if section.path:
        check_tokenizer(Path(section.path), tokenizer.token)
        tokenizer.chat_template = tokenizer.chat_template or stored_chat_template(section.path)
    if section.lora.rank:
        return AdaptedLM.build(section, tokenizer, seed, code_vectors)
    return SpeechTextLM(build_backbone(section, tokenizer.vocab, seed, code_vectors), tokenizer)


def load_lm(folder: str | Path, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> SpeechTextLM:
    """From a folder written by `SpeechTextLM.save`, which plain transformers can load too.

    Adapters come merged into their base.  Raises `CheckpointError` for a folder of another architecture.
    """
    refuse_other_arch(folder, "causal_lm")
    if is_adapter(folder):
        return load_merged(folder, attention, dtype)
    return SpeechTextLM(load_hf(folder, attention, dtype), TextTokenizer.load(folder))
