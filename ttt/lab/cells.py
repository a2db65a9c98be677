"""A cell: one configuration and seed in a folder of its own, trained, decoded and scored by the verbs of the command line.

    CELL/cell.json   what it is made of: resolved configuration, digests of its data
    CELL/cell.yaml   the resolved configuration, which the verbs are given
    CELL/log.txt     the output of the verbs
    CELL/...         what `ttt train` writes; CELL/eval: what `ttt generate` and `ttt score` write
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.config.diff import NOT_IDENTITY, Change, differences
from ttt.config.load import resolved_yaml, to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError
from ttt.eval import cards
from ttt.io.atomic import write_json, write_text
from ttt.io.digests import digest_of_json, sha256_digest
from ttt.io.json_input import read_json
from ttt.io.outputs import is_inside

if TYPE_CHECKING:
    from ttt.train.checkpoint import TrainState

log = logging.getLogger(__name__)

DECODING = ("eval", "judge", "speaker", "tasks")  # sections that do not change the training


@dataclass(frozen=True)
class Cell:
    """One experiment.  ``inputs``: configuration key -> {"path", "digest"}; ``parent``: the cell whose training it uses."""

    row: str
    label: str
    seed: int
    folder: Path
    card: Path
    config: RunConfig
    inputs: Mapping[str, Mapping[str, str]]
    parent: Cell | None = None
    table: str = ""

    @property
    def name(self) -> str:
        """``ROW seed S``."""
        return f"{self.row} seed {self.seed}"

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON has it."""
        plain = json.loads(json.dumps(to_plain(self.config), default=str))
        for key in NOT_IDENTITY:
            section, _, name = key.partition(".")
            plain[section].pop(name, None)
        return {"config": plain, "inputs": {k: dict(v) for k, v in self.inputs.items()}}

    def digest(self) -> str:
        """16 hex digits of `identity`."""
        return digest_of_json(self.identity())

    def changed(self) -> list[Change]:
        """Every setting and input that differs from what this folder was begun with."""
        path = self.folder / "cell.json"
        if not path.is_file():
            return []
        before = read_json(path, f"delete {self.folder} to make the cell again")
        return differences(before.get("identity", {}), self.identity())

    def is_done(self) -> bool:
        """Is there a card of exactly this experiment?"""
        if not self.card.is_file() or not (self.folder / "eval" / "items.jsonl").is_file():
            return False
        try:
            return cards.read_card(self.card).get("digest") == self.digest()
        except DataError:
            return False

    def prepare(self, overwrite: bool) -> None:
        """Write the configuration; with ``overwrite`` remove what no longer fits (a training only if it must go)."""
        changed = self.changed() if overwrite else []
        if changed:
            self.card.unlink(missing_ok=True)
            retrain = any(not is_decoding(change.key) for change in changed)
            remove_results(self.folder, training=retrain)
        write_text(self.folder / "cell.yaml", resolved_yaml(self.config))
        about = {"row": self.row, "seed": self.seed, "digest": self.digest(), "identity": self.identity()}
        write_json(self.folder / "cell.json", about)

    def verbs(self) -> tuple[str, ...]:
        """What is run, in order."""
        return ("generate", "score") if self.config.eval.checkpoint else ("train", "generate", "score")


def remove_results(folder: Path, training: bool = True) -> None:
    """Remove what the verbs made in a cell's folder (with ``training`` the run too), and nothing else."""
    from ttt.train.trainer import clear

    names = ["*.generations.jsonl", "*.trace.jsonl", "*.done.json", "card.json", "items.jsonl", "samples", "tensorboard"]
    for path in [p for name in names for p in (folder / "eval").glob(name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if training:
        clear(folder)
        for name in ("card.json", "log.txt", "cell.yaml", "cell.json"):
            (folder / name).unlink(missing_ok=True)


def refuse_inside(card: Path, folder: Path) -> None:
    """Raise `ConfigError` for a card that `remove_results` of ``folder`` would remove."""
    if is_inside(card, folder):
        raise ConfigError(f"{folder}: holds the source {card}; name another folder with --out")


def is_decoding(key: str) -> bool:
    """Whether a key of `Cell.identity` leaves the training as it is.

    >>> is_decoding("config.eval.sampler"), is_decoding("inputs.eval.examples[0]"), is_decoding("config.train.lr")
    (True, True, False)
    """
    part, _, name = key.partition(".")
    names = DECODING if part == "config" else ("eval.", "judge", "speaker")
    return name.startswith(names)


def inputs_of(config: RunConfig, digests: dict[str, str], decode_only: bool = False) -> dict[str, dict[str, str]]:
    """Digests of all files that the verbs will read; ``digests`` caches them by path.

    Raises `DataError` naming what is missing, before anything runs.
    """
    from ttt.data.sources.mix import is_mix, sources_of

    paths = {"data.train": config.data.train, "data.dev": config.data.dev, "data.tokenizer": config.data.tokenizer}
    paths |= {"train.init_from": config.train.init_from, "model.path": config.model.path}
    paths |= {f"eval.examples[{i}]": path for i, path in enumerate(config.eval.examples)}
    paths |= {f"{k}.path": str(getattr(getattr(config, k), "path", "") or "") for k in ("codec", "judge", "speaker")}
    if decode_only:
        paths = {k: v for k, v in paths.items() if k.startswith(("eval.", "codec.", "judge.", "speaker."))}
    if is_mix(config.data.train) and not decode_only:  # the digest of a mix file does not cover its sources
        paths |= {f"data.train[{s.name}]": str(s.path) for s in sources_of(config.data.train)}
    inputs = {}
    for key, name in paths.items():
        if not name:
            continue
        if not Path(name).exists():
            raise DataError(f"{key}: {name} is missing; make it first (run.sh of the corpus says which stage does)")
        if name not in digests:
            digests[name] = sha256_digest(name)
        inputs[key] = {"path": name, "digest": digests[name]}
    return inputs


def refuse_changed(cells: Sequence[Cell]) -> None:
    """One error for all cells that were begun with other settings; ``--overwrite`` makes them again."""
    changed = [(cell, changes) for cell in cells if (changes := cell.changed())]
    if changed:
        cell, changes = changed[0]
        more = f"; {len(changed) - 1} more cells too" if len(changed) > 1 else ""
        shown = ", ".join(str(c).removeprefix("config.") for c in changes[:3]) + (", .." if len(changes) > 3 else "")
        raise ConfigError(
            f"{cell.folder}: cell {cell.name!r} was made with other settings ({shown}){more}; give --overwrite to make such "
            "cells again, or another --out"
        )


def is_trained(folder: Path, steps: int) -> bool:
    """Whether a run folder holds a training of ``steps`` updates, or one that ended at a limit of its own."""
    from ttt.train.stop_conditions import REASONS

    state = last_state(folder)
    return state is not None and (state.step >= steps or state.stopped in REASONS)


def last_state(folder: Path) -> TrainState | None:
    """State of the latest complete checkpoint of a run folder; None when there is none."""
    from ttt.train.checkpoint import latest_complete, read_state

    checkpoint = latest_complete(folder / "checkpoints")
    return read_state(checkpoint) if checkpoint is not None else None


def write_cell_card(cell: Cell, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The score's card with what the experiment adds: row, seed, digest, inputs, training and times."""
    card = cards.read_card(cell.folder / "eval" / "card.json")
    trained = Path(cell.config.eval.checkpoint or cell.folder)
    card |= {
        "table": cell.table, "row": cell.row, "label": cell.label, "seed": cell.seed, "digest": cell.digest(),
        "inputs": {k: dict(v) for k, v in cell.inputs.items()}, "training": training_of(trained),
        "decode_only_of": cell.parent.row if cell.parent is not None else "",
        "items": os.path.relpath(cell.folder / "eval" / "items.jsonl", cell.card.parent),
    }  # fmt: skip
    card["by_kind"] = {}  # stays in the score's own card, beside the items it is computed from
    card["timing"] = {**card["timing"], **{f"{verb}_wall_s": round(s, 2) for verb, s in seconds.items()}}
    if not cell.config.eval.checkpoint:
        card["timing"]["train_s"] = card["training"].get("seconds")
    cards.write_card(cell.card, card)
    return card


def training_of(folder: Path) -> dict[str, Any]:
    """Updates, tokens, seconds and hardware of a run folder; {} when it is not one."""
    from ttt.train.checkpoint import latest_complete, read_state

    checkpoint = latest_complete(folder / "checkpoints")
    if checkpoint is None:
        return {}
    state = read_state(checkpoint)
    about: dict[str, Any] = {"updates": state.step, "tokens": state.tokens, "seconds": round(state.elapsed_s, 2)}
    try:
        env = read_json(checkpoint / "env.json", "the machine of the training stays unknown")
        about["hardware"] = {k: env.get(k) for k in ("cpu", "cpus", "gpus", "threads", "world_size")}
    except DataError as error:
        log.warning("%s", error)
    return about
