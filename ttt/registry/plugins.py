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


def load_plugins(items: Iterable[str], base: Path | None = None) -> list[str]:
    """Import files (``path/to/plugin.py``, relative to ``base`` or the working folder) or modules (``pkg.mod``).

    Returns the resolved origins.  Raises `RegistryError` with the file and line of the failure.
    """
    origins = []
    for item in items:
        if item.endswith(".py") or "/" in item:
            path = Path(item)
            if not path.is_absolute():
                candidates = [Path.cwd() / path, *([base / path] if base is not None else [])]
                path = next((c for c in candidates if c.is_file()), candidates[0])
            if not path.is_file():
                raise RegistryError(f"plug-in {item!r}: no such file (looked for {path})")
            _guarded(lambda path=path: _import_file(path.resolve()), f"plug-in {item!r}")
            origins.append(str(path))
        else:
            _guarded(lambda item=item: importlib.import_module(item), f"plug-in {item!r}")
            origins.append(item)
    return origins


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
    except (Exception, SystemExit) as error:  # a plug-in that exits must not end a verb as if it had done its work
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        place = f" at {last.filename}:{last.lineno}" if last else ""
        raise RegistryError(
            f"{label} failed to import: {type(error).__name__}: {error}{place}; mend the plug-in or take it off the list"
        ) from error
