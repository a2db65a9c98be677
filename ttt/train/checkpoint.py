"""Checkpoint folders: written aside, renamed when whole, verified before they are read.  No pickle anywhere.

``checkpoints/step-00001000/``: ``model/`` (Hugging Face format), ``model_ema/`` (likewise, with ``train.ema``),
``engine/`` (optimiser), ``state.json``, ``config.yaml``, ``env.json`` and, last, ``COMPLETE`` with the size and digest of
every file.  A folder without it does not exist.  Links beside these folders (``best``, ``epoch-0.5``) are other names of
some; one goes before its folder does.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.errors import CheckpointError, TttError
from ttt.io.atomic import sync_path
from ttt.io.digests import digest_of_file
from ttt.io.json_input import read_json
from ttt.io.pretrained import PICKLES
from ttt.io.sealed import check_files
from ttt.io.system_errors import is_disk_full
from ttt.model.folder import MARKER, listed_files
from ttt.train.engines.ranks import PeerFailedError

if TYPE_CHECKING:
    from ttt.train.engines.base import Engine

log = logging.getLogger(__name__)

DIGEST_BYTES = 16
AVERAGED = "model_ema"  # folder of the averaged weights, beside model/


class DiskFullError(TttError):
    """No room for a checkpoint or the log; the last good checkpoint is untouched."""


@dataclass
class TrainState:
    """Everything a run has to remember beside weights and optimiser: nothing in it belongs to one rank.

    ``step``: updates done; ``micro_batches`` of one update, over all ranks; ``tokens`` seen by all ranks; ``elapsed_s``:
    training time so far; ``stopped``: why the run ended there (empty: it went on); ``window``: sums since the last line of
    the log; ``best``: {key, value, step} of the best validation (``train.keep_best``); ``skipped``: updates
    that overflowed in float16.
    """

    step: int = 0
    seed: int = 0
    world_size: int = 1
    micro_batches: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    data_digest: str = ""
    vocab_digest: str = ""
    stopped: str = ""
    window: dict = field(default_factory=dict)
    best: dict = field(default_factory=dict)
    skipped: int = 0


def step_name(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def save_checkpoint(
    root: Path, state: TrainState, engine: Engine, files: Mapping[str, str], keep: int = 2,
    links: Mapping[str, int] | None = None,
) -> Path:  # fmt: skip
    """Write ``root/step-N`` from every rank, then delete all but the newest ``keep`` and the best (``state.best``).

    ``files``: further texts by name; ``links``: see `set_links`.

    Raises `DiskFullError` when there is no room; whatever goes wrong, no half folder stays behind.
    """
    target = root / step_name(state.step)
    if (target / MARKER).is_file():
        return target
    partial = root / f".{target.name}.partial"
    try:
        with engine.ranks.all_or_none():
            if engine.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                (partial / "model").mkdir(parents=True)
                (partial / "engine").mkdir()
        with engine.ranks.all_or_none():
            engine.save_model(partial / "model")
            # Who writes a file digests it: ranks work side by side, and a shared folder may show it to others late.
            own = {p.relative_to(partial).as_posix(): _entry(p) for p in engine.save(partial / "engine")}
            if engine.average is not None:
                if engine.rank == 0:
                    (partial / AVERAGED).mkdir()
                with engine.average.in_place():
                    engine.save_model(partial / AVERAGED)
        entries = {name: entry for part in engine.ranks.all_gather(own) for name, entry in part.items()}
        with engine.ranks.all_or_none():
            if engine.rank == 0:
                for name, text in {**files, "state.json": json.dumps(asdict(state), indent=1) + "\n"}.items():
                    (partial / name).write_text(text, encoding="utf-8")
                _publish(partial, target, state.step, entries)
    except Exception as error:
        if engine.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, PeerFailedError) or not is_disk_full(error):
            raise
        last = latest_complete(root)
        raise DiskFullError(
            f"{target}: the disk is full: a checkpoint needs about {_mib(engine.state_bytes())}, "
            f"{_mib(shutil.disk_usage(root).free)} are free; make room or lower train.keep_checkpoints, then run again "
            f"(it goes on from {last.name if last else 'the start: there is no complete checkpoint'})"
        ) from error
    if engine.rank == 0:
        set_links(root, links or {})
        for old in complete_checkpoints(root)[:-keep]:
            if old.name != step_name(state.best.get("step", -1)):
                _remove(old)
    return target


def set_links(root: Path, links: Mapping[str, int]) -> None:
    """Let ``root/NAME`` be a link to the checkpoint of a step, for every name and step; what is no link stays as it is."""
    for name, step in links.items():
        path, aside = root / name, root / f".{name}.partial"
        if not (root / step_name(step) / MARKER).is_file():
            continue
        if path.exists() and not path.is_symlink():
            log.warning("%s: not a link of a run, so it is left alone; %s is %s", path, name, step_name(step))
            continue
        try:
            aside.unlink(missing_ok=True)
            aside.symlink_to(step_name(step))
            os.replace(aside, path)
        except OSError as error:
            log.warning("%s: no link could be made (%s); it would lead to %s", path, error, step_name(step))


def _remove(checkpoint: Path) -> None:
    for link in checkpoint.parent.iterdir():
        if link.is_symlink() and os.readlink(link) == checkpoint.name:
            link.unlink()
    # The marker first: a deletion that is cut short leaves no folder that looks complete.
    (checkpoint / MARKER).unlink()
    shutil.rmtree(checkpoint)


def load_checkpoint(folder: Path, engine: Engine, vocab_digest: str = "") -> TrainState:
    """Verify ``folder``, load weights and optimiser into ``engine``, return the rest."""
    with engine.ranks.all_or_none():
        if engine.rank == 0:  # one rank reads every byte; the others find what it found
            verify(folder)
            check_model_folder(folder / "model", vocab_digest)
    state = read_state(folder)
    engine.load_model(folder / "model")
    if engine.average is not None:
        with engine.average.in_place():
            engine.load_model(folder / AVERAGED)
    with engine.ranks.all_or_none():
        engine.load(folder / "engine")
    return state


def read_state(folder: Path) -> TrainState:
    """``state.json`` of a checkpoint."""
    raw = read_json(folder / "state.json", _advice(folder), error=CheckpointError)
    known = {f.name for f in fields(TrainState)}
    return TrainState(**{k: v for k, v in raw.items() if k in known})


def complete_checkpoints(root: str | Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p.parent for p in Path(root).glob(f"step-*/{MARKER}") if p.parent.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def latest_complete(root: str | Path) -> Path | None:
    """The newest complete checkpoint of a ``checkpoints`` folder."""
    return next(reversed(complete_checkpoints(root)), None)


def remove_leftovers(root: Path) -> None:
    """Delete what a kill left of a save, and of the removal of a folder older than the latest complete one."""
    latest = latest_complete(root)
    for path in [*root.glob(".step-*.partial"), *root.glob("step-*")]:
        half_removed = latest is not None and path.name < latest.name and not (path / MARKER).is_file()
        half_removed &= path.name[5:].isdigit()  # other names are somebody's
        if path.name.startswith(".") or half_removed:
            shutil.rmtree(path)


def verify(folder: Path) -> None:
    """Compare every file with ``COMPLETE``: its size, then its digest.  Raises `CheckpointError` naming the file."""
    marker = folder / MARKER
    if not marker.is_file():
        raise CheckpointError(f"{folder}: no {MARKER} file: it was not written to the end; {_advice(folder)}")
    check_files(folder, listed_files(marker, _advice(folder)), MARKER, _advice(folder), CheckpointError, again=True)


def check_model_folder(folder: Path, vocab_digest: str = "") -> None:
    """Refuse pickled weights, and weights of another vocabulary than ``vocab_digest`` (empty: any)."""
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES) if folder.is_dir() else []
    if pickles:
        raise CheckpointError(
            f"{folder}: {pickles[0]} is a pickle, which can run code when it is read; convert it to safetensors "
            "(save_pretrained does) and delete it"
        )
    if not vocab_digest:
        return
    path = folder / "vocab.json"
    stored = read_json(path, "is this a model folder?", error=CheckpointError).get("digest")
    if not isinstance(stored, str):
        raise CheckpointError(f"{path}: no vocabulary digest here; is this a model folder?")
    if stored != vocab_digest:
        raise CheckpointError(
            f"{path}: the weights were trained with vocabulary {stored}, this run has {vocab_digest}; "
            "use the tokenizer folder they were trained with (data.tokenizer)"
        )


def _entry(path: Path) -> dict[str, int | str]:
    sync_path(path)
    return {"bytes": path.stat().st_size, "blake2b": digest_of_file(path, DIGEST_BYTES)}


def _publish(partial: Path, target: Path, step: int, known: Mapping[str, Mapping[str, int | str]]) -> None:
    here = {p.relative_to(partial).as_posix() for p in partial.rglob("*") if p.is_file()}
    files = {name: known[name] if name in known else _entry(partial / name) for name in sorted(here | set(known))}
    marker = partial / MARKER
    marker.write_text(json.dumps({"format": 1, "step": step, "files": files}, indent=1) + "\n", encoding="utf-8")
    sync_path(marker)
    if target.exists():  # without a marker: it does not exist
        shutil.rmtree(target)
    os.rename(partial, target)
    sync_path(target.parent)


def _advice(folder: Path) -> str:
    others = [p for p in complete_checkpoints(folder.parent) if p.name < folder.name]
    if not others:
        return "delete the folder; there is no complete one before it"
    return f"delete the folder, the previous complete one is {others[-1].name}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
