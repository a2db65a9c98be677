"""Where a run happens: versions, machine and git state; the run folder, who holds it, and what it was made with."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ttt.config.record import command_line
from ttt.errors import ConfigError, TttError

log = logging.getLogger(__name__)

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "torchaudio", "soundfile", "omegaconf", "deepspeed",
)  # fmt: skip

# Keys that may differ when a run goes on: they change neither the data nor the arithmetic of an update.  The paths of
# the data may differ because their contents are compared by digest.
MAY_CHANGE = (
    "run.dir", "run.overwrite", "run.threads", "run.device", "data.corpus", "data.splits", "data.dir", "data.jobs",
    "data.train", "data.mix", "data.dev", "data.tokenizer", "data.bpe_size", "train.steps", "train.epochs", "train.max_seconds",
    "train.max_time", "train.max_tokens", "train.log_every_steps", "train.eval_every_steps", "train.save_every_steps",
    "train.keep_checkpoints", "train.resume", "train.tensorboard", "eval", "judge", "speaker", "tasks", "codec",
    "train.check_memory", "data.prefetch", "model.attention", "model.compile",
    # Where an update is computed, not what it is: the number of micro-batches is compared with the checkpoint's.
    "train.accumulate", "train.engine", "train.zero_stage", "train.offload", "train.deepspeed", "train.rank_timeout_s",
)  # fmt: skip


class RunFolderError(TttError):
    """A run folder that another process holds, or that belongs to another run."""


def collect() -> dict[str, Any]:
    """Versions, git state, command line, hardware."""
    import torch

    import ttt

    return {
        "ttt": ttt.__version__,
        "python": platform.python_version(),
        "packages": _versions(),
        "git": git_state(Path(ttt.__file__).resolve().parent),
        "command": command_line(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether files differ from it; None outside a git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"), "dirty": bool(changed)}


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``.  Raises `RunFolderError` naming the process that is in it.

    The operating system's lock falls with its process, so one killed on this machine leaves nothing behind; the file
    names process and machine for the case that the folder is shared between machines.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{folder}: {_holder(handle)} is running in this folder; wait for it, or choose another run.dir"
            ) from None
        except OSError as error:
            log.warning("%s: no file locks here (%s); two runs in one folder would go unnoticed", folder, error)
        before = _read_lock(handle)
        if before and before.get("host") != socket.gethostname():
            raise RunFolderError(
                f"{folder}: {_holder(handle)} was running in this folder and has not said goodbye; if it is gone, "
                f"delete {path}"
            )
        if before:
            log.info("%s: taking over from process %s, which ended without a goodbye", folder, before.get("pid"))
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Changes ``key: old -> new`` that make it another run, and harmless ones.

    >>> differences({"train": {"lr": 1.0, "steps": 5}}, {"train": {"lr": 2.0, "steps": 9}})
    (['train.lr: 1.0 -> 2.0'], ['train.steps: 5 -> 9'])
    """
    old, new = flatten(stored), flatten(now)
    serious: list[str] = []
    harmless: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if before != after:
            allowed = any(key == k or key.startswith((f"{k}.", f"{k}[")) for k in MAY_CHANGE)
            (harmless if allowed else serious).append(f"{key}: {before!r} -> {after!r}")
    return serious, harmless


def _as_read_today(path: Path) -> dict[str, Any]:
    """A stored configuration with the fields it could not know yet; as it stands if it cannot be read any more."""
    import yaml

    from ttt.config.load import load_config, resolved_yaml

    try:
        return yaml.safe_load(resolved_yaml(load_config([path])))
    except ConfigError as error:  # a renamed key or a plug-in that is gone: the comparison names what differs
        log.warning("%s: %s", path, error)
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def check_same_run(folder: Path, config_yaml: str, identity: Mapping[str, str]) -> list[str]:
    """Refuse a folder whose stored configuration or data are of another run.  -> harmless differences.

    ``identity``: digests stored in ``data.json``.  A field that did not exist when the run began has its default there.
    """
    import yaml

    stored = folder / "config.yaml"
    if not stored.is_file():
        return []
    old, new = flatten(yaml.safe_load(stored.read_text(encoding="utf-8")) or {}), flatten(yaml.safe_load(config_yaml))
    if set(new) - set(old):
        today = flatten(_as_read_today(stored))
        # A plain value that has become a block with a name: `optimizer: adamw`.
        blocks = {key for key in old if f"{key}.name" in today}
        old = {**{k: today[k] for k in set(new) & set(today)}, **{k: v for k, v in old.items() if k not in blocks}}
        old.update({k: v for k, v in today.items() if any(k.startswith(f"{b}.") for b in blocks)})
    serious, harmless = differences(old, new)
    data = folder / "data.json"
    before = json.loads(data.read_text(encoding="utf-8")) if data.is_file() else {}
    serious += [
        f"{key}: {before[key]} -> {value}" for key, value in identity.items() if before.get(key, value) != value
    ]
    if serious:
        more = f" and {len(serious) - 5} more" if len(serious) > 5 else ""
        raise ConfigError(
            f"run.dir: {folder} holds another run; different: {'; '.join(serious[:5])}{more}. "
            "Choose another run.dir, or run.overwrite=true to start over"
        )
    return harmless


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is never seen half."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values -> ``{"a.b[0]": value}``."""
    if isinstance(node, Mapping) and node:
        parts = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in node.items()]
    elif isinstance(node, list) and node:
        parts = [flatten(v, f"{prefix}[{i}]") for i, v in enumerate(node)]
    else:
        return {prefix: node}
    return {k: v for part in parts for k, v in part.items()}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _read_lock(handle: int) -> dict[str, Any]:
    try:
        return json.loads(os.pread(handle, 4096, 0) or b"{}")
    except json.JSONDecodeError:
        return {}


def _holder(handle: int) -> str:
    held = _read_lock(handle)
    return f"process {held.get('pid', '?')} on {held.get('host', '?')}"
