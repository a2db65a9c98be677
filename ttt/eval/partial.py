"""Answers that are written down one by one while others are still being decoded: a kill or a full disk loses none of them.

``NAME.generations.jsonl.partial``: its first line says what the answers are made from; each other line is
{"record": a generation record, "trace": its trace, where one was asked for}.  A second call with the same settings and
inputs goes on behind the last whole line.  The file is removed when the generations are complete.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.config.diff import differences
from ttt.errors import ConfigError, DataError
from ttt.eval.generations import Generated
from ttt.io.json_input import load
from ttt.io.system_errors import describe

if TYPE_CHECKING:
    from ttt.sampling.trace.record import TraceRecord

log = logging.getLogger(__name__)
FORMAT = "ttt-partial-generations"


def partial_path(target: Path) -> Path:
    """Where the answers are before the generations ``target`` are complete."""
    return target.with_name(f"{target.name}.partial")


def check_complete(target: Path) -> None:
    """Raise `DataError` when an interrupted (or running) 'ttt generate' has left answers that are not in ``target`` yet."""
    path = partial_path(target)
    if not path.is_file():
        return
    answers = max(sum(1 for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")) - 1, 0)
    older = f"; or delete this file to score the older answers in {target.name}" if target.is_file() else ""
    raise DataError(
        f"{path}: not complete, only {answers} answers are decoded; run the same 'ttt generate' again, it goes on from there{older}"
    )


class PartialAnswers:
    """The answers of one file so far.  Use as a context; nothing is changed on the disk before the first `add`.

    ``records``: generation records by uid, of earlier calls too; ``traces``: their traces as JSON, if ``traced``.
    ``state``: what decides the answers; ``restart``: answers of earlier calls do not count.  Raises `ConfigError` for
    answers made from something else, and while another process is writing.
    """

    def __init__(self, target: Path, state: Mapping[str, Any], *, restart: bool = False, traced: bool = False) -> None:
        self.path = partial_path(target)
        self.traced = traced
        self.records: dict[str, dict[str, Any]] = {}
        self.traces: dict[str, Mapping[str, Any]] = {}
        self._head = json.loads(json.dumps({"format": FORMAT, **state}, default=str))
        self._handle, self._size = _locked(self.path), 0
        try:
            if not restart:
                self._read()
        except BaseException:
            self._close()
            raise
        if self.records:
            log.info("%s: going on behind the %d answers of an interrupted call", self.path, len(self.records))

    def __enter__(self) -> PartialAnswers:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def is_new(self) -> bool:
        """Was nothing written yet?"""
        return not self._size

    def add(self, record: Mapping[str, Any], trace: TraceRecord | None = None) -> None:
        """Write one answer.  Raises `DataError` when it cannot be written; those before it are kept."""
        line: dict[str, Any] = {"record": record}
        if trace is not None:
            line["trace"] = trace.to_json()
        if self.is_new:
            self._write(self._head)
        self._write(line)
        self._keep(line)

    def remove(self) -> None:
        """The generations are complete."""
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._handle >= 0:
            if not os.fstat(self._handle).st_size:
                self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1

    def _write(self, value: Mapping[str, Any]) -> None:
        line = (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8", "surrogatepass")
        try:
            os.ftruncate(self._handle, self._size)
            done = 0
            while done < len(line):
                done += os.pwrite(self._handle, line[done:], self._size + done)
        except OSError as error:
            raise DataError(
                f"{self.path}: {describe(error)}; the {len(self.records)} answers before are kept: mend it and run the same "
                "command again, it goes on from there"
            ) from error
        self._size += len(line)

    def _read(self) -> None:
        """The whole lines of earlier calls; what is behind the first other one is dropped by the next `add`."""
        with os.fdopen(os.dup(self._handle), "rb") as lines:
            for number, line in enumerate(lines):
                try:
                    value: Any = load(line) if line.endswith(b"\n") else None
                    if number == 0:
                        self._check_head(value)
                    else:
                        self._keep(value)
                except (DataError, KeyError, TypeError, ValueError, RecursionError):
                    log.warning("%s:%d: a damaged line; it and what follows are decoded again", self.path, number + 1)
                    break
                self._size += len(line)

    def _check_head(self, head: Any) -> None:
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise ValueError("no head")
        changed = [c.key for c in differences(head, self._head)]
        if changed:
            raise ConfigError(
                f"{self.path}: these answers were made with other settings ({', '.join(changed[:4])}); give the settings they "
                "were made with to go on, or --overwrite to begin again"
            )

    def _keep(self, line: Mapping[str, Any]) -> None:
        uid = Generated.from_json(line["record"], "partial").uid
        if self.traced and "trace" not in line:  # decoded by a call without --trace
            return
        self.records[uid] = dict(line["record"])
        self.traces[uid] = line.get("trace", {})


def _locked(path: Path) -> int:
    """The file, opened and locked by this process; the lock ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(
                f"{path}: another 'ttt generate' is writing these answers; wait for it, or choose another eval.out"
            ) from None
        except OSError as error:
            log.warning("%s: no file locks here (%s); two calls on one file would go unnoticed", path, error)
        try:
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the call that held it has just finished and removed the file
