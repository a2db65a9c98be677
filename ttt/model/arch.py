"""The architecture ``causal_lm``, and the network of a model folder of any architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ttt.config.schema import ModelSection
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Arch, Network, Task
from ttt.model.folder import refuse_changed, stored_arch
from ttt.registry import name_of
from ttt.registry.families import ARCH
from ttt.types import PackedBatch, TokenStream

if TYPE_CHECKING:
    import torch


@ARCH.register("causal_lm")
@dataclass(frozen=True)
class CausalLM(Arch):
    """A Hugging Face causal LM with rows for added tokens; `model.path` or `model.preset` says which."""

    example: ClassVar[Mapping[str, Any]] = {
        "preset": "toy", "overrides": {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2},
    }  # fmt: skip

    def start(
        self, section: ModelSection, tokenizer: Any, seed: int, code_vectors: Any = None, weights: str | Path = ""
    ) -> Network:
        """See `ttt.model.causal_lm.start_lm`."""
        from ttt.model.causal_lm import start_lm  # transformers takes seconds to import

        return start_lm(section, tokenizer, seed, code_vectors, weights)

    def open(self, folder: Path, attention: str, dtype: torch.dtype) -> Network:
        """From a folder written by ``save_pretrained``, adapters merged."""
        from ttt.model.causal_lm import load_lm

        return load_lm(folder, attention, dtype)


def open_network(folder: str | Path, attention: str = "sdpa", dtype: torch.dtype | None = None) -> Network:
    """The network of a model folder, whatever its architecture, in evaluation mode.  Raises `CheckpointError`."""
    import torch

    refuse_changed(Path(folder))
    arch = ARCH.build(dict(stored_arch(folder) or {"name": "causal_lm"}), f"{folder}/config.json")
    return arch.open(Path(folder), attention, torch.float32 if dtype is None else dtype).eval()


def check_tasks(arch: Any, objective: Any, tasks: Iterable[Task]) -> None:
    """Raise `ConfigError` when the architecture would drop the text that a task reads, or the objective move its prompt's end."""
    for task in tasks:
        if task.reads_voice and not getattr(arch, "text", True):
            raise ConfigError(
                f"model.arch.text: false, and task {task.label!r} speaks a text, which would be dropped; set model.arch.text=true"
            )
        if getattr(task, "fixed_prompt", False) and getattr(getattr(objective, "cut", None), "mode", "stored") != "stored":
            raise ConfigError(
                f"objective.cut.mode: {objective.cut.mode!r} cuts prompt and answer anew, and the prompts of task "
                f"{task.label!r} are other recordings; set objective.cut.mode=stored"
            )


def check_voices(arch: Any, objective: Any, examples: Iterable[TokenStream], dev: Iterable[PackedBatch] = ()) -> None:
    """Raise `DataError` for the first example without the vector that ``arch`` reads, in validation batches too; `ConfigError`
    for an objective that withholds what is not read.
    """
    size = getattr(arch, "voice_dim", 0)
    if not size:
        if getattr(objective, "voice_drop", 0):
            raise ConfigError("objective.voice_drop: the model reads no voice vectors (model.arch.voice_dim=0); leave it out")
        return
    for example in examples:
        found = 0 if example.voice is None else len(example.voice)
        if found != size:
            raise DataError(
                f"example {example.uid!r}: {f'its voice_vector has {found} numbers' if found else 'has no voice_vector'}, and "
                f"model.arch.voice_dim={size} reads {size}; add a list of {size} numbers to its meta"
            )
    for batch in dev:
        if batch.voices is None or batch.voices.shape[1] != size:
            raise DataError(
                f"data.dev: not all examples have a voice_vector of {size} numbers in their meta, which model.arch.voice_dim="
                f"{size} reads; add them"
            )


def check_arch(arch: Arch, wanted: str, who: str) -> None:
    """Raise `ConfigError` unless ``who`` (a key and a plug-in), which works with architecture ``wanted``, suits ``arch``."""
    name = name_of(arch)
    if wanted not in ("", name, arch.works_like):
        raise ConfigError(f"{who} works with architecture {wanted!r}, the run has {name!r}; set model.arch={wanted}")


def members(protocol: type) -> list[str]:
    """Names of the members that a protocol of `ttt.interfaces` declares, inherited ones included."""
    classes = [c for c in protocol.__mro__ if getattr(c, "_is_protocol", False)]
    names = {name for c in classes for name in (*vars(c), *vars(c).get("__annotations__", {}))}
    return sorted(name for name in names if not name.startswith("_"))


def missing_members(network: Any, protocol: type) -> list[str]:
    """Members of ``protocol`` that ``network`` lacks; none: it is one."""
    return [name for name in members(protocol) if not hasattr(network, name)]
