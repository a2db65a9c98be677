"""May a verb write to a place?  Asked before any work, so that nobody's files are lost.

- An output is never one of the inputs, however it is spelled (links are followed).
- A file is replaced when ttt made it, which the marker of an earlier call says (`ttt.stage`), or when the user named this very
  file and gave ``--overwrite``.
- A folder is replaced as a whole when the same kind of verb made all that is in it, and the user gave ``--overwrite``; never one
  that holds an input or lies in the folder that is read.

Each refusal is a `ConfigError` of one line.  A verb whose outputs have no marker yet leaves a *claim* there while it works, so
that the same call goes on after a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.errors import ConfigError
from ttt.io.writable import check_writable

_claims: dict[Path, tuple[list[Path], list[Path]]] = {}  # marker -> (outputs, folders that were made for it)


def is_same(one: Path, other: Path) -> bool:
    """Do two paths name one file or folder, through links too?"""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # hard links
    except (OSError, ValueError):
        return False


def is_inside(path: Path, folder: Path) -> bool:
    """Does ``path`` lie below ``folder``, links followed?"""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Raise `ConfigError` when ``out`` is one of the inputs."""
    for path in inputs:
        if is_same(out, path):
            raise ConfigError(f"{out}: is the source {path}; name another place to write, so that it stays as it was")


def check_file(
    out: Path, inputs: Iterable[Path] = (), *, overwrite: bool = False, is_ours: bool = False, mend: str = ""
) -> None:
    """Raise `ConfigError` unless the file ``out`` may be written.

    ``overwrite``: the user named this file and wants it replaced; ``is_ours``: ttt made what is there; ``mend``: what helps, in
    place of ``--overwrite``.
    """
    inputs = list(inputs)
    refuse_inputs(out, inputs)
    check_writable(out)
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name a file")
    if not os.path.lexists(out) or is_ours:
        return
    for folder in inputs:
        if folder.is_dir() and is_inside(out, folder):
            raise ConfigError(f"{out}: was not made by ttt and lies in the source {folder}; name another place to write")
    if not overwrite:
        raise ConfigError(f"{out}: was not made by ttt; {mend or 'name another file, or give --overwrite to replace it'}")


def check_folder(out: Path, inputs: Iterable[Path] = (), *, is_ours: bool = False) -> None:
    """Raise `ConfigError` unless files may be written into the folder ``out``: new, empty, or made by ttt."""
    refuse_inputs(out, inputs)
    check_writable(out)
    if os.path.lexists(out) and not out.is_dir():
        raise ConfigError(f"{out}: is a file, not a folder; name a folder")
    if not is_ours and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: holds files that were not made by ttt here; name a new or empty folder")


def check_replaced_folder(
    out: Path, inputs: Iterable[Path], is_ours: Callable[[Path], bool], made_by: str, overwrite: bool
) -> None:
    """Raise `ConfigError` unless a whole folder may take the place of ``out``.

    ``is_ours``: is this folder, and all that is in it, what ``made_by`` writes?
    """
    for path in inputs:
        if is_same(out, path):
            raise ConfigError(f"{out}: is the source; name another folder, so that it stays as it was")
        if is_inside(path, out):
            raise ConfigError(f"{out}: holds the source {path}; name another folder")
        if path.is_dir() and is_inside(out, path):
            raise ConfigError(f"{out}: lies in the source {path}; name a folder elsewhere")
    check_writable(out)
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file, not a folder; name a folder")
    if not any(out.iterdir()):
        return
    if not is_ours(out):
        raise ConfigError(f"{out}: holds files that were not made by {made_by}; name another folder")
    if not overwrite:
        raise ConfigError(f"{out}: is there already; name another folder, or give --overwrite")


def check_picture(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Raise `ConfigError` unless ``out`` is new or a picture that ttt drew."""
    check_file(out, inputs, is_ours=is_our_png(out), mend="name another file with --png")


def index_names(
    folder: Path, keys: Iterable[str], files: Callable[[str], Sequence[str]], ours: Iterable[str] = ()
) -> dict[str, str]:
    """Choose a file name for each id and list them in the folder's ``names.json``; -> id -> name.

    ``files``: the files and folders of a name.  Those of the names that the index listed before, or that are among ``ours``, are
    ttt's.  Raises `ConfigError` when one of the others is in the way.
    """
    from ttt.io.names import INDEX, file_names, read_index, write_index

    listed = read_index(folder)
    chosen = file_names([*listed.values(), *keys])
    check_file(folder / INDEX, is_ours=bool(listed), mend="name another folder")
    wanted = {chosen[key]: key for key in keys}
    known = {*listed, *ours}
    for name in wanted:
        for path in (folder / file for file in files(name) if name not in known):
            if os.path.lexists(path):
                raise ConfigError(f"{path}: was not made by ttt; move it away, or name another folder")
    write_index(folder, {**listed, **wanted})
    return {key: name for name, key in wanted.items()}


def is_our_png(path: Path) -> bool:
    """Is this a picture that ttt drew?  Its writers name ttt as the software."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return head.startswith(b"\x89PNG\r\n\x1a\n") and b"Software\0ttt" in head


def is_our_json(path: Path, **wanted: str | None) -> bool:
    """Is this a JSON object with these fields?  ``wanted``: what the text of each begins with (None: any value)."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and all(
        key in record and (start is None or str(record[key]).startswith(start)) for key, start in wanted.items()
    )


def holds_only(folder: Path, names: Sequence[str]) -> bool:
    """Are all entries of a folder called by one of the patterns ``names`` (regular expressions)?"""
    pattern = re.compile("|".join(f"(?:{name})" for name in names))
    return all(pattern.fullmatch(entry.name) is not None for entry in folder.iterdir())


def claim(marker: Path, outputs: Sequence[Path], record: Mapping[str, Any]) -> None:
    """Say that the outputs, none of which is there yet, are ttt's from now on: ``record`` is written to ``marker``."""
    from ttt.io.atomic import write_json

    made = [p for p in marker.parents if not p.exists()]
    write_json(marker, {**record, "unfinished": True})
    _claims[marker] = (list(outputs), made)


def settle(marker: Path) -> None:
    """The claim of ``marker`` has become a record of finished work."""
    _claims.pop(marker, None)


def withdraw_claims() -> None:
    """Remove the claims of this process under which nothing was written."""
    for marker, (outputs, made) in _claims.items():
        if any(os.path.lexists(p) for p in outputs):
            continue
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)
            for folder in made:  # innermost first
                folder.rmdir()
    _claims.clear()
