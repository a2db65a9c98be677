"""Architectures: the network a run starts with, and the network of a folder, whatever their class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.config.schema import ModelSection
from ttt.errors import ConfigError
from ttt.interfaces import Arch
from ttt.model.stored import stored_arch
from ttt.registry.families import ARCH

if TYPE_CHECKING:
    import torch


@ARCH.register("causal_lm")
@dataclass(frozen=True)
class CausalLM(Arch):
    """A Hugging Face causal LM with the vocabulary's new rows; its weights or shape stand in `model.path` or `model.preset`."""

    def start(
        self, section: ModelSection, tokenizer: Any, seed: int, code_vectors: Any = None, weights: str | Path = ""
    ):
        """See `ttt.model.start.starting_model`."""
        from ttt.model.start import starting_model

        return starting_model(section, tokenizer, seed, code_vectors, weights)

    def open(self, folder: Path, attention: str, dtype: torch.dtype) -> Any:
        """From a folder written by ``save_pretrained``, adapters merged."""
        from ttt.model.lm import SpeechTextLM

        return SpeechTextLM.load(folder, attention, dtype)


def open_model(folder: str | Path, attention: str = "sdpa", dtype: torch.dtype | None = None) -> Any:
    """The network of a model folder, of whatever class it is, ready to be asked: without dropout.  Raises `CheckpointError`."""
    import torch

    arch = ARCH.build(dict(stored_arch(folder) or {"name": "causal_lm"}), f"{folder}/config.json")
    return arch.open(Path(folder), attention, torch.float32 if dtype is None else dtype).eval()


def check_arch(name: str, wanted: str, who: str) -> None:
    """Raise `ConfigError` when ``who`` (a key and a plug-in) works with architecture ``wanted`` and the run has ``name``."""
    if wanted and name != wanted:
        raise ConfigError(f"{who} works with architecture {wanted!r}, the run has {name!r}; set model.arch={wanted}")
