"""Settings that may change between two turns of a chat: how answers are decoded, never what was trained."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from ttt.config.load import build_config, merge, to_plain
from ttt.config.schema import EvalSection, RunConfig
from ttt.config.written import as_declared, parse_override
from ttt.errors import ConfigError, suggest
from ttt.eval.inputs import with_canvas

# Keys of `eval` that say what is read and where results go; all others decide an answer.
ELSEWHERE = {"examples", "checkpoint", "out", "normalizer", "batch_size", "limit", "bootstrap", "samples", "note"}
DECODING = tuple(f.name for f in dataclasses.fields(EvalSection) if f.name not in ELSEWHERE)
SEED = "seed"


def changed(config: RunConfig, text: str) -> RunConfig:
    """The configuration with one setting changed: ``temperature 0.7``, ``sampler.diffusion_steps=20``, ``sampler threshold``.

    Names are those of the recipe's section ``eval``, with or without ``eval.``, and ``seed``.  Raises `ConfigError` for
    anything else and for values that the setting does not allow.
    """
    key, value = _split(text)
    name = key.removeprefix("eval.").removeprefix("run.")
    first = name.partition(".")[0]
    known = [*DECODING, SEED]
    if first not in known:
        near = "" if "." in name else suggest(first, known)
        raise ConfigError(f"{key}: not a setting of how answers are decoded.{near} Settings: {', '.join(known)}")
    if name == "sampler.steps_per_block":
        name, value = _steps(config.eval.sampler, value)
    path = f"run.{name}" if first == SEED else f"eval.{name}"
    given = as_declared(RunConfig, parse_override(f"{path}={value}", RunConfig, to_plain(config)))
    if name == "sampler":
        given["eval"] = with_canvas(config, given["eval"])
    return build_config(merge(to_plain(config), given))


def _steps(sampler: Any, value: str) -> tuple[str, str]:
    """Steps a block as the total that the block-wise sampler's field ``diffusion_steps`` holds."""
    names = {f.name for f in dataclasses.fields(sampler)}
    if "steps_per_block" in names or not {"diffusion_steps", "gen_length", "block_length"} <= names:
        return "sampler.steps_per_block", value
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"sampler.steps_per_block: expected a number >= 1, got {value!r}")
    return "sampler.diffusion_steps", str(int(value) * (sampler.gen_length // sampler.block_length))


def _split(text: str) -> tuple[str, str]:
    words = text.strip()
    at = min((i for i in (words.find("="), words.find(" ")) if i >= 0), default=-1)
    if at <= 0 or not words[at + 1 :].strip():
        raise ConfigError(
            "a setting looks like /set temperature 0.7 or /set sampler.diffusion_steps 20; /show lists them"
        )
    return words[:at].strip(), words[at + 1 :].strip().removeprefix("=").strip()


def shown(config: RunConfig) -> str:
    """All settings, one a line, as /set takes them."""
    plain = to_plain(config.eval)
    lines: list[tuple[str, str]] = []
    for name in DECODING:
        value = plain[name]
        if isinstance(value, Mapping):
            lines.append((name, value["name"]))
            lines += [(f"  {name}.{k}", _word(v)) for k, v in value.items() if k != "name"]
        else:
            lines.append((name, _word(value)))
    lines.append((SEED, str(config.run.seed)))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines)


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        fields = ", ".join(f"{k}: {_word(v)}" for k, v in value.items())
        return f"{{{fields}}}"
    return (
        shlex.quote(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    )
