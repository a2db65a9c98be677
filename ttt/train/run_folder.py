"""The folder of a run: who holds it, and whether it belongs to the run that is asked for."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ttt.config.diff import MAY_CHANGE, Change, differences, flatten, is_under
from ttt.errors import ConfigError, TttError
from ttt.io.json_input import load, read_json
from ttt.io.metrics_log import METRICS_FILE
from ttt.io.outputs import is_our_json
from ttt.io.writable import check_file
from ttt.io.yaml_input import read_yaml

log = logging.getLogger(__name__)


class RunFolderError(TttError):
    """A run folder that another process holds, or that belongs to another run."""


FILES = (
    "config.yaml", "command.txt", "env.json", "data.json", "metrics.jsonl", "answers.jsonl", "checkpoints", "tensorboard",
    "generated",
)  # fmt: skip


def check_made_here(folder: Path) -> None:
    """Raise `ConfigError` when a folder holds files that a run would write, and no run of ttt wrote them."""
    if not folder.is_dir() or _is_run(folder):
        return
    for path in (folder / name for name in FILES):
        if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise ConfigError(f"run.dir: {path} was not made by ttt; choose another run.dir")


def _is_run(folder: Path) -> bool:
    if is_our_json(folder / "data.json", data_digest=None) or is_our_json(folder / ".lock", pid=None, host=None):
        return True
    return any(is_our_json(path, format="1", step=None) for path in folder.glob("checkpoints/step-*/COMPLETE"))


@contextlib.contextmanager
def hold(folder: Path, key: str = "run.dir") -> Iterator[None]:
    """Keep other processes out of ``folder``.  Raises `RunFolderError` naming the process that is in it.

    The lock is the operating system's, which ends with the process: one that was killed on this machine leaves nothing
    behind.  The file also names process and machine, for folders that are shared between machines.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    check_file(path)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{folder}: {_holder(handle)} is running in this folder; wait for it, or choose another {key}"
            ) from None
        except OSError as error:
            log.warning("%s: no file locks here (%s); two runs in one folder would go unnoticed", folder, error)
        before = _read_lock(handle)
        if before and before.get("host") != socket.gethostname():
            raise RunFolderError(
                f"{folder}: {_holder(handle)} was running in this folder and did not release it; if it is gone, delete {path}"
            )
        if before:
            log.info("%s: taking over from process %s, which ended without releasing it", folder, before.get("pid"))
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def check_same_run(folder: Path, config_yaml: str, identity: Mapping[str, str]) -> list[Change]:
    """Refuse a folder whose stored configuration or data are of another run.  -> the differences that do no harm.

    ``identity``: digests stored in ``data.json``.  A field that did not exist when the run began has its default there.
    """
    import yaml

    stored, data = folder / "config.yaml", folder / "data.json"
    for path in (stored, data, folder / METRICS_FILE):
        check_file(path)
    if not stored.is_file():
        return []
    old, new = flatten(_stored(stored)), flatten(yaml.safe_load(config_yaml))
    if set(new) - set(old):
        today = flatten(_as_read_today(stored))
        # A plain value that has become a block with a name: `optimizer: adamw`.
        blocks = {key for key in old if f"{key}.name" in today}
        old = {**{k: today[k] for k in set(new) & set(today)}, **{k: v for k, v in old.items() if k not in blocks}}
        old.update({k: v for k, v in today.items() if any(k.startswith(f"{b}.") for b in blocks)})
    changes = differences(old, new)
    serious = [str(c) for c in changes if not is_under(c.key, MAY_CHANGE)]
    before = read_json(data, "delete it if the data are the same") if data.is_file() else {}
    serious += [
        f"{key}: {before[key]} -> {value}" for key, value in identity.items() if before.get(key, value) != value
    ]
    if serious:
        more = f" and {len(serious) - 5} more" if len(serious) > 5 else ""
        raise ConfigError(
            f"run.dir: {folder} holds another run; different: {'; '.join(serious[:5])}{more}. "
            "Choose another run.dir, or run.overwrite=true to start over"
        )
    return [c for c in changes if is_under(c.key, MAY_CHANGE)]


def _as_read_today(path: Path) -> dict[str, Any]:
    """A stored configuration with the fields it could not know yet; as it stands if it cannot be read any more."""
    import yaml

    from ttt.config.load import load_config, resolved_yaml

    try:
        return yaml.safe_load(resolved_yaml(load_config([path], stored=[path])))
    except ConfigError as error:  # a renamed key or a plug-in that is gone: the comparison names what differs
        log.warning("%s: %s", path, error)
        return _stored(path)


def _stored(path: Path) -> dict[str, Any]:
    return read_yaml(path, "put the run's own back (each checkpoint holds a copy), or run.overwrite=true to start over")


def _read_lock(handle: int) -> dict[str, Any]:
    """Who wrote the lock; nothing when it is empty or holds anything else."""
    try:
        record = load(os.pread(handle, 4096, 0) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _holder(handle: int) -> str:
    record = _read_lock(handle)
    return f"process {record.get('pid', '?')} on {record.get('host', '?')}"
