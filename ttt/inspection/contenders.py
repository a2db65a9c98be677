"""The samplers that ``ttt inspect samplers`` compares: from what is written on the command line to configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.api import decode_settings
from ttt.config.load import build_config, merge, to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, TttError
from ttt.eval.inputs import with_canvas
from ttt.io.yaml_input import parse_yaml, read_yaml
from ttt.registry.core import name_of

OWN = "own"  # the run's own sampler


def read_contenders(config: RunConfig, listed: Sequence[str]) -> dict[str, RunConfig]:
    """Label -> configuration with that sampler; every one is built and checked.

    Each is a YAML file, or YAML itself: a sampler (``threshold``, ``{name: threshold, threshold: 0.7}``, ``own``), a list
    of samplers, or ``{label: settings}`` where settings are a sampler or keys of the section ``eval``.
    """
    contenders: dict[str, RunConfig] = {}
    for given in listed:
        for label, section, is_given in _sections(given):
            if label in contenders and is_given:
                raise ConfigError(f"--samplers: {label!r} is there twice; give another label")
            twins = sum(known == label or known.startswith(f"{label} ") for known in contenders)
            label = f"{label} {twins + 1}" if twins and not is_given else label
            try:
                contenders[label] = build_config(merge(to_plain(config), {"eval": with_canvas(config, section)}))
                decode_settings(contenders[label])
            except TttError as error:
                raise type(error)(f"--samplers, {label!r}: {error}") from error
    return contenders


def _sections(given: str) -> list[tuple[str, dict[str, Any], bool]]:
    """(label, keys over the section ``eval``, was the label given?) of one ``--samplers``."""
    path = Path(given)
    is_file = given.endswith((".yaml", ".yml"))
    if is_file and not path.is_file():
        raise ConfigError(f"--samplers: {path}: no such file")
    where = f"--samplers: {path}" if is_file else "--samplers"
    mend = "name a sampler, or a block with 'name'"
    node = read_yaml(path, mend, None, ConfigError) if is_file else parse_yaml(given, where, mend, error=ConfigError)
    if isinstance(node, Mapping) and "name" not in node:
        return [(str(label), _section(value, where), True) for label, value in node.items()]
    items = node if isinstance(node, list) else [node]
    return [(str(i.get("name")) if isinstance(i, Mapping) else str(i), _section(i, where), False) for i in items]


def _section(node: Any, where: str) -> dict[str, Any]:
    """A sampler, or keys of the section ``eval``, as keys of that section."""
    if node == OWN:
        return {}
    if isinstance(node, str) or isinstance(node, Mapping) and "name" in node:
        return {"sampler": node}
    if isinstance(node, Mapping):
        return dict(node)
    raise ConfigError(f"{where}: expected a sampler (a name, or a block with 'name'), got {node!r}")


def one_line(config: RunConfig) -> str:
    """A sampler in words: its name, the fields that are not the default, and the temperature of text if that is drawn."""
    sampler = config.eval.sampler
    default = {f.name: to_plain(f.default) for f in dataclasses.fields(sampler)}
    changed = {k: v for k, v in to_plain(sampler).items() if k != "name" and v != default.get(k)}
    # A component without fields of its own is its name.
    short = {k: v["name"] if isinstance(v, Mapping) and set(v) == {"name"} else v for k, v in changed.items()}
    fields = ", ".join(f"{k} {v}" for k, v in short.items() if v != default.get(k))
    text = f"; text at temperature {config.eval.temperature:g}" if config.eval.temperature else ""
    return f"{name_of(sampler)}: {fields or 'defaults'}{text}"
