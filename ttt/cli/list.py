"""List the plug-in families, or the plug-ins of one with their fields.

Each plug-in with the first line of its docstring, its fields with defaults, and where it is defined.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from ttt.cli.common import add_common

if TYPE_CHECKING:
    from ttt.registry.core import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which family, in which form."""
    parser.add_argument("family", nargs="?", default="", metavar="FAMILY", help="a family; all when absent")
    parser.add_argument("--markdown", action="store_true", help="as the Markdown of docs/plugins.md")
    add_common(parser, "plugins")


def run(arguments: argparse.Namespace) -> int:
    """Print the families."""
    import ttt.registry.families  # noqa: F401  (declares the families)
    from ttt.registry.core import FAMILIES, family
    from ttt.registry.plugins import load_plugins

    load_plugins(arguments.plugins)
    for key in [arguments.family] if arguments.family else sorted(FAMILIES):
        print((markdown if arguments.markdown else text)(key, family(key)))
    return 0


def text(key: str, registry: Registry) -> str:
    """A family for the terminal."""
    lines = [f"{key}: {registry.title}"]
    for entry in registry.entries():
        details = [", ".join(fields(entry.cls)), shown_path(entry.where)]
        lines += [f"  {entry.name:18} {entry.doc}", *(f"  {'':18} {line}" for line in details if line)]
    return "\n".join(lines)


def markdown(key: str, registry: Registry) -> str:
    """A family as a table of the reference page."""
    lines = [f"## {key}: {registry.title}", "", "| name | fields | what it is |", "|---|---|---|"]
    for entry in registry.entries():
        cells = ", ".join(f"`{field}`" for field in fields(entry.cls)) or "-"
        lines.append(f"| `{entry.name}` | {cells} | {entry.doc.replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, ""])


def fields(cls: type) -> list[str]:
    """The settings of a plug-in: ``name``, ``name=default`` or ``name=default or another choice``."""
    from ttt.registry.fields import choices, field_types

    listed = []
    for field in dataclasses.fields(cls):
        if not field.init or field.name.startswith("_"):
            continue
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if isinstance(default, tuple):
            default = list(default)
        others = [str(c) for c in choices(field_types(cls)[field.name]) if c != default]
        shown = field.name if default is dataclasses.MISSING else f"{field.name}={default}"
        listed.append(" or ".join([shown, *others]))
    return listed


def shown_path(where: str) -> str:
    """``file:line`` relative to the working folder, where that is shorter."""
    path, _, line = where.rpartition(":")
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return where
    return f"{relative}:{line}" if relative.count("..") < 3 else where
