"""Weights of a model folder into a network that is there already."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ttt.errors import CheckpointError


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
    target.load_state_dict(stored, strict=False)


def _first(names: list[str]) -> str:
    return f" (first {names[0]!r})" if names else ""
