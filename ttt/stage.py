"""A stage is done when its marker says so: what it was made from, what it made, with which settings.

A rerun with the same digest is a no-op; with another one it says what changed and asks for ``--overwrite``.  The marker also
says that ttt made the outputs: without it, what is there belongs to somebody and is not touched (`ttt.io.outputs`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.config.diff import differences
from ttt.errors import ConfigError, DataError
from ttt.io import outputs
from ttt.io.atomic import write_json
from ttt.io.digests import digest_of_file, digest_of_listing
from ttt.io.json_input import read_json
from ttt.io.writable import check_file, check_writable

log = logging.getLogger(__name__)


class Stage:
    """One verb's work: ``inputs`` must exist, ``settings`` decide the result, ``marker`` records it.

    The files it ``makes`` are there when it is done; ``also``: those that may be written besides.  ``named``: the user named
    these files, so that ``--overwrite`` replaces them whoever made them.
    """

    def __init__(
        self, name: str, marker: Path, inputs: Sequence[Path], makes: Sequence[Path], settings: Mapping[str, Any],
        hint: str = "", *, also: Sequence[Path] = (), named: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.marker, self.inputs, self.outputs = name, marker, list(inputs), list(makes)
        self.also, self.named = list(also), named
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
        """True when the result is there and current; False when it is to be made, and nobody's files are in its way.

        Raises `ConfigError` when it was made from something else, or when the outputs are not ttt's to write.
        """
        is_current = not overwrite and self._is_current()
        if not is_current:
            for path in (self.marker, *self.outputs):
                (check_file if path.suffix and not path.is_dir() else check_writable)(path)
            self._begin(overwrite)
        return is_current

    def reopen(self) -> None:
        """The result that is there is no longer current, but still ttt's to replace: from now on a new one is written."""
        write_json(self.marker, {**self._record(), "unfinished": True})

    def _begin(self, overwrite: bool) -> None:
        """Ask whether the outputs may be written; say that they are ttt's from here on."""
        made = self._made()
        outputs.refuse_inputs(self.marker, self.inputs)
        mend = "" if self.named else "move it away, or name another folder"
        for path in (*self.outputs, *self.also):
            is_ours = made is None or self._from_marker(path) in made
            if path.is_dir():
                outputs.check_folder(path, self.inputs, is_ours=is_ours)
            else:
                may_replace = overwrite and self.named
                outputs.check_file(path, self.inputs, overwrite=may_replace, is_ours=is_ours, mend=mend)
        if not self.marker.is_file():
            outputs.claim(self.marker, (*self.outputs, *self.also), self._record())

    def _made(self) -> Collection[str] | None:
        """What the marker says was made, as paths from its folder; None: everything (it is older, or damaged)."""
        if not self.marker.is_file():
            return ()
        try:
            made = read_json(self.marker, "it is made again").get("made")
        except DataError:
            return None
        return made if isinstance(made, list) else None

    def _record(self) -> dict[str, Any]:
        made = [self._from_marker(path) for path in (*self.outputs, *self.also)]
        return {"stage": self.name, **self.state, "made": made}

    def _from_marker(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.marker.parent)).as_posix()

    def _is_current(self) -> bool:
        if not self.marker.is_file():
            return False
        try:
            before = read_json(self.marker, "it is made again")
        except DataError as fault:
            log.warning("%s: %s", self.name, fault)
            return False
        if before.get("unfinished"):
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
            **self._record(),
            "result": dict(result),
            "seconds": round(seconds, 2),
            "time": time.time(),
        }
        write_json(self.marker, record)
        outputs.settle(self.marker)


def fingerprint(path: Path) -> str:
    """Digest of a file's content; of a folder, of its files' names and sizes (markers of stages left out)."""
    return digest_of_file(path) if path.is_file() else digest_of_listing(path, leave_out=".done.json")
