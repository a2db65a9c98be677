"""What a training run starts with: a backbone with new rows, adapters around it, or the weights of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ttt.config.schema import ModelSection
from ttt.errors import ConfigError
from ttt.model.backbone import enable_checkpointing, weight_type
from ttt.model.frozen import frozen
from ttt.model.lm import SpeechTextLM
from ttt.text.tokenizer import TextTokenizer


def starting_model(
    section: ModelSection, tokenizer: TextTokenizer, seed: int, code_vectors: Any = None, start: str | Path = ""
) -> SpeechTextLM:
    """The model of ``section``; with ``start``, a model folder, its weights in ``section``'s type instead of the backbone's.

    Adapters in ``start`` are merged first: what goes on from there is a whole model.
    """
    if not start:
        return frozen(SpeechTextLM.build(section, tokenizer, seed, code_vectors), section)
    if section.lora.rank:
        raise ConfigError(
            "train.init_from: adapters (model.lora) sit on a frozen base, which must be a folder of its own: name it with "
            f"model.path={start} and leave train.init_from empty"
        )
    model = SpeechTextLM.load(start, section.attention, weight_type(section))
    if section.gradient_checkpointing:
        enable_checkpointing(model.hf)
    return frozen(model, section).train()
