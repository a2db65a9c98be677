"""A stage is done when its marker says so: what it was made from, what it made, with which settings.

A rerun with the same digest is a no-op; with another one it says what changed and asks for ``--overwrite``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.config.diff import differences
from ttt.errors import ConfigError, DataError
from ttt.io.atomic import write_json
from ttt.io.digests import digest_of_file, digest_of_listing
from ttt.io.json_input import read_json
from ttt.io.writable import check_file, check_writable

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
        if self._is_current(overwrite):
            return True
        for path in (self.marker, *self.outputs):
            (check_file if path.suffix else check_writable)(path)
        return False

    def _is_current(self, overwrite: bool) -> bool:
        if overwrite or not self.marker.is_file():
            return False
        try:
            before = read_json(self.marker, "it is made again")
        except DataError as fault:
            log.warning("%s: %s", self.name, fault)
            return False
        gone = [str(p) for p in self.outputs if not p.exists()]
        if gone:
            log.info("%s: %s is gone; doing it again", self.name, gone[0])
            return False
        changed = [
            *(f"setting {c.key}" for c in differences(before.get("settings", {}), self.settings)),
            *(f"input {c.key}" for c in differences(before.get("inputs", {}), self.state["inputs"])),
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
        write_json(self.marker, record)


def fingerprint(path: Path) -> str:
    """Digest of a file's content; of a folder, of its files' names and sizes (markers of stages left out)."""
    return digest_of_file(path) if path.is_file() else digest_of_listing(path, leave_out=".done.json")
