"""Fixtures of the fault tables: a finished tiny experiment, verbs run in this process, digests of everything on disk.

- ``world``: the working folder is a fresh copy of the experiment of ``fault_world.py``; what is where: `NAMES`.
- ``run("score", "--config", "recipe.yaml")`` -> ``(code, out, err)``; ``.log`` holds what was logged.
- ``tree(folder)`` -> ``{path: digest}``, to prove that nothing else changed.
- ``break_file(path, how)`` and ``FAULTS``: every way in which a file can be bad (``broken_files.py``).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from fault_world import NAMES, make_world

from ttt.cli.main import main


@dataclass
class Outcome:
    """What a verb did.  Unpacks as ``(code, out, err)``.

    ``code``: the exit code; 1 with the traceback in ``err`` when an exception left the command line.
    ``err``: what was printed to stderr; ``log``: what was logged (a user sees it there too).
    """

    code: int
    out: str
    err: str
    log: str

    def __iter__(self) -> Iterator:
        return iter((self.code, self.out, self.err))

    @property
    def crashed(self) -> bool:
        """An exception left the command line."""
        return "Traceback (most recent call last)" in self.err

    def complaint(self) -> str:
        """The one line of a refusal.  Fails unless exit code is 2 and exactly one line was printed."""
        assert not self.crashed, self.err
        assert self.code == 2, f"exit code {self.code}\n{self.out[-500:]}{self.err}"
        lines = self.err.splitlines()
        assert len(lines) == 1, f"{len(lines)} lines on stderr\n{self.err}"
        return lines[0]


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage() + ("\nTraceback" if record.exc_info else ""))


def run_verb(*words: object, stdin: str | None = "") -> Outcome:
    """``ttt words...`` in this process; ``stdin``: what is typed (None: closed)."""
    out, err, handler = io.StringIO(), io.StringIO(), _Log()
    before = sys.stdin, os.getcwd(), logging.getLogger("ttt").level
    root = logging.getLogger()
    root_level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)  # with a handler there, the command line adds none of its own
    sys.stdin = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape")))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main([str(word) for word in words])
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) or type(error).__module__.startswith("_pytest"):
                    raise
                err.write(traceback.format_exc())
                code = 1
    finally:
        root.removeHandler(handler)
        root.setLevel(root_level)
        sys.stdin = before[0]
        os.chdir(before[1])
        logging.getLogger("ttt").setLevel(before[2])
    return Outcome(code, out.getvalue(), err.getvalue(), "\n".join(handler.lines))


def digest_tree(folder: str | Path = ".") -> dict[str, str]:
    """Every path below a folder: digest of a file, target of a link, 'folder'."""
    found: dict[str, str] = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        elif path.is_file():
            found[name] = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        else:
            found[name] = "special"
    return found


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The experiment, made once; read-only."""
    folder = tmp_path_factory.mktemp("finished") / "world"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        make_world()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def world(finished, tmp_path, monkeypatch) -> SimpleNamespace:
    """A copy of the experiment, which is the working folder; the names of what is in it."""
    copy = tmp_path / "world"
    shutil.copytree(finished, copy, symlinks=True)
    monkeypatch.chdir(copy)
    return NAMES


@pytest.fixture
def run() -> Callable[..., Outcome]:
    """`run_verb`."""
    return run_verb


@pytest.fixture
def tree() -> Callable[..., dict[str, str]]:
    """`digest_tree`."""
    return digest_tree
