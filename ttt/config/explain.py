"""What every key of a configuration is: type, default, choices, range and one line, read from the schema and the plug-ins.

A field's line is the comment behind it, or the comment lines directly above it, in the source of its class; without a comment
the sentence of the class's docstring that names the field.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, suggest
from ttt.registry.core import Registry, family
from ttt.registry.fields import bounds, choices, field_types, plain_type, type_name

_NO_DOC = re.compile(r"# *(type:|noqa|fmt:)[^#]*")  # remarks to tools


@dataclass(frozen=True)
class Key:
    """One key: its path, type, default, what it accepts beyond the type, and its line of documentation."""

    path: str
    type: str
    default: str
    accepts: str
    doc: str


def explain(path: str = "") -> str:
    """The text of ``ttt config --explain PATH``: all keys, a section, a key, a plug-in (``eval.sampler.blockwise``) or its key.

    Raises `ConfigError` for a path that there is not.
    """
    keys = list(keys_below(path))
    lines = []
    for key in keys:
        accepts = f"; {key.accepts}" if key.accepts else ""
        lines.append(f"{key.path} = {key.default}  ({key.type}{accepts})")
        lines += textwrap.wrap(key.doc, 116, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) if lines else f"{path} has no keys"


def keys_below(path: str) -> Iterator[Key]:
    """The keys of a section or plug-in, or the one key of that path."""
    cls: type = RunConfig
    done: list[str] = []
    parts = [part for part in path.split(".") if part]
    while parts:
        name = parts.pop(0)
        known = _fields(cls)
        if name not in known:
            place = f"{'.'.join([*done, name])}"
            raise ConfigError(f"--explain: no key {place!r}.{suggest(name, known)} Keys: {', '.join(known) or 'none'}")
        field = known[name]
        done.append(name)
        if "section" in field.metadata:
            cls = field.metadata["section"]
        elif "family" in field.metadata and parts:
            plugin = parts.pop(0)
            cls = family(field.metadata["family"]).get(plugin, f"--explain: {'.'.join(done)}")
            done.append(plugin)
        elif parts:
            raise ConfigError(f"--explain: {'.'.join(done)} is one value, it has no {'.'.join(parts)!r}")
        else:
            yield _key(cls, field, ".".join(done))
            return
    yield from keys_of(cls, ".".join(done))


def keys_of(cls: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a section or plug-in, nested sections included."""
    for name, field in _fields(cls).items():
        path = f"{prefix}.{name}" if prefix else name
        if "section" in field.metadata:
            yield from keys_of(field.metadata["section"], path)
        else:
            yield _key(cls, field, path)


def _fields(cls: type) -> dict[str, Field]:
    return {f.name: f for f in fields(cls) if f.init and not f.name.startswith("_")}


def _key(cls: type, field: Field, path: str) -> Key:
    doc = field_docs(cls).get(field.name, "")
    if "family" in field.metadata:
        plugins = family(field.metadata["family"])
        title = f"list of {plugins.title}s" if field.metadata["many"] else plugins.title
        return Key(path, title, _default(field), " | ".join(plugins.names()), doc)
    declared = field_types(cls)[field.name]
    listed = " | ".join(str(choice) or "''" for choice in choices(declared))
    return Key(path, type_name(plain_type(declared)), _default(field), listed or str(bounds(declared) or ""), doc)


def _default(field: Field) -> str:
    value: Any = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING or value == "???":
        return "???"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Field -> its line of documentation, of ``cls`` and the classes it inherits fields from."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            docs |= _docs_in(textwrap.dedent(inspect.getsource(base))) if "__annotations__" in vars(base) else {}
        except (OSError, TypeError):  # made without a source file
            continue
        sentences = re.split(r"(?<=[.;])\s+", " ".join((base.__doc__ or "").split()))
        for name in vars(base).get("__annotations__", {}):
            docs[name] = docs.get(name) or next((s.strip(";") for s in sentences if f"``{name}``" in s), "")
    return docs


def _docs_in(source: str) -> dict[str, str]:
    comments = {
        token.start[0]: (_NO_DOC.sub("", token.string).strip("# "), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    docs = {}
    body = ast.parse(source).body[0]
    for node in body.body if isinstance(body, ast.ClassDef) else []:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        behind = [comments[n][0] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in comments]
        above: list[str] = []
        line = node.lineno - 1
        while line in comments and comments[line][1]:
            above.insert(0, comments[line][0])
            line -= 1
        docs[node.target.id] = " ".join(" ".join(behind).split()) or " ".join(above)
    return docs


def markdown() -> str:
    """The tables of docs/configuration.md: every section, then every plug-in that has keys of its own."""
    from ttt.registry import families

    blocks = [f"## Sections\n\n{_table(k for k in keys_of(RunConfig) if '.' not in k.path)}"]
    for name, field in _fields(RunConfig).items():
        if "section" in field.metadata:
            section = field.metadata["section"]
            blocks.append(f"### {name}\n\n{_first_line(section)}\n\n{_table(keys_of(section, name))}")
    for registry in vars(families).values():
        if not isinstance(registry, Registry):
            continue
        with_keys = [(e, list(keys_of(e.cls))) for e in registry.entries()]
        plugins = [f"### {e.name} ({registry.title})\n\n{e.doc}\n\n{_table(keys)}" for e, keys in with_keys if keys]
        if plugins:
            without = ", ".join(f"`{e.name}`" for e, keys in with_keys if not keys)
            note = f"\n\nWithout keys: {without}." if without else ""
            blocks.append("\n\n".join([f"## Plug-ins: {registry.title}{note}", *plugins]))
    return "\n\n".join(blocks) + "\n"


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n", 1)[0]


def _table(keys: Iterator[Key] | list[Key]) -> str:
    rows = ["| key | default | type | accepts | what it is |", "|---|---|---|---|---|"]
    for key in keys:
        cells = (f"`{key.path}`", f"`{key.default}`", key.type, key.accepts.replace(" | ", ", "), key.doc)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)
