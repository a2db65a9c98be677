"""What something was made with: versions of packages, state of the code, processor and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ttt
from ttt.errors import ConfigError

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "torchaudio", "soundfile", "omegaconf", "deepspeed",
)  # fmt: skip


def environment(command: str) -> dict[str, Any]:
    """Everything, as the ``env.json`` of a run has it; ``command``: how the program was started."""
    import torch

    git = git_state()
    return {
        "ttt": ttt.__version__,
        "python": platform.python_version(),
        "packages": {name: version for name, version in package_versions(PACKAGES).items() if version is not None},
        "git": None if git is None else {"commit": git.commit, "branch": git.branch, "dirty": git.changed_files > 0},
        "command": command,
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpus": usable_cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "world_size": whole_number("WORLD_SIZE", 1, 1),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def whole_number(variable: str, default: int, least: int) -> int:
    """The whole number in a variable of the environment.  Raises `ConfigError` when it holds something else."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise ConfigError(f"environment: {variable}={text!r} must be a whole number >= {least}; correct or unset it")
    return int(text)


class GitState(NamedTuple):
    """``changed_files``: tracked files that differ from ``commit``."""

    commit: str
    branch: str
    changed_files: int


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Version of each package, None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_state(folder: Path | None = None) -> GitState | None:
    """State of the checkout that holds ``folder`` (None: the code that runs); None outside of one, or without git."""
    folder = folder or Path(ttt.__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return GitState(git("rev-parse", "HEAD"), git("rev-parse", "--abbrev-ref", "HEAD"), len(changed.splitlines()))
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors this process may run on: those of its affinity, at most what a container's ``quota`` allows."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        used_us, period_us = quota.read_text().split()
        return max(1, min(cpus, -(-int(used_us) // int(period_us))))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return cpus


def memory_bytes() -> int | None:
    """Bytes of the machine's memory; None where it cannot be asked."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
