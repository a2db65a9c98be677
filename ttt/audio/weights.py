"""Fitted weights in a folder: ``<stem>.safetensors`` beside ``<stem>.json``, which holds the digest of the former."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Eight hex digits that stand for these weights; the same after saving and loading."""
    return hashlib.blake2b(_to_bytes(tensors), digest_size=4).hexdigest()


def save_weights(folder: str | Path, stem: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write both files to a temporary folder, then move them in place; other files of the folder stay.

    A crash between the two moves leaves a digest that does not fit, which `load_weights` refuses.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(exist_ok=True)
    try:
        content = _to_bytes(tensors)
        (temporary / f"{stem}.safetensors").write_bytes(content)
        record = {**info, "weights": hashlib.blake2b(content, digest_size=4).hexdigest()}
        (temporary / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in (f"{stem}.safetensors", f"{stem}.json"):
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_weights(folder: str | Path, stem: str, mend: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and what the JSON says.  Every refusal is a `CheckpointError` naming the folder; ``mend`` says what to do."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not str(folder):
        raise CheckpointError(f"{stem}.path: not set: {mend}")
    folder = Path(folder)
    weights, record = folder / f"{stem}.safetensors", folder / f"{stem}.json"
    for path in (weights, record):
        if not path.is_file():
            raise CheckpointError(f"{folder}: no fitted {stem} here ({path.name} is missing): {mend}")
    try:
        info = json.loads(record.read_text(encoding="utf-8"))
        if not isinstance(info, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise CheckpointError(f"{folder}: {record.name} cannot be read ({error}): {mend}") from error
    content = weights.read_bytes()
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: {weights.name} is damaged or cut short ({error}): {mend}") from error
    if info.get("weights") != hashlib.blake2b(content, digest_size=4).hexdigest():
        raise CheckpointError(f"{folder}: {weights.name} and {record.name} do not belong together: {mend}")
    return tensors, info


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # cloned: safetensors refuses arrays that share memory (tied weights)
    return save({name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)})
