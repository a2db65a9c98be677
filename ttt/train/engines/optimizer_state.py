"""The optimiser's state in files, by parameter name: written by one rank or by each its share, read back in any cut.

A file holds tensors ``<moment>/<parameter>`` (``exp_avg/embed.weight``).  ``optimizer.safetensors`` has whole tensors in
their own shapes; ``optimizer-R-of-N.safetensors`` has what rank R of N owned: flat pieces, whose first positions are in
the header's ``starts``.  ``optimizer.json`` names the optimiser and its parameter groups, ``scaler.json`` holds the
scale of losses in float16.  So a checkpoint is neither of
an engine nor of a number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttt.errors import CheckpointError
from ttt.io.json_input import read_json

STEP = "step"  # number of updates, a scalar per parameter
SCALER = "scaler.json"


def write_record(folder: Path, optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """``optimizer.json``.  ``groups``: names under ``parameters``, and ``weight_decay``."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"optimizer": type(optimizer).__name__.lower(), "groups": list(groups)}
    (folder / "optimizer.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_scaler(folder: Path, state: Mapping[str, float]) -> None:
    """``scaler.json``: the ``scale`` of losses in float16, and the number of ``updates`` since it changed."""
    (folder / SCALER).write_text(json.dumps(dict(state)) + "\n", encoding="utf-8")


def read_scaler(folder: Path) -> Mapping[str, Any]:
    """What `write_scaler` wrote.  Raises `CheckpointError`."""
    state = read_json(folder / SCALER, "copy the checkpoint again", error=CheckpointError)
    if not all(isinstance(state.get(key), (int, float)) for key in ("scale", "updates")):
        raise CheckpointError(f"{folder / SCALER}: no scale of losses here; copy the checkpoint again")
    return state


def write_whole(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every parameter's state in one file."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "optimizer.safetensors")


def write_share(folder: Path, rank: int, size: int, tensors: Mapping[str, Tensor], starts: Mapping[str, int]) -> Path:
    """One rank's flat pieces; ``starts``: by parameter, where its piece begins in the flattened parameter.  -> the file."""
    from safetensors.torch import save_file

    path = folder / f"optimizer-{rank:05d}-of-{size:05d}.safetensors"
    save_file(dict(tensors), path, metadata={"starts": json.dumps(dict(starts))})
    return path


class Moments:
    """Reads an ``engine`` folder.  Files are mapped, so a rank touches only what it asks for."""

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
        """Raises `CheckpointError` when the state is of another optimiser or of other parameters than ``names``."""
        from safetensors import safe_open

        self.folder = folder
        record = read_json(folder / "optimizer.json", "copy the checkpoint again", error=CheckpointError)
        try:
            there = [n for g in record["groups"] for n in g["parameters"]]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}/optimizer.json: not readable: {error}") from error
        kind = type(optimizer).__name__.lower()
        if record["optimizer"] != kind:
            raise CheckpointError(f"{folder}: the state is of {record['optimizer']}, this run has {kind}")
        if sorted(names) != sorted(there):
            odd = sorted(set(names) ^ set(there))
            raise CheckpointError(
                f"{folder}: the optimizer state is of other parameters ({len(odd)} differ, first {odd[0]!r}); "
                "resume with the model it was written for"
            )
        self._files = [safe_open(path, "pt") for path in sorted(folder.glob("optimizer*.safetensors"))]
        self._pieces: dict[str, list[tuple[Any, int]]] = {}  # by key: (file, first position)
        self._cut: set[str] = set()  # parameters whose moments lie in flat pieces
        self.moments: dict[str, list[str]] = {}  # by parameter: its moments, without the step
        for file in self._files:
            starts = json.loads((file.metadata() or {}).get("starts", "{}"))
            self._cut.update(starts)
            for key in file.keys():  # noqa: SIM118 (not a dict)
                moment, _, name = key.partition("/")
                self._pieces.setdefault(key, []).append((file, int(starts.get(name, 0))))
                known = self.moments.setdefault(name, [])
                if moment != STEP and moment not in known:
                    known.append(moment)

    def step(self, name: str) -> Tensor | None:
        """How many updates the parameter has had; None when nothing is stored."""
        found = self._pieces.get(f"{STEP}/{name}")
        return found[0][0].get_tensor(f"{STEP}/{name}") if found else None

    def whole(self, moment: str, name: str, like: Tensor) -> Tensor:
        """A moment as it was: in its own shape if it was stored whole, else in the shape of its parameter ``like``."""
        key = f"{moment}/{name}"
        pieces = self._pieces.get(key, [])
        if len(pieces) == 1 and name not in self._cut:
            return pieces[0][0].get_tensor(key)
        return self.read(moment, name, 0, like.numel()).view(like.shape)

    def read(self, moment: str, name: str, start: int, number: int) -> Tensor:
        """Positions ``start`` .. ``start + number`` of a flattened moment -> [number]."""
        key = f"{moment}/{name}"
        out: Tensor | None = None
        filled = 0
        for file, first in self._pieces.get(key, []):
            piece = file.get_tensor(key).flatten()
            low, high = max(start, first), min(start + number, first + piece.numel())
            if low < high:
                out = torch.empty(number, dtype=piece.dtype) if out is None else out
                out[low - start : high - start] = piece[low - first : high - first]
                filled += high - low
        if out is None or filled != number:
            raise CheckpointError(
                f"{self.folder}: {key} is not all there ({filled} of {number} numbers); files are missing"
            )
        return out
