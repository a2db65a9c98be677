"""Whose code is run: plug-ins, and code of model folders, only by the word of the user.

The user's own word is what stands on the command line (or in a call from Python): ``--plugins``, a setting, a recipe named
by ``--config`` with all that it extends, and ``--trust``.  A file that came along with something else is not: the
``config.yaml`` stored in a run, the configuration in a result card, the recipes that a table names.  What such a file lists is
run only when it is

- installed under the entry point ``ttt.plugins``, or
- named by ``--plugins``, or allowed by ``--trust``, in the same call, or
- the same file, at the same path and with the same contents, that a recipe of the user's listed earlier (`remember`).

So one's own runs open as before, and somebody else's run, wherever it was unpacked, runs nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from pathlib import Path

from ttt.errors import UntrustedCodeError
from ttt.io.digests import digest_of_file
from ttt.io.user_cache import read_record, write_record

KIND = "plugins"  # of the records of what was run by the user's word
_everything: ContextVar[bool] = ContextVar("ttt_trust", default=False)


@contextlib.contextmanager
def trusting(everything: bool = True) -> Iterator[None]:
    """``--trust``: whatever the files of this call name may be run.  False leaves things as they are."""
    token = _everything.set(everything or _everything.get())
    try:
        yield
    finally:
        _everything.reset(token)


def trusts_everything() -> bool:
    """Is this inside `trusting`?"""
    return _everything.get()


def source_of_module(name: str) -> Path | None:
    """The file of a module (of a package: its ``__init__.py``), found without running any of it; None if there is none."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a top-level name: imports nothing
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    for folder in spec.submodule_search_locations or ():
        for path in (Path(folder, *rest).with_suffix(".py"), Path(folder, *rest, "__init__.py")):
            if path.is_file():
                return path
    return None


def remember(name: str, source: Path | None) -> None:
    """Note that the user's own recipe lists this plug-in; ``source``: its file."""
    if source is None:
        return
    key, digest = _key(name, source), digest_of_file(source)
    if read_record(KIND, key).get("digest") != digest:
        write_record(KIND, key, {"digest": digest})


def refuse_unknown_code(name: str, source: Path | None, named_by: str, asked: Collection[str]) -> None:
    """Raise `UntrustedCodeError` for a plug-in that ``named_by``, a file that is not the user's word, lists.

    ``source``: its file; ``asked``: full paths and names of what the user named in this call.
    """
    known = str(source) if source is not None else name
    if trusts_everything() or known in asked or name in asked or _is_installed(name):
        return
    digest = digest_of_file(source) if source is not None else ""
    if digest and read_record(KIND, _key(name, source)).get("digest") == digest:
        return
    what = f"{known} (digest {digest})" if digest else f"the module {name}"
    raise UntrustedCodeError(
        f"{named_by}: plugins: lists {what}, code that would be run and that you have not asked for; read it, then name it "
        f"yourself (--plugins {known}), or give --trust to run all that this file names"
    )


def _key(name: str, source: Path | None) -> str:
    return f"{name if source is None else source.resolve()}"


def _is_installed(name: str) -> bool:
    from importlib.metadata import entry_points

    from ttt.registry.plugins import ENTRY_POINT_GROUP

    return any(point.module == name for point in entry_points(group=ENTRY_POINT_GROUP))
