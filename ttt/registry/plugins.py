"""Where plug-ins come from: built-in modules, installed projects, and files or modules named by the user.

A plug-in that fails to import stops the run: a run without the plug-in it asked for is worse than no run.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from ttt.errors import RegistryError, TttError
from ttt.io.digests import digest_of_bytes
from ttt.registry import trust

ENTRY_POINT_GROUP = "ttt.plugins"
_installed_loaded = False


def load_installed() -> None:
    """Import every entry point of the group ``ttt.plugins``; once per process."""
    global _installed_loaded
    if _installed_loaded:
        return
    _installed_loaded = True
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINT_GROUP):
        _guarded(lambda point=point: point.load(), f"plug-in {point.name!r} (installed, {point.value})")


def load_plugins(
    items: Iterable[str], base: Path | None = None, *, named_by: str = "", asked: Iterable[str] = (), keep: bool = False
) -> list[str]:
    """Import files (``path/to/plugin.py``, relative to ``base`` or the working folder) or modules (``pkg.mod``).

    ``named_by``: the file that lists them, where that is not the user's own word (`ttt.registry.trust`); ``asked``: what the
    user named beside it.  ``keep``: the user's own recipe lists them; remember that.
    Returns the resolved origins.  Raises `RegistryError` with the file and line of the failure, `UntrustedCodeError`.
    """
    items = list(items)
    found = [_find(item, base) for item in items]
    if named_by:
        allowed = {name for item in asked for name in (item, str(_find(item, base)[1] or item))}
        for item, (_, source) in zip(items, found, strict=True):
            trust.refuse_unknown_code(item, source, named_by, allowed)
    for item, (_, source) in zip(items, found, strict=True):
        if is_file(item):
            assert source is not None
            _guarded(lambda path=source: _import_file(path), f"plug-in {item!r}")
        else:
            _guarded(lambda item=item: importlib.import_module(item), f"plug-in {item!r}")
        if keep:
            trust.remember(item, source)
    return [origin for origin, _ in found]


def is_file(item: str) -> bool:
    """Is a plug-in named by its file, not as a module?"""
    return item.endswith(".py") or "/" in item


def _find(item: str, base: Path | None) -> tuple[str, Path | None]:
    """(Origin of a plug-in, its file by its full path); nothing is imported."""
    if not is_file(item):
        return item, trust.source_of_module(item)
    path = Path(item)
    if not path.is_absolute():
        candidates = [Path.cwd() / path, *([base / path] if base is not None else [])]
        path = next((c for c in candidates if c.is_file()), candidates[0])
    if not path.is_file():
        raise RegistryError(f"plug-in {item!r}: no such file (looked for {path})")
    return str(path), path.resolve()


def _import_file(path: Path) -> None:
    name = f"ttt_plugin_{path.stem}_{digest_of_bytes(str(path).encode(), 4)}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _guarded(load, label: str) -> None:
    try:
        load()
    except TttError as error:
        raise RegistryError(f"{label}: {error}") from error
    except KeyboardInterrupt:
        raise
    except SystemExit as error:  # "sys.exit(0)" would end the verb as if it had done its work
        raise RegistryError(
            f"{label} ended the program while it was imported (sys.exit({error.code!r})); mend the plug-in or take it off "
            "the list"
        ) from error
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        place = f" at {last.filename}:{last.lineno}" if last else ""
        reason = " ".join(str(error).split())
        raise RegistryError(
            f"{label} failed to import: {type(error).__name__}: {reason}{place}; mend the plug-in or take it off the list"
        ) from error
