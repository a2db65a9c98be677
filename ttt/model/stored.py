"""Which architecture wrote a model folder: ``config.json`` says it under a key that Hugging Face's configurations lack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt.errors import CheckpointError

KEY = "ttt_model"


def stored_arch(folder: str | Path) -> Mapping[str, Any] | None:
    """The architecture (a block with ``name``) of a folder; None for a Hugging Face causal LM, or when it is no model."""
    try:
        found = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    block = found.get(KEY) if isinstance(found, Mapping) else None
    return block if isinstance(block, Mapping) and "name" in block else None


def refuse_other_arch(folder: str | Path, name: str) -> None:
    """Raise `CheckpointError` unless ``folder`` holds a model of class ``name``."""
    block = stored_arch(folder)
    found = str(block["name"]) if block is not None else "causal_lm"
    if found != name:
        raise CheckpointError(f"{folder}: holds a model of class {found!r}; this works with {name!r} only")
