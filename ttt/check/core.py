"""Properties that every plug-in of a family owes, each with a name; what breaks one is shown, not only counted.

A property is a function of the plug-in that returns when it holds, raises `Broken` with a counter-example when it does
not, and `NotSaid` when the plug-in makes no promise it could be held to.  Any other exception is a broken property too.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ttt.errors import RegistryError, suggest
from ttt.registry.core import FAMILIES

ALIASES = {"schedule": "noise"}
MODULES = {
    "mask": "ttt.check.masks", "noise": "ttt.check.noise", "weighting": "ttt.check.noise", "strategy": "ttt.check.strategies",
    "objective": "ttt.check.objectives", "sampler": "ttt.check.samplers", "remask": "ttt.check.samplers",
    "length": "ttt.check.samplers", "codec": "ttt.check.codecs", "task": "ttt.check.scoring", "metric": "ttt.check.scoring",
    "converter": "ttt.check.converters", "constraint": "ttt.check.constraints", "rate": "ttt.check.noise", "arch": "ttt.check.arch",
    "pattern": "ttt.check.patterns",
}  # fmt: skip


class Broken(Exception):
    """A counter-example: one line, and a drawing where one helps."""

    def __init__(self, counter: str, drawing: str = "") -> None:
        super().__init__(counter)
        self.counter, self.drawing = counter, drawing


class NotSaid(Exception):
    """The property does not apply to this plug-in; the message says why."""


@dataclass(frozen=True)
class Property:
    """``says`` is the promise in words."""

    name: str
    says: str
    run: Callable[[Any], None]


@dataclass(frozen=True)
class Result:
    """Outcome of one property: ``ok``, ``FAILED`` or ``-`` (does not apply); the counter-example or the reason."""

    name: str
    says: str
    outcome: str
    counter: str = ""
    drawing: str = ""

    @property
    def failed(self) -> bool:
        """Was it broken?"""
        return self.outcome == "FAILED"


PROPERTIES: dict[str, list[Property]] = {}
PREPARE: dict[str, Callable[[Any], Any]] = {}


def prop(family: str, name: str, says: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Decorator: adds a property to a family, in the order of the file."""

    def add(run: Callable[[Any], None]) -> Callable[[Any], None]:
        PROPERTIES.setdefault(family, []).append(Property(name, says, run))
        return run

    return add


def family_key(name: str) -> str:
    """The registry's key of a family that can be checked.  Raises `RegistryError` naming those that can."""
    key = ALIASES.get(name, name)
    if key not in MODULES:
        importlib.import_module("ttt.registry.families")
        known = sorted({*MODULES, *ALIASES})
        reason = f"family {name!r} has no checks" if name in FAMILIES else f"no plug-in family named {name!r}"
        raise RegistryError(f"{reason}.{suggest(name, known)} Checked: {', '.join(known)}")
    return key


def properties(family: str) -> list[Property]:
    """All properties of a family."""
    key = family_key(family)
    importlib.import_module(MODULES[key])
    return PROPERTIES[key]


def check(family: str, plugin: Any) -> list[Result]:
    """Run every property of ``family`` on a built plug-in.

    What has to be done once before (a codec's weights) is done first; its `TttError` is the caller's to see.
    """
    some = properties(family)
    prepare = PREPARE.get(family_key(family))
    if prepare is not None:
        plugin = prepare(plugin)
    return [_run(p, plugin) for p in some]


def _run(p: Property, plugin: Any) -> Result:
    try:
        p.run(plugin)
    except Broken as broken:
        return Result(p.name, p.says, "FAILED", broken.counter, broken.drawing)
    except NotSaid as reason:
        return Result(p.name, p.says, "-", str(reason))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        first = (str(error).splitlines() or [""])[0]
        return Result(p.name, p.says, "FAILED", f"raises {type(error).__name__}: {first}{place}")
    return Result(p.name, p.says, "ok")


def need(holds: Any, counter: str) -> None:
    """Raise `Broken` unless ``holds``."""
    if not bool(holds):
        raise Broken(counter)
