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
from ttt.config.written import as_declared, as_read, parse_override, read_yaml, reason
from ttt.errors import ConfigError, UntrustedCodeError, suggest
from ttt.registry.core import build_dataclass, family, name_of
from ttt.registry.plugins import is_file, load_plugins
from ttt.registry.trust import trusts_everything

log = logging.getLogger(__name__)
TRUST_KEYS = ("model.trust_remote_code",)  # not believed in files that the user did not name
# Section and two keys of it that say the same in two ways: the later one given replaces the other.
ALTERNATIVES = (
    ("train", "steps", "epochs"), ("data", "batch_tokens", "batch_samples"), ("data", "batch_tokens", "batch_s"),
    ("data", "batch_samples", "batch_s"), ("data", "quadratic_tokens", "quadratic_s"),
)  # fmt: skip
SECTIONS = {f.name: f.metadata["section"] for f in fields(RunConfig) if "section" in f.metadata}


def read_layers(
    paths: Sequence[str | Path], overrides: Sequence[str] = (), of: type = RunConfig
) -> dict[str, Any]:  # fmt: skip
    """Merge files and ``a.b=c`` overrides into one plain dict; interpolations ``${a.b}`` resolved.

    ``of``: the dataclass whose fields the values are for; a text of the command line is taken as typed where it says so.
    """
    return _resolved(_merged(_read_files(paths), overrides, of), of)


def _read_files(paths: Sequence[str | Path]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _over(merged, _read_file(Path(path), ()), str(path))
    return merged


def _merged(files: Mapping[str, Any], overrides: Sequence[str], of: type) -> dict[str, Any]:
    """Settings of the command line, one after the other, over the files."""
    merged = dict(files)
    for item in overrides:
        block = with_new_keys(parse_override(item, of, merged))
        if of is RunConfig:
            _check_alternatives(block, "the command line")
            merged = _over(merged, block, "the command line")
        else:
            merged = merge(merged, block)
    return as_declared(of, merged)


def _resolved(merged: dict[str, Any], of: type = RunConfig) -> dict[str, Any]:
    """``merged`` with ``${a.b}`` replaced by what stands there."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        # Interpolations may point at values that only the schema's defaults hold.
        defaults = {name: _plain_defaults(cls) for name, cls in SECTIONS.items()} if of is RunConfig else {}
        whole = OmegaConf.create(_blocks_over(defaults, merged))
        _forget_missing(whole)
        resolved = OmegaConf.to_container(whole, resolve=True)
    except RecursionError as error:
        raise ConfigError("config: values point at each other in a circle (${...}), or are nested too deep") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {reason(error)}") from error
    return _only_given(resolved, merged)


def _blocks_over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Given values over the defaults, block by block; a value that is no block replaces one."""
    out = dict(defaults)
    for key, value in given.items():
        before = out.get(key)
        out[key] = _blocks_over(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return out


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
    stored: Sequence[str | Path] = (),
) -> RunConfig:
    """Read, check and build a configuration.

    ``stored`` lists those of ``paths`` and ``overrides`` that the user did not give, such as the ``config.yaml`` of a run: the
    code that they name is not run without the user's word (`ttt.registry.trust`).  ``need`` lists the keys
    (``"data.train"``, ``"codec"``) that this verb cannot do without; other missing values are allowed.  Raises
    `ConfigError` with the full key path before any work starts.
    """
    files = _read_files(paths)
    base = Path(paths[-1]).resolve().parent if paths else None
    listed, extra = _listed_plugins(files, overrides), [*plugins]
    others = _named_by(paths, overrides, stored, "plugins")
    # First: only then is it known which of their fields are text.
    found = load_plugins(listed, base, named_by=others, asked=extra, keep=not others)
    found += load_plugins(extra, base)
    raw = _resolved(_merged(files, overrides, RunConfig))
    raw["plugins"] = [_from_here(item, origin) for item, origin in zip([*listed, *extra], found, strict=True)]
    for key in TRUST_KEYS:
        others = _named_by(paths, overrides, stored, key)
        if others and _value_at(raw, key) and not trusts_everything():
            raise UntrustedCodeError(
                f"{others}: {key} is set, which runs code of a model folder that you have not asked for; give {key}=true "
                f"yourself where you trust that code, or {key}=false"
            )
    return build_config(raw, need)


def _listed_plugins(files: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """``plugins`` of the files and the command line."""
    settings = [item for item in overrides if item.partition("=")[0] == "plugins"]
    merged = _merged(files, settings, RunConfig)
    if not merged.get("plugins"):
        return []
    if any("${" in str(item) for item in _as_list(merged["plugins"])):
        merged = _resolved(_merged(files, overrides, RunConfig))
    listed = merged["plugins"]
    if not isinstance(listed, list) or not all(isinstance(item, str) and item.strip() for item in listed):
        raise ConfigError(f"plugins: expected a list of files or modules, got {listed!r}")
    return listed


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _named_by(paths: Sequence[str | Path], overrides: Sequence[str], stored: Sequence[str | Path], key: str) -> str:
    """The last of the ``stored`` layers that gives ``key``; nothing when the user's own files or settings give it later."""
    if not stored:
        return ""
    found = ""
    layers = [(path, _read_file(Path(path), ())) for path in paths]
    layers += [(item, parse_override(item, RunConfig, {})) for item in overrides]
    for origin, layer in layers:
        if _value_at(layer, key) is not None:
            found = str(origin) if origin in stored else ""
    return found


def _value_at(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _from_here(item: str, origin: str) -> str:
    """A plug-in as it is found from the working folder: a run's config.yaml lies elsewhere than the file that named it."""
    return os.path.relpath(origin) if is_file(item) and not Path(item).is_file() else item


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
    try:
        path = path.resolve()
        if path in chain:
            raise ConfigError(f"{path}: 'extends' goes round in a circle: {' -> '.join(str(p) for p in chain)}")
        if not path.is_file():
            raise ConfigError(f"{path}: no such config file")
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, RuntimeError, ValueError) as error:  # not allowed, a circle of links, a name too long, not UTF-8
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(why).split())}") from error
    try:
        loaded = read_yaml(content)
    except ValueError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a block of keys at the top")
    parents = _as_list(loaded.pop("extends", None) or [])
    if not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends: expected a file or a list of files, got {as_read(parents)!r}")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = _over(merged, _read_file(path.parent / parent, (*chain, path)), str(parent))
    # A section without keys says nothing; it does not take back what files before say.
    own = with_new_keys({str(k): v for k, v in loaded.items() if not (k in SECTIONS and v is None)})
    _check_alternatives(own, str(path))
    return _over(merged, own, str(path))


def _over(merged: Mapping[str, Any], layer: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The ``layer`` called ``where`` over those before."""
    return _one_of_two(merged, layer, merge(merged, layer), where)


def _given(section: str, keys: Sequence[str], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Those of two ``keys`` that a layer sets in a ``section`` to more than 0 (or to a ``${...}``)."""
    block = _block(layer, [section])
    values = {key: as_read(block.get(key)) for key in keys}
    return {key: value for key, value in values.items() if value not in (None, "", MISSING, "0", 0)}


def _check_alternatives(layer: Mapping[str, Any], where: str) -> None:
    """Refuse a layer that gives both of `ALTERNATIVES`."""
    for section, *keys in ALTERNATIVES:
        given = _given(section, keys, layer)
        # The config.yaml that a run writes holds every key, and as steps the updates that its epochs came to.
        is_record = len(_block(layer, [section])) > len(fields(SECTIONS[section])) // 2
        if len(given) == 2 and not is_record:
            one, other = keys
            raise ConfigError(
                f"{section}.{other}: {given[other]} is given beside {section}.{one}={given[one]} ({where}); give one of the two"
            )


def _one_of_two(before: Mapping[str, Any], layer: Mapping[str, Any], merged: dict[str, Any], where: str) -> dict[str, Any]:
    """``merged`` with one of each two of `ALTERNATIVES`: what ``layer`` gives replaces the other one of the layers before."""
    for section, *keys in ALTERNATIVES:
        given, old = _given(section, keys, layer), _given(section, keys, before)
        if len(given) != 1:
            continue
        ((key, value),) = given.items()
        (other,) = set(keys) - {key}
        if other in old:
            log.info("config: %s.%s=%s (%s) replaces %s.%s=%s", section, key, value, where, section, other, old[other])
            merged = {**merged, section: {**merged[section], other: 0}}
    return merged
