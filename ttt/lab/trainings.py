"""Using the trainings of other tables again: ``ttt ablate TABLE --trainings exp/ablations/OTHER``.

A cell is a training and a way to decode it.  Where another table has finished the same training (same data, seed and
configuration apart from decoding), a cell uses it and only decodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.config.diff import differences
from ttt.errors import ConfigError, DataError
from ttt.io.json_input import read_json
from ttt.lab.cells import Cell, is_decoding, is_trained


@dataclass(frozen=True)
class Training:
    """A finished training: its run folder and what it is made of."""

    folder: Path
    made_of: Mapping[str, Any]


def trainings_in(folders: Sequence[str | Path]) -> list[Training]:
    """All finished trainings of the tables in ``folders``.

    Raises `ConfigError` for a folder that is no table's, `DataError` for a cell that cannot be read.
    """
    finished = []
    for folder in map(Path, folders):
        cells = sorted(folder.glob("cells/*/*/cell.json"))
        if not cells:
            raise ConfigError(f"--trainings: {folder}: no cells of a table here; give the --out folder of a 'ttt ablate'")
        for path in cells:
            try:
                identity = read_json(path, "make the cell again")["identity"]
                steps = int(identity["config"]["train"]["steps"])
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"--trainings: {path}: not the description of a cell: {error}") from error
            if is_trained(path.parent, steps):
                finished.append(Training(path.parent, made_of(identity)))
    return finished


def made_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a cell's identity that decides its training."""
    return {
        part: {key: value for key, value in identity[part].items() if not is_decoding(f"{part}.{key}")}
        for part in ("config", "inputs")
    }


def with_known_training(cell: Cell, trainings: Sequence[Training]) -> Cell:
    """The cell, decoding the same training of ``trainings`` if there is one; cells that train nothing stay as they are."""
    if cell.parent is not None:
        return cell
    wanted = made_of(cell.identity())
    same = next((t for t in trainings if not differences(t.made_of, wanted)), None)
    if same is None:
        return cell
    config = dataclasses.replace(cell.config, eval=dataclasses.replace(cell.config.eval, checkpoint=str(same.folder)))
    return dataclasses.replace(cell, config=config)


def refuse_useless(cells: Sequence[Cell], trainings: Sequence[Training]) -> None:
    """Raise `ConfigError` when no cell could use any of ``trainings``; names what differs from the nearest."""
    if any(cell.config.eval.checkpoint for cell in cells if cell.parent is None):
        return
    if not trainings:
        raise ConfigError("--trainings: no training there is finished; run that table first")
    changed, name, folder = min(
        (
            (differences(t.made_of, made_of(cell.identity())), cell.name, t.folder)
            for cell in cells if cell.parent is None for t in trainings
        ),
        key=lambda candidate: len(candidate[0]),
    )  # fmt: skip
    shown = ", ".join(str(c).removeprefix("config.") for c in changed[:3]) + (", .." if len(changed) > 3 else "")
    raise ConfigError(f"--trainings: none is a training of this table; nearest is {folder} to {name!r} ({shown})")
