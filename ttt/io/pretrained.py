"""Folders written by ``save_pretrained``: the one place where transformers is asked to read one.

No code of the folder is run, unless the recipe says ``model.trust_remote_code``; no pickle is read, which can run code too; no
weight is left at the random value it starts with; NaN and infinite weights are refused.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.errors import CheckpointError, TttError, UntrustedCodeError
from ttt.io.digests import digest_of_file
from ttt.io.json_input import read_json

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".th")
INDEX = "model.safetensors.index.json"
_own_code: ContextVar[bool] = ContextVar("ttt_own_code", default=False)


@contextlib.contextmanager
def own_code(allowed: bool) -> Iterator[None]:
    """Within this block, code of model folders is run where ``allowed`` (``model.trust_remote_code``)."""
    token = _own_code.set(allowed)
    try:
        yield
    finally:
        _own_code.reset(token)


def load_pretrained(opener: Any, folder: Path, **options: Any) -> Any:
    """``opener.from_pretrained(folder)`` of a model.  With ``output_loading_info=True`` -> (model, what did not fit).

    Raises `CheckpointError` for pickled weights, `UntrustedCodeError` for code; else whatever transformers raises.
    """
    refuse_pickles(folder)
    return load_settings(opener, folder, use_safetensors=True, **options)


def load_settings(opener: Any, folder: Path, **options: Any) -> Any:
    """``opener.from_pretrained(folder)`` of a configuration, a processor or a feature extractor; no weights."""
    refuse_code(folder)
    return opener.from_pretrained(str(folder), local_files_only=True, trust_remote_code=_own_code.get(), **options)


def from_settings(opener: Any, config: Any, **options: Any) -> Any:
    """``opener.from_config(config)``: a model without weights."""
    allowed = _own_code.get() or type(config).__module__.startswith("transformers_modules")  # itself of that code
    return opener.from_config(config, trust_remote_code=allowed, **options)


def refuse_code(folder: Path) -> None:
    """Raise `UntrustedCodeError` where a JSON file of ``folder`` names Python code (``auto_map``) and nobody allowed it.

    Where it is allowed, says in the log whose code runs.
    """
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".index.json") or path.name in ("tokenizer.json", "vocab.json"):
            continue
        try:
            value = read_json(path, "", kind=None)
        except TttError:
            continue  # whoever needs the file says what is wrong with it
        names = sorted(set(_code_of(value)))
        if not names:
            continue
        files = [folder / f"{name.rpartition('--')[2].partition('.')[0]}.py" for name in names]
        digests = [f"{file.name} {digest_of_file(file)}" for file in dict.fromkeys(files) if file.is_file()]
        what = f"{', '.join(names)}{f' ({chr(44).join(digests)})' if digests else ''}"
        if not _own_code.get():
            raise UntrustedCodeError(
                f"{path}: auto_map names code of the folder, {what}, which is not run; take auto_map out where transformers' own "
                "class will do, or allow the code of a backbone with model.trust_remote_code=true"
            )
        log.warning("%s: runs code of this folder, %s: model.trust_remote_code", path, what)


def _code_of(value: Any, depth: int = 0) -> Iterator[str]:
    """Every class that an ``auto_map`` names, in nested configurations too."""
    if not isinstance(value, Mapping) or depth > 8:
        return
    for key, inner in value.items():
        if key == "auto_map" and inner:
            yield from _texts(inner)
        else:
            yield from _code_of(inner, depth + 1)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for inner in value.values() for text in _texts(inner))
    elif isinstance(value, list):
        yield from (text for inner in value for text in _texts(inner))


def refuse_pickles(folder: Path) -> None:
    """Raise `CheckpointError` unless the weights of ``folder`` are safetensors, whole or in the shards of an index."""
    convert = (
        "save them as safetensors (where you trust the folder: AutoModel.from_pretrained(DIR).save_pretrained(OUT), with the "
        "class of the model)"
    )
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder}: adapters without their base (adapter_config.json); name a folder with all weights")
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX, "copy the folder again", error=CheckpointError).get("weight_map")
        if not isinstance(listed, dict):
            raise CheckpointError(f"{folder / INDEX}: lists no weights (no object 'weight_map'); copy the folder again")
        for name in listed.values():
            if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
                raise CheckpointError(f"{folder / INDEX}: lists {name!r}, which is no safetensors file of this folder; {convert}")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / INDEX}: lists {name}, which is not there; copy the folder again")
    elif not (folder / "model.safetensors").is_file() and not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise CheckpointError(
                f"{folder}: only pickled weights ({', '.join(pickles[:3])}), which can run code when they are read; {convert}"
            )
        raise CheckpointError(f"{folder}: no weights; save the model as safetensors")


def refuse_misfits(
    folder: Path, info: Mapping[str, Any], *, may_lack: Callable[[str], bool] = lambda name: False, strict: bool = True
) -> None:
    """Raise `CheckpointError` for weights that the folder lacks, and (``strict``) for those that the model has no place for.

    ``info``: what transformers says with ``output_loading_info``; tied weights and buffers that are not stored are no part
    of it.
    """
    missing = sorted(name for name in info["missing_keys"] if not may_lack(name))
    odd = sorted(name for name in info["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq"))
    for names, what in ((missing, "lack"), (odd if strict else [], "hold what config.json does not describe:")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{folder}: the weights {what} {', '.join(names[:3])}{more}; weights and config.json do not belong together, "
                "copy the folder again"
            )
    if odd:
        log.warning("%s: %d weights are not used, first %s", folder, len(odd), odd[0])


def refuse_nonfinite(folder: Path | str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `CheckpointError` naming the first tensor that holds NaN or an infinite number."""
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        values = tensor.detach()
        low, high = (values if values.element_size() > 1 else values.float()).aminmax()  # NaN passes through
        if not bool((high - high == 0) & (low - low == 0)):
            raise CheckpointError(
                f"{folder}: {name} holds NaN or infinite weights: the training diverged, or the file is damaged; use an "
                "earlier checkpoint, or copy the folder again"
            )
