"""Write a plug-in file that keeps its family's promises."""

from __future__ import annotations

import argparse
from pathlib import Path

from ttt.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of which family, under which name, whereto."""
    parser.add_argument("family", metavar="FAMILY", help="see 'ttt list'")
    parser.add_argument("name", metavar="NAME", help="the name to register it under")
    parser.add_argument("file", metavar="FILE.py", help="file to write; must be new")


def run(arguments: argparse.Namespace) -> int:
    """Write the file; say how to check and list it."""
    from ttt.check.core import ALIASES, MODULES
    from ttt.io.atomic import write_text
    from ttt.io.writable import check_writable
    from ttt.registry.core import family
    from ttt.scaffold.plugin import plugin_source

    registry, path = family(ALIASES.get(arguments.family, arguments.family)), Path(arguments.file)
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a plug-in is a Python file; give it the ending .py")
    source = plugin_source(registry, arguments.name)
    check_writable(path)
    if path.exists():
        raise DataError(f"{path}: is there already; name another file")
    write_text(path, source)
    print(f"wrote {path}")
    if registry.key in MODULES:
        print(f"  ttt check {registry.key} {arguments.name} --plugins {path}")
    print(f"  ttt list {registry.key} --plugins {path}")
    return 0
