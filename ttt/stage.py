"""A stage is done when its marker says so: what it was made from, what it made, with which settings.

A rerun with the same digest is a no-op; with another one it says what changed and asks for ``--overwrite``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class Stage:
    """One verb's work: ``inputs`` must exist, ``settings`` decide the result, ``marker`` records it."""

    def __init__(
        self, name: str, marker: Path, inputs: Sequence[Path], outputs: Sequence[Path], settings: Mapping[str, Any],
        hint: str = "",
    ) -> None:  # fmt: skip
        self.name, self.marker, self.inputs, self.outputs = name, marker, list(inputs), list(outputs)
        self._opened = time.perf_counter()
        self.settings = json.loads(json.dumps(settings, sort_keys=True, default=str))
        for path in self.inputs:
            if not path.exists():
                raise DataError(f"{path}: missing; {hint or 'run the stage that makes it'}")
        self.state = {"settings": self.settings, "inputs": {str(p): fingerprint(p) for p in self.inputs}}

    @property
    def seconds(self) -> float:
        """Time since the stage was opened."""
        return time.perf_counter() - self._opened

    def is_done(self, overwrite: bool) -> bool:
        """True when the result is there and current.  Raises `ConfigError` when it was made from something else."""
        if overwrite or not self.marker.is_file():
            return False
        try:
            before = json.loads(self.marker.read_text())
        except json.JSONDecodeError:
            return False
        gone = [str(p) for p in self.outputs if not p.exists()]
        if gone:
            log.info("%s: %s is gone; doing it again", self.name, gone[0])
            return False
        changed = [
            *(f"setting {k}" for k in _differing(before.get("settings", {}), self.settings)),
            *(f"input {k}" for k in _differing(before.get("inputs", {}), self.state["inputs"])),
        ]
        if changed:
            raise ConfigError(
                f"{self.marker.parent}: made with other settings ({', '.join(changed[:4])}); give --overwrite to make it again"
            )
        log.info("%s: up to date (%s)", self.name, self.marker.parent)
        return True

    def finish(self, result: Mapping[str, Any], seconds: float | None = None) -> None:
        """Write the marker; last.  ``seconds``: what the work took (default: `seconds` of the stage)."""
        seconds = self.seconds if seconds is None else seconds
        record = {
            "stage": self.name,
            **self.state,
            "result": dict(result),
            "seconds": round(seconds, 2),
            "time": time.time(),
        }
        self.marker.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.marker.with_name(self.marker.name + ".tmp")
        temporary.write_text(json.dumps(record, indent=1, default=str) + "\n")
        temporary.replace(self.marker)


def fingerprint(path: Path) -> str:
    """Content digest of a file; of a folder, of its marker, or of its files' names and sizes."""
    if path.is_file():
        digest = hashlib.blake2b(digest_size=8)
        with path.open("rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    listing = sorted((p.relative_to(path).as_posix(), p.stat().st_size) for p in path.rglob("*") if p.is_file())
    listing = [entry for entry in listing if not entry[0].endswith(".done.json")]
    return hashlib.blake2b(json.dumps(listing).encode(), digest_size=8).hexdigest()


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += _differing(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}")
    return out
