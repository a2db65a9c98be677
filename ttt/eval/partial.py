"""Answers that are written down one by one while others are still being decoded: a kill or a full disk loses none of them.

``NAME.generations.jsonl.partial``, and ``.partial-1``, ``.partial-2``, ... of further ranks: the first line says what the
answers are made from.  Another line is {"record": a generation record, "trace": its trace, where one was asked for}, or
{"more": {uid: fields}}, which is known of records only later.  A call with the same settings and inputs, by any number
of ranks, goes on behind the last whole lines.  The files are removed when the generations are complete.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
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
_RANK = re.compile(r"\.partial(?:-([0-9]+))?")


def partial_path(target: Path, rank: int = 0) -> Path:
    """Where the answers of a rank are before the generations ``target`` are complete."""
    return target.with_name(f"{target.name}.partial{f'-{rank}' if rank else ''}")


def partial_files(target: Path) -> dict[int, Path]:
    """By rank, the files that are there."""
    found = {}
    if target.parent.is_dir():
        for path in target.parent.iterdir():
            match = _RANK.fullmatch(path.name.removeprefix(target.name))
            if match is not None and path.is_file():
                found[int(match[1] or 0)] = path
    return dict(sorted(found.items()))


def check_complete(target: Path) -> None:
    """Raise `DataError` when an interrupted (or running) 'ttt generate' has left answers that are not in ``target`` yet."""
    files = partial_files(target)
    if not files:
        return
    answers = 0
    for path in files.values():
        with path.open("rb") as lines:
            answers += sum(1 for line in lines if line.startswith(b'{"record"') and line.endswith(b"\n"))
    older = f"; or delete this file to score the older answers in {target.name}" if target.is_file() else ""
    raise DataError(
        f"{min(files.values())}: not complete, only {answers} answers are decoded; run the same 'ttt generate' again, it goes "
        f"on from there{older}"
    )


class PartialAnswers:
    """The answers of one file so far.  Use as a context; nothing is changed on the disk before `begin`.

    They stay on the disk: what is kept here is where each of them is.  ``state``: what decides the answers; ``restart``:
    answers of earlier calls do not count; ``needs``: fields that a line (``trace``) or its record (``wav``) must have to
    count; ``rank``: whose file `add` writes to.  Raises `ConfigError` for answers made from something else, and while another
    call is writing.
    """

    def __init__(
        self, target: Path, state: Mapping[str, Any], *, restart: bool = False, needs: Iterable[str] = (), rank: int = 0
    ) -> None:
        self.target, self.path = target, partial_path(target, rank)
        self._restart, self._needs, self._rank = restart, frozenset(needs), rank
        self._places: dict[str, tuple[Path, int, int]] = {}  # uid -> file, where its line begins, bytes of it
        self._more: dict[str, dict[str, Any]] = {}
        self._head = json.loads(json.dumps({"format": FORMAT, **state}, default=str))
        self._handle, self._size = _locked(self.path), 0
        try:
            if not restart:
                self.read()
        except BaseException:
            self._close()
            raise
        if self._places and not rank:
            log.info("%s: going on behind the %d answers of an interrupted call", self.path, len(self._places))

    def __enter__(self) -> PartialAnswers:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __contains__(self, uid: str) -> bool:
        return uid in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def is_new(self) -> bool:
        """Has this rank written nothing yet?"""
        return not self._size

    def begin(self, ranks: int) -> None:
        """Remove what earlier calls wrote, if these answers do not count (``restart``); ``ranks``: how many write now."""
        if not self._restart:
            return
        os.ftruncate(self._handle, 0)
        for rank, path in partial_files(self.target).items():
            if not self._rank and rank >= ranks:
                path.unlink(missing_ok=True)

    def add(self, record: Mapping[str, Any], trace: TraceRecord | None = None) -> None:
        """Write one answer.  Raises `DataError` when it cannot be written; those before it are kept."""
        line: dict[str, Any] = {"record": record}
        if trace is not None:
            line["trace"] = trace.to_json()
        if self.is_new:
            self._write(self._head)
        at = self._size
        self._write(line)
        self._places[record["uid"]] = (self.path, at, self._size - at)

    def add_more(self, more: Mapping[str, Mapping[str, Any]]) -> None:
        """Write further fields of records by uid."""
        if self.is_new:
            self._write(self._head)
        self._write({"more": more})
        self._keep_more(more)

    def lacks(self, uid: str, field: str) -> bool:
        """Has nothing been added with this field for ``uid``?"""
        return field not in self._more.get(uid, {})

    def read(self) -> None:
        """Find the answers of all ranks; what is behind the first damaged line of a file is dropped."""
        self._places.clear()
        self._more.clear()
        for path in partial_files(self.target).values():
            whole = self._scan(path)
            if path == self.path:
                self._size = whole

    def records(self, uids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Generation records in the order of ``uids``, read one by one."""
        for uid, line in self._lines(uids):
            yield {**line["record"], **self._more.get(uid, {})}

    def traces(self, uids: Iterable[str]) -> Iterator[Mapping[str, Any]]:
        """Traces as JSON, likewise."""
        return (line["trace"] for _, line in self._lines(uids))

    def remove(self) -> None:
        """The generations are complete."""
        for path in partial_files(self.target).values():
            path.unlink(missing_ok=True)

    def _lines(self, uids: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        handles: dict[Path, int] = {}
        try:
            for uid in uids:
                path, at, size = self._places[uid]
                if path not in handles:
                    handles[path] = os.open(path, os.O_RDONLY)
                line: Any = load(os.pread(handles[path], size, at))
                yield uid, line
        finally:
            for handle in handles.values():
                os.close(handle)

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
                f"{self.path}: {describe(error)}; the {len(self._places)} answers before are kept: mend it and run the same "
                "command again, it goes on from there"
            ) from error
        self._size += len(line)

    def _scan(self, path: Path) -> int:
        """Find the answers of one file; -> bytes of its whole lines."""
        size = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    value: Any = load(line) if line.endswith(b"\n") else None
                    if number == 0:
                        self._check_head(path, value)
                    elif "more" in value:
                        self._keep_more(value["more"])
                    else:
                        self._keep(path, size, len(line), value)
                except (DataError, KeyError, TypeError, ValueError, RecursionError):
                    log.warning("%s:%d: a damaged line; it and what follows are decoded again", path, number + 1)
                    break
                size += len(line)
        return size

    def _check_head(self, path: Path, head: Any) -> None:
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise ValueError("no head")
        changed = [c.key for c in differences(head, self._head)]
        if changed:
            raise ConfigError(
                f"{path}: these answers were made with other settings ({', '.join(changed[:4])}); give the settings they "
                "were made with to go on, or --overwrite to begin again"
            )

    def _keep(self, path: Path, at: int, size: int, line: Mapping[str, Any]) -> None:
        uid = Generated.from_json(line["record"], "partial").uid
        if self._needs <= {*line, *line["record"]}:  # else decoded by a call that asked for less
            self._places[uid] = (path, at, size)

    def _keep_more(self, more: Mapping[str, Mapping[str, Any]]) -> None:
        for uid, fields in more.items():
            self._more.setdefault(uid, {}).update(fields)


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
