"""Model folders: which architecture wrote one, whether it is complete, and its weights read into a network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ttt.errors import CheckpointError, DataError
from ttt.io.json_input import read_json
from ttt.io.pretrained import refuse_nonfinite, refuse_pickles
from ttt.io.sealed import check_files

log = logging.getLogger(__name__)

MARKER = "COMPLETE"  # of a checkpoint: sizes and digests of its files, written last
KEY = "ttt_model"  # key of config.json that names the architecture; configurations of Hugging Face models lack it


def stored_arch(folder: str | Path) -> Mapping[str, Any] | None:
    """The architecture of a folder (a block with ``name``); None for a Hugging Face causal LM, or if it holds no model."""
    try:
        config = read_json(Path(folder) / "config.json", "copy the folder again", kind=None)
    except DataError:
        return None
    block = config.get(KEY) if isinstance(config, Mapping) else None
    return block if isinstance(block, Mapping) and "name" in block else None


def refuse_other_arch(folder: str | Path, name: str) -> None:
    """Raise `CheckpointError` unless ``folder`` holds a model of architecture ``name``."""
    block = stored_arch(folder)
    stored = str(block["name"]) if block is not None else "causal_lm"
    if stored != name:
        raise CheckpointError(
            f"{folder}: holds a model of architecture {stored!r}; this works with {name!r} only, name another folder"
        )


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no model in safetensors, saying what to do."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: no model here (config.json is missing); name a folder made by save_pretrained"
        )
    if (folder / "adapter.json").is_file() or (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder}: adapters without their base; make a whole model of them first ('ttt model merge {folder} OUT')"
        )
    refuse_pickles(folder)
    refuse_changed(folder)


def refuse_changed(folder: Path) -> None:
    """Compare a model folder inside a checkpoint with the sizes and digests that ``COMPLETE`` lists; others have no such list.

    Files are read once (`ttt.io.sealed`).  Raises `CheckpointError` naming the file.
    """
    folder = Path(os.path.abspath(folder))
    marker = folder.parent / MARKER
    if folder.name in ("model", "model_ema") and marker.is_file():
        mend = "use another checkpoint, or copy it again"
        listed = listed_files(marker, mend)
        weights = {name: entry for name, entry in listed.items() if name.startswith(f"{folder.name}/")}
        check_files(folder.parent, weights, MARKER, mend, CheckpointError)


def listed_files(marker: Path, mend: str) -> Mapping[str, Any]:
    """Name -> size and digest of every file of a checkpoint, from its ``COMPLETE``.  Raises `CheckpointError`."""
    listed = read_json(marker, mend, error=CheckpointError).get("files")
    if not isinstance(listed, dict):
        raise CheckpointError(f"{marker}: lists no files; {mend}")
    return listed


def check_tokenizer(folder: Path, token: Callable[[int], str]) -> None:
    """Refuse a run whose tokenizer gives the backbone's ids other meanings; ``token``: id -> spelling in the run."""
    if not (folder / "tokenizer.json").is_file():
        return
    for spelling, number in _tokenizer(folder).get_vocab(with_added_tokens=True).items():
        if token(number) != spelling:
            raise CheckpointError(
                f"data.tokenizer: id {number} is {token(number)!r} there and {spelling!r} in {folder}: the weights would be "
                "read under wrong names; make it from this backbone ('ttt tokenizer')"
            )


def _tokenizer(folder: Path) -> Any:
    from ttt.text.tokenizer import read_backend

    return read_backend(folder / "tokenizer.json", CheckpointError)


def own_tokens(folder: Path, rows: int) -> int:
    """How many ids the folder's own tokenizer has, of a table of ``rows``: the rest pads the table and was never trained."""
    if not (folder / "tokenizer.json").is_file():
        log.warning("%s: no tokenizer.json; all %d token rows count as trained", folder, rows)
        return rows
    return min(rows, _tokenizer(folder).get_vocab_size(with_added_tokens=True))


def read_into(target: nn.Module, folder: Path) -> None:
    """Copy the safetensors of ``folder`` into ``target``, in place; only weights tied to a stored one may be missing.

    Raises `CheckpointError` for weights of another model.
    """
    from safetensors.torch import load_file

    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(path))
    if not stored:
        raise CheckpointError(f"{folder}: no *.safetensors here; this is not a model folder")
    have = target.state_dict()
    present = {have[name].data_ptr() for name in stored if name in have}
    missing = [name for name, value in have.items() if name not in stored and value.data_ptr() not in present]
    odd = [name for name in stored if name not in have]
    shapes = [n for n in stored if n in have and have[n].shape != stored[n].shape]
    if missing or odd or shapes:
        raise CheckpointError(
            f"{folder}: weights of another model: {len(missing)} missing{_first(missing)}, "
            f"{len(odd)} unknown{_first(odd)}, {len(shapes)} of another shape{_first(shapes)}"
        )
    refuse_nonfinite(folder, stored.items())
    target.load_state_dict(stored, strict=False)


def _first(names: list[str]) -> str:
    return f" (first {names[0]!r})" if names else ""
