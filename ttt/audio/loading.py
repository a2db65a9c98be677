"""Weights of codecs, judges and speaker encoders, brought once to the device that the configuration names."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Literal, TypeVar

from ttt.errors import ConfigError
from ttt.interfaces import Codec, Judge, SpeakerEncoder
from ttt.io.devices import pick_device
from ttt.registry import name_of

if TYPE_CHECKING:
    from ttt.config.schema import RunConfig

P = TypeVar("P", Codec, Judge, SpeakerEncoder)
Part = Literal["codec", "judge", "speaker"]


def load_part(config: RunConfig, part: Part):
    """The run's codec, judge or speaker encoder, ready; None where the configuration has none."""
    plugin = getattr(config, part)
    return None if plugin is None else load_plugin(plugin, part, config.run.device)


def load_plugin(plugin: P, part: Part, run_device: str = "cpu") -> P:
    """``plugin.load`` with the device and type of its own fields; without a device of its own it is ``run_device``.

    ``part``: the section of the configuration, for messages.  A ``load`` that takes no type, or neither, is called with what it
    takes.  Raises `ConfigError` for a GPU that is not there, and for a type other than float32 that ``load`` does not take.
    """
    device = pick_device(plugin.device, f"{part}.device") if plugin.device else pick_device(run_device)
    takes = inspect.signature(plugin.load).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if plugin.dtype != "float32" and not (anything or "dtype" in takes):
        refuse_dtype(plugin, part, plugin.dtype)
    given = {"device": device, "dtype": plugin.dtype}
    return plugin.load(**{k: v for k, v in given.items() if anything or k in takes})


def half_precision(codec: Codec) -> dict[str, str]:
    """``{"dtype": ...}`` where codes were not computed in float32, for the settings that a stage of work keeps; else nothing."""
    return {} if codec.dtype == "float32" else {"dtype": codec.dtype}


def refuse_dtype(plugin: P, part: Part, dtype: str, takes: tuple[str, ...] = ("float32",)) -> None:
    """Raise `ConfigError` unless ``dtype`` is one of those that the plug-in ``takes``."""
    if dtype not in takes:
        raise ConfigError(f"{part}.dtype: {name_of(plugin)!r} cannot compute in {dtype}; choices: {', '.join(takes)}")
