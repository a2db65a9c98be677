"""The files of a fresh recipe: configuration, stages, data, a plug-in; complete enough to run as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ttt.errors import ConfigError, DataError, suggest
from ttt.io.atomic import folder_aside, write_text
from ttt.registry.core import family
from ttt.scaffold.copied import METHODS, copied_files
from ttt.scaffold.plugin import check_name, plugin_source

# Toys: recipes of a corpus of tones that run as they are; --from NAME -> file of ``templates/recipe/kinds``.
KINDS = {"toy": "ttt", "dual_stream": "dual_stream", "ar": "ar", "nar": "nar", "toy_llada": "llada"}
FILES = ("conf/base.yaml", "run.sh", "README.md", "local/data.py")
_TEMPLATES = resources.files("ttt.scaffold") / "templates" / "recipe"


@dataclass(frozen=True)
class Kind:
    """What recipes differ in: a YAML file of ``templates/recipe/kinds``.

    ``about``: its comment; ``objective``: its section of that name; ``decoding``: its lines of section ``eval``;
    ``family``: that of the recipe's own plug-in, which the file calls ``my_FAMILY``.
    """

    about: str
    objective: str
    decoding: str
    family: str


def read_kind(name: str) -> Kind:
    """One of `KINDS`; raises `ConfigError` for another."""
    if name not in KINDS:
        known = (*METHODS, *KINDS)
        raise ConfigError(f"--from: no recipe {name!r}.{suggest(name, known)} There are: {', '.join(known)}")
    text = (_TEMPLATES / "kinds" / f"{KINDS[name]}.yaml.txt").read_text(encoding="utf-8").rstrip("\n")
    comment, _, sections = text.partition("\n")
    objective, _, decoding = sections.partition("\neval:\n")
    plugged = re.search(r"\bmy_(\w+)", text)
    assert plugged is not None, f"{name}: no plug-in in its template"
    return Kind(comment.removeprefix("# "), objective, decoding, plugged[1])


def recipe_files(name: str, kind_name: str) -> dict[str, str]:
    """Path inside the recipe folder -> text, of a recipe ``name`` of one of `METHODS` or `KINDS`."""
    if kind_name in METHODS:
        return copied_files(name, kind_name)
    kind = read_kind(kind_name)
    registry = family(kind.family)
    plugin = f"{name}_{kind.family}"
    placeholder = f"my_{kind.family}"
    values = {
        "@OBJECTIVE@": kind.objective.replace(placeholder, plugin), "@EVAL@": kind.decoding.replace(placeholder, plugin),
        "@NAME@": name, "@ABOUT@": kind.about, "@FAMILY@": kind.family, "@PLUGIN@": plugin,
        "@PLUGIN_ABOUT@": f"a {registry.title} to change",
    }  # fmt: skip
    files = {path: (_TEMPLATES / f"{path}.txt").read_text(encoding="utf-8") for path in FILES}
    for key, value in values.items():
        files = {path: text.replace(key, value) for path, text in files.items()}
    return {**files, "plugin.py": plugin_source(registry, plugin)}


def write_recipe(name: str, kind_name: str, folder: Path) -> list[str]:
    """Write a recipe to a new or empty folder, complete or not at all; -> its files."""
    check_name(name, "recipe name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is there and not empty; name a new folder")
    files = recipe_files(name, kind_name)
    with folder_aside(folder) as partial:
        for path, text in files.items():
            write_text(partial / path, text)
            if path.endswith(".sh") and "/" not in path:
                (partial / path).chmod(0o755)
    return list(files)
