"""Scalars as YAML reads them, and as they are written: a field of type text takes them as they are written.

YAML reads ``2026_01_30`` as 20260130, ``no`` as false and ``12:30:45`` as 45045.  What a scalar is meant to be depends on the
field it is for, and that on the plug-in that later layers may name.  So both are kept until all layers are merged.
"""

from __future__ import annotations

import contextlib
import io
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from ttt.errors import ConfigError
from ttt.registry.core import family
from ttt.registry.fields import field_types, is_text, plain_type, shortened


@dataclass(frozen=True)
class Written:
    """A scalar: its ``value`` as YAML reads it, its ``text`` as it is written."""

    value: Any
    text: str


def read_yaml(content: str) -> Any:
    """The block of a YAML file, its scalars that are not text as `Written`.  Raises `ValueError` with the reason.

    ``${...}`` stays as it is.
    """
    from omegaconf import OmegaConf

    with _faults_as_value_errors():
        value = OmegaConf.to_container(OmegaConf.load(io.StringIO(content)), resolve=False)
        return _with_text(value, content)


@contextlib.contextmanager
def _faults_as_value_errors() -> Iterator[None]:
    """Whatever YAML or OmegaConf raise, as a `ValueError` with the reason in one line."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OmegaConfBaseException as error:
        raise ValueError(reason(error)) from error
    except (yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(_one_line(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_value(text: str) -> Any:
    """A value of the command line that YAML is to read.  Raises `ValueError` with the reason."""
    from omegaconf import OmegaConf

    with _faults_as_value_errors():
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[index,call-overload]
        if isinstance(value, (dict, list)):
            return _with_text(value, text)
    return value if value == text else Written(value, unquoted(text))


def unquoted(text: str) -> str:
    """Text of the command line without the quotes around the whole of it, as YAML takes them off.

    >>> unquoted("'no'"), unquoted("exp #1/a"), unquoted("''")
    ('no', 'exp #1/a', '')
    """
    import yaml

    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str) else text


def reason(error: Exception) -> str:
    """An error of OmegaConf in one line, with the key it is about."""
    key = getattr(error, "full_key", None)
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{key}: {text}" if key else text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _with_text(value: Any, content: str) -> Any:
    import yaml

    loader = yaml.SafeLoader(content)
    try:
        return _marked(value, loader.get_single_node(), loader)
    finally:
        loader.dispose()


def _marked(value: Any, node: Any, loader: Any) -> Any:
    """``value`` with its scalars that are not text as `Written`; ``node``: where the value comes from."""
    import yaml

    if isinstance(value, dict) and isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        nodes = {loader.construct_object(key, deep=True): child for key, child in node.value}
        return {key: _marked(item, nodes.get(key), loader) for key, item in value.items()}
    if isinstance(value, list) and isinstance(node, yaml.SequenceNode):
        return [_marked(item, child, loader) for item, child in zip(value, node.value, strict=True)]
    if isinstance(node, yaml.ScalarNode) and not isinstance(value, (str, dict, list)) and value is not None:
        return Written(value, node.value)
    return value


def as_read(node: Any) -> Any:
    """A block with every scalar as YAML reads it."""
    if isinstance(node, Written):
        return node.value
    if isinstance(node, Mapping):
        return {key: as_read(value) for key, value in node.items()}
    return [as_read(value) for value in node] if isinstance(node, list) else node


def as_declared(cls: type, block: Mapping[Any, Any]) -> dict[Any, Any]:
    """A block for the dataclass ``cls`` with each scalar as its field wants it: text as written, all else as YAML reads it."""
    known, types_of, renamed = _fields(cls)
    out: dict[Any, Any] = {}
    for key, value in block.items():
        name = renamed.get(key, key)
        field = known.get(name)
        if field is None:
            out[key] = as_read(value)
        elif "section" in field.metadata:
            out[key] = as_declared(field.metadata["section"], value) if isinstance(value, Mapping) else as_read(value)
        elif "family" not in field.metadata:
            out[key] = _plain(types_of[name], value)
        elif field.metadata["many"]:
            items = isinstance(value, list)
            out[key] = [_component(field, item) for item in value] if items else as_read(value)
        else:
            out[key] = _component(field, value)
    return out


def _fields(cls: type) -> tuple[dict[str, Field], dict[str, Any], Mapping[str, str]]:
    return {f.name: f for f in fields(cls) if f.init}, field_types(cls), getattr(cls, "renamed_fields", {})


def _component(field: Field, node: Any) -> Any:
    """A plug-in's name or block; a name is text."""
    if isinstance(node, Written):
        return None if node.value is None else node.text
    if not isinstance(node, Mapping):
        return as_read(node)
    cls = _class_of(field, node)
    rest = {key: value for key, value in node.items() if key != "name"}
    rest = as_read(rest) if cls is None else as_declared(cls, rest)
    name = {"name": _plain(str, node["name"])} if "name" in node else {}
    return {**name, **rest}


def _class_of(field: Field, node: Any) -> type | None:
    """The class of the plug-in that a node names, or that the field has by default; None for an unknown one."""
    name = node.get("name") if isinstance(node, Mapping) else node
    if name is None and not field.metadata["many"]:
        default = field.default if field.default is not MISSING else None
        name = default.get("name") if isinstance(default, Mapping) else default
    name = name.text if isinstance(name, Written) else name
    return family(field.metadata["family"]).find(name) if isinstance(name, str) else None


def _plain(declared: Any, value: Any) -> Any:
    parts = typing.get_args(plain_type(declared))
    if isinstance(value, Written):
        return value.text if is_text(declared) else value.value
    if isinstance(value, list) and parts and typing.get_origin(plain_type(declared)) in (list, tuple):
        return [_plain(parts[0] if Ellipsis in parts or len(parts) == 1 else parts[min(i, len(parts) - 1)], item)
                for i, item in enumerate(value)]  # fmt: skip
    if isinstance(value, Mapping) and len(parts) == 2 and typing.get_origin(plain_type(declared)) is dict:
        return {key: _plain(parts[1], item) for key, item in value.items()}
    return as_read(value)


def type_at(cls: type, tree: Mapping[Any, Any], path: Sequence[str]) -> Any:
    """The declared type of the field at ``path``; None for a plug-in, a section, and where nobody knows (yet).

    ``tree``: the layers so far, which say what plug-in is where.
    """
    known, types_of, renamed = _fields(cls)
    name, rest = renamed.get(path[0], path[0]), path[1:]
    if name not in known:
        return None
    field = known[name]
    node = tree.get(path[0], tree.get(name)) if isinstance(tree, Mapping) else None
    below = node if isinstance(node, Mapping) else {}
    if "section" in field.metadata:
        return type_at(field.metadata["section"], below, rest) if rest else None
    if "family" in field.metadata:
        if not rest or field.metadata["many"]:
            return None
        if rest == ["name"]:
            return str
        plugin = _class_of(field, node if node is not None else {})
        return type_at(plugin, below, rest) if plugin is not None else None
    if not rest:
        return types_of[name]
    parts = typing.get_args(plain_type(types_of[name]))
    return parts[1] if len(rest) == 1 and len(parts) == 2 and typing.get_origin(plain_type(types_of[name])) is dict else None


def parse_override(item: str, cls: type, tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The block of one ``a.b=c`` over the layers ``tree``.  Raises `ConfigError`."""
    key, sign, text = item.partition("=")
    path = key.split(".")
    if not sign or not all(path):
        raise ConfigError(f"{item!r}: an override looks like section.key=value")
    declared = type_at(cls, tree, path)
    node: Any
    if not text:
        node = ""
    elif declared is not None and is_text(declared):
        optional = type(None) in typing.get_args(plain_type(declared))
        node = None if optional and text in ("null", "~") else unquoted(text)
    else:
        try:
            node = read_value(text)
        except ValueError as error:
            raise ConfigError(f"{key}: value {shortened(text)} is not YAML: {error}") from error
    for part in reversed(path):
        node = {part: node}
    return node
