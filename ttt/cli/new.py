"""``ttt new``: a recipe folder, or a plug-in file, to start from."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ttt.errors import ConfigError, DataError


def new(arguments: argparse.Namespace) -> int:
    """``new recipe NAME DIR`` or ``new plugin FAMILY NAME FILE``."""
    return recipe(arguments) if arguments.what == "recipe" else plugin(arguments)


def plugin(arguments: argparse.Namespace) -> int:
    """Write a plug-in of a family; says how to check and use it."""
    from ttt.check.core import ALIASES, MODULES
    from ttt.cli.new_plugin import plugin_source
    from ttt.registry.core import family

    registry, path = family(ALIASES.get(arguments.family, arguments.family)), Path(arguments.file)
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a plug-in is a Python file; give it the ending .py")
    source = plugin_source(registry, arguments.name)
    write_new(path, source)
    print(f"wrote {path}")
    if registry.key in MODULES:
        print(f"  ttt check {registry.key} {arguments.name} --plugins {path}")
    print(f"  ttt list {registry.key} --plugins {path}")
    return 0


def recipe(arguments: argparse.Namespace) -> int:
    """Write a recipe folder, complete or not at all."""
    from ttt.cli.new_plugin import check_name
    from ttt.cli.new_recipe import recipe_files

    check_name(arguments.name, "recipe name")
    folder = Path(arguments.dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is there and not empty; name a new folder")
    files = recipe_files(arguments.name, arguments.source)
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, text in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                path.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(f"wrote {folder}: {', '.join(files)}")
    print(f"  ttt config --config {folder / 'conf/base.yaml'}\n  {folder / 'run.sh'}")
    return 0


def write_new(path: Path, text: str) -> None:
    """Write a file that must not be there yet, complete or not at all."""
    if path.exists():
        raise DataError(f"{path}: is there already; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
