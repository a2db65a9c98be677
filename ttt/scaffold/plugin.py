"""A plug-in file to start from: the family's template under another name."""

from __future__ import annotations

import re
from importlib import resources

from ttt.errors import ConfigError
from ttt.registry.core import Registry


def plugin_source(registry: Registry, name: str) -> str:
    """The source of a plug-in of ``registry`` under ``name``.

    Raises `ConfigError` for a name that is taken or cannot be one.
    """
    check_name(name, "plug-in name")
    if name in registry.names():
        taken = next(entry.where for entry in registry.entries() if entry.name == name)
        raise ConfigError(f"{registry.title} {name!r} is registered already ({taken}); choose another name")
    template = resources.files("ttt.scaffold") / "templates" / "plugins" / f"{registry.key}.py.txt"
    class_name = "".join(part.capitalize() for part in name.split("_"))
    return template.read_text(encoding="utf-8").replace("my_plugin", name).replace("MyPlugin", class_name)


def check_name(name: str, what: str) -> None:
    """Raise `ConfigError` unless ``name`` can stand in configurations and in code."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{what}: {name!r} must be small letters, digits and underscores, beginning with a letter")
