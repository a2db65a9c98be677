"""Layers of configuration -> one frozen `RunConfig`.

defaults < files in order (each with its own ``extends:``) < ``key=value`` on the command line.  A layer that changes a
component's name replaces the block, so the old component's fields do not haunt the new one; a list is replaced whole.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ttt.config.schema import MISSING, RENAMED_KEYS, RunConfig
from ttt.errors import ConfigError, suggest
from ttt.registry.core import build_dataclass, family, name_of
from ttt.registry.plugins import load_plugins

log = logging.getLogger(__name__)
SECTIONS = {f.name: f.metadata["section"] for f in fields(RunConfig) if "section" in f.metadata}


def read_layers(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merge files and ``a.b=c`` overrides into one plain dict; interpolations ``${a.b}`` resolved."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge(merged, _read_file(Path(path), ()))
    for item in overrides:
        merged = merge(merged, with_new_keys(_parse_override(item)))
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        # Interpolations may point at values that only the schema's defaults hold.
        base = OmegaConf.create({name: _plain_defaults(cls) for name, cls in SECTIONS.items()})
        whole = OmegaConf.merge(base, OmegaConf.create(merged))
        _forget_missing(whole)
        resolved = OmegaConf.to_container(whole, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {str(error).splitlines()[0]}") from error
    return _only_given(resolved, merged)


def _forget_missing(node: Any) -> None:
    """``${data.dir}/x`` is missing itself while ``data.dir`` is: whether that matters is for the verb to say."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError

    keys = range(len(node)) if OmegaConf.is_list(node) else list(node.keys())
    for key in keys:
        if OmegaConf.is_missing(node, key):
            continue
        if OmegaConf.is_interpolation(node, key):
            try:
                node[key]
            except InterpolationToMissingValueError:
                node[key] = "???"
            continue
        if OmegaConf.is_config(node[key]):
            _forget_missing(node[key])


def load_config(
    paths: Sequence[str | Path],
    overrides: Sequence[str] = (),
    plugins: Iterable[str] = (),
    need: Sequence[str] = (),
) -> RunConfig:
    """Read, check and build a configuration.

    ``need`` lists the keys (``"data.train"``, ``"codec"``) that this verb cannot do without; other missing values are
    allowed.  Raises `ConfigError` with the full key path before any work starts.
    """
    raw = read_layers(paths, overrides)
    extra = [*plugins]
    listed = raw.get("plugins", []) or []
    if not isinstance(listed, list):
        raise ConfigError(f"plugins: expected a list of files or modules, got {listed!r}")
    base = Path(paths[-1]).resolve().parent if paths else None
    asked = [*listed, *extra]
    found = load_plugins(asked, base)
    raw["plugins"] = [_from_here(item, origin) for item, origin in zip(asked, found, strict=True)]
    return build_config(raw, need)


def _from_here(item: str, origin: str) -> str:
    """A plug-in as it is found from the working folder: a run's config.yaml lies elsewhere than the file that named it."""
    is_file = item.endswith(".py") or "/" in item
    return os.path.relpath(origin) if is_file and not Path(item).is_file() else item


def build_config(raw: Mapping[str, Any], need: Sequence[str] = ()) -> RunConfig:
    """Build a `RunConfig` from plain values (see `load_config`)."""
    known = [f.name for f in fields(RunConfig)]
    raw = with_new_keys(raw)
    for key in raw:
        if key not in known:
            raise ConfigError(f"{key}: no such section.{suggest(key, known)} Sections: {', '.join(known)}")
    given = {key: value for key, value in raw.items() if value is not None}
    config = build_dataclass(RunConfig, given, "", allow_missing=True)
    for key in need:
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name) if name else getattr(config, section)
        if name and isinstance(value, str) and value == MISSING:
            raise ConfigError(f"{key}: missing mandatory value; set it in the config or give {key}=...")
        if value is None:
            plugins = family(RunConfig.__dataclass_fields__[section].metadata["family"])
            raise ConfigError(f"{key}: missing; name a {plugins.title}: {', '.join(plugins.names())}")
    return config


def resolved_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML, components written out with all their fields; loads again to the same run."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def to_plain(value: Any) -> Any:
    """Dataclasses -> dicts, components with their registered name first."""
    if is_dataclass(value) and not isinstance(value, type):
        plain = {"name": name_of(value)} if hasattr(value, "registered_name") else {}
        plain.update({f.name: to_plain(getattr(value, f.name)) for f in fields(value) if f.init})
        return plain
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``new`` over ``old``: blocks merge, a changed component name replaces its block, lists are replaced.

    >>> merge({"noise": {"name": "a", "x": 1}}, {"noise": {"name": "b"}})
    {'noise': {'name': 'b'}}
    >>> merge({"noise": {"name": "a", "x": 1}}, {"noise": {"x": 2}})
    {'noise': {'name': 'a', 'x': 2}}
    """
    out = dict(old)
    for key, value in new.items():
        before = out.get(key)
        if isinstance(before, str) and isinstance(value, Mapping) and "name" not in value:
            before = {"name": before}
        if isinstance(value, str) and isinstance(before, Mapping) and before.get("name") == value:
            continue  # the same component named again keeps its fields
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            renamed = "name" in value and "name" in before and value["name"] != before["name"]
            out[key] = dict(value) if renamed else merge(before, value)
        else:
            out[key] = value
    return out


def _plain_defaults(cls: Any) -> dict[str, Any]:
    import dataclasses

    out = {}
    for f in fields(cls):
        if f.metadata.get("family"):
            continue
        value = f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[operator]
        out[f.name] = to_plain(value)
    return out


def with_new_keys(layer: Mapping[str, Any]) -> dict[str, Any]:
    """``layer`` with renamed keys (`RENAMED_KEYS`) under their new names; each old name is logged as a warning.

    Raises `ConfigError` when one layer gives both names.
    """
    copy: dict[str, Any] = _copy_blocks(layer)
    for old, new in RENAMED_KEYS.items():
        *parents, name = old.split(".")
        block = _block(copy, parents)
        if name not in block:
            continue
        *new_parents, new_name = new.split(".")
        target: Any = copy
        for parent in new_parents:
            target = target.setdefault(parent, {})
        if new_name in target:
            raise ConfigError(f"{old}: is the old name of {new}, which is given too; remove {old}")
        log.warning("config: %s is now called %s; the old name still works", old, new)
        target[new_name] = block.pop(name)
    return copy


def _block(layer: Any, parents: Sequence[str]) -> dict[str, Any]:
    for parent in parents:
        layer = layer.get(parent) if isinstance(layer, dict) else None
    return layer if isinstance(layer, dict) else {}


def _copy_blocks(node: Any) -> Any:
    return {k: _copy_blocks(v) for k, v in node.items()} if isinstance(node, Mapping) else node


def _only_given(resolved: Any, given: Any) -> Any:
    if isinstance(resolved, Mapping) and isinstance(given, Mapping):
        return {k: _only_given(resolved[k], given[k]) for k in given}
    return resolved


def _read_file(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf

    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path}: 'extends' goes round in a circle: {' -> '.join(str(p) for p in chain)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a block of keys at the top")
    parents = loaded.pop("extends", [])
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = merge(merged, _read_file(path.parent / parent, (*chain, path)))
    return merge(merged, with_new_keys({str(k): v for k, v in loaded.items()}))


def _parse_override(item: str) -> dict[str, Any]:
    import yaml

    key, sign, text = item.partition("=")
    if not sign or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"{item!r}: an override looks like section.key=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: value {text!r} is not YAML: {' '.join(str(error).split())}") from error
    node: Any = value
    for part in reversed(key.split(".")):
        node = {part: node}
    return node
