"""A plug-in is one decorated dataclass; its fields are its configuration.

>>> from dataclasses import dataclass
>>> class Noise: ...
>>> NOISE = Registry("demo", "demo noise", "demo.Noise", Noise)
>>> @NOISE.register("linear")
... @dataclass(frozen=True)
... class Linear(Noise):
...     eps: float = 0.001
>>> NOISE.build({"name": "linear", "eps": "0.5"}, "noise").eps
0.5
>>> NOISE.build("liner", "noise")
Traceback (most recent call last):
ttt.errors.UnknownNameError: noise: no demo noise named 'liner'. Did you mean 'linear'? Registered: linear
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Any, TypeVar

from ttt.errors import ConfigError, DuplicateNameError, RegistryError, TttError, UnknownNameError, suggest
from ttt.registry.fields import checked, choices, fault, field_types, has_type, plain_type, shortened, with_article

log = logging.getLogger(__name__)
T = TypeVar("T", bound=type)
FAMILIES: dict[str, Registry] = {}


@dataclass(frozen=True)
class Entry:
    """One registered plug-in: its class and where it was written."""

    name: str
    cls: type
    where: str

    @property
    def doc(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n", 1)[0]


class Registry:
    """All plug-ins of one family.

    ``key`` is the short name used in configs' family marks and by ``ttt list``; ``title`` is used in messages;
    ``base`` is ``"module.Class"`` (or the class): every plug-in must derive from it; ``builtin`` modules are imported on
    the first look-up, so that listing one family imports only that family.
    """

    def __init__(self, key: str, title: str, base: str, base_class: type | None = None, builtin: Sequence[str] = ()):
        self.key, self.title, self._base_path, self._base = key, title, base, base_class
        self._builtin = tuple(builtin)
        self._entries: dict[str, Entry] = {}
        self._elsewhere: dict[str, str] = {}
        self._formerly: dict[str, str] = {}
        self._loaded = False
        FAMILIES[key] = self

    @property
    def base(self) -> type:
        """The abstract class every plug-in of this family derives from."""
        if self._base is None:
            module, _, name = self._base_path.rpartition(".")
            self._base = getattr(importlib.import_module(module), name)
        return self._base

    def register(self, name: str, elsewhere: Sequence[str] = (), formerly: Sequence[str] = ()):
        """Class decorator: ``@NOISE.register("cosine")`` above ``@dataclass(frozen=True)``.

        ``formerly``: names it had before; they still work, with a warning.  ``elsewhere``: what other programs call
        it.  Such a name is answered with the right one, not taken: two names of one
        plug-in would make layers of a configuration look as if they named two (`ttt.config.load.merge`).
        """

        def add(cls: T) -> T:
            where = _where(cls)
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise RegistryError(f"{where}: {self.title} {name!r} must derive from {self.base.__name__}")
            if not is_dataclass(cls):
                raise RegistryError(
                    f"{where}: {self.title} {name!r} must be a dataclass (put @dataclass(frozen=True) below the register line)"
                )
            known = self._entries.get(name)
            if known is not None and known.where != where:
                raise DuplicateNameError(
                    f"{self.title} {name!r} is registered twice:  first {known.where}  second {where}"
                )
            missing = sorted(getattr(cls, "__abstractmethods__", ()))
            if missing:
                raise RegistryError(f"{where}: {self.title} {name!r} does not implement {', '.join(missing)}")
            self._entries[name] = Entry(name, cls, where)
            self._elsewhere.update(dict.fromkeys(elsewhere, name))
            self._formerly.update(dict.fromkeys(formerly, name))
            cls.registered_name = name  # type: ignore[attr-defined]
            return checked(cls)

        return add

    def load(self) -> None:
        """Import the built-in modules of this family and everything installed under ``ttt.plugins``; once."""
        if self._loaded:
            return
        for module in self._builtin:
            importlib.import_module(module)
        self._loaded = True  # only now: a module that failed to import must fail again, not look absent
        from ttt.registry.plugins import load_installed

        load_installed()

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self.load()
        return sorted(self._entries)

    def entries(self) -> list[Entry]:
        """All plug-ins, by name."""
        return [self._entries[name] for name in self.names()]

    def find(self, name: str) -> type | None:
        """The class registered under ``name``, its present or former one; None where there is none."""
        self.load()
        entry = self._entries.get(self._formerly.get(name, name), self._entries.get(name))
        return None if entry is None else entry.cls

    def get(self, name: str, at: str = "") -> type:
        """The class registered under ``name``; ``at`` is the configuration key named in the error."""
        self.load()
        place = f"{at}: " if at else ""
        if name not in self._entries and name in self._formerly:
            log.warning("%s%s %r is now called %r; the old name still works", place, self.title, name, self._formerly[name])
            name = self._formerly[name]
        if name not in self._entries:
            known = self._elsewhere.get(name)
            hint = f" Here it is called {known!r}." if known else suggest(name, self._entries)
            raise UnknownNameError(
                f"{place}no {self.title} named {name!r}.{hint} Registered: {', '.join(sorted(self._entries)) or 'none'}"
            )
        return self._entries[name].cls

    def build(self, node: Any, at: str) -> Any:
        """Build the component described by ``node`` (a name, or ``{name: ..., field: ...}``); ``at`` is its key path."""
        if isinstance(node, self.base):
            return node
        if isinstance(node, str):
            node = {"name": node}
        if not isinstance(node, Mapping):
            raise ConfigError(f"{at}: expected a {self.title} (a name or a block with 'name'), got {shortened(node)}")
        values = dict(node)
        if "name" not in values:
            raise ConfigError(f"{at}: a {self.title} needs 'name'. Registered: {', '.join(self.names())}")
        return build_dataclass(self.get(str(values.pop("name")), at), values, at)


def name_of(plugin: Any) -> str:
    """The name under which a plug-in (an object or its class) is registered; its class's name where it has none."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return getattr(cls, "registered_name", cls.__name__)


def _where(cls: type) -> str:
    try:
        path = inspect.getsourcefile(cls) or "?"
        return f"{path}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', cls)}"


def component(family: str, default: Any = MISSING) -> Any:
    """A dataclass field that holds one plug-in of ``family``; ``default`` is a name or block, None allows absence."""
    return _marked(family, False, default)


def components(family: str, default: Sequence[Any] = ()) -> Any:
    """A dataclass field that holds a list of plug-ins of ``family``, in order."""
    return _marked(family, True, tuple(default))


def nested(section: type) -> Any:
    """A dataclass field that holds a block of plain keys of its own: the dataclass ``section``, all fields defaulted."""
    return field(default_factory=section, metadata={"section": section})


def _marked(family: str, many: bool, default: Any) -> Any:
    metadata = {"family": family, "many": many}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def family(key: str) -> Registry:
    """The registry called ``key`` (see `ttt.registry.families`)."""
    importlib.import_module("ttt.registry.families")
    if key not in FAMILIES:
        raise UnknownNameError(
            f"no plug-in family named {key!r}.{suggest(key, FAMILIES)} Families: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[key]


def build_dataclass(cls: type, values: Mapping[str, Any], at: str, allow_missing: bool = False) -> Any:
    """Build ``cls`` from plain values: components and nested sections first, plain fields checked and converted.

    Errors name the full key path.  A missing value (``???``) raises; with ``allow_missing`` it stays ``???``.
    """
    values = check_values(cls, values, at)
    built: dict[str, Any] = {}
    for f in fields(cls):
        if not f.init:
            continue
        key = f"{at}.{f.name}" if at else f.name
        value = values.get(f.name, _default(f))
        missing = value is MISSING or isinstance(value, str) and value == "???"
        if "section" in f.metadata:
            section = f.metadata["section"]
            value = values.get(f.name) or {}
            built[f.name] = value if isinstance(value, section) else build_dataclass(section, value, key, allow_missing)
        elif "family" not in f.metadata:
            if missing and not allow_missing:
                raise ConfigError(f"{key}: missing mandatory value; set it in the config or give {key}=...")
            built[f.name] = value
        elif value is None:
            if _default(f) is not None:
                plugins = family(f.metadata["family"])
                raise ConfigError(f"{key}: must not be null; name one: {', '.join(plugins.names())}")
            built[f.name] = None
        elif f.metadata["many"]:
            plugins = family(f.metadata["family"])
            if not isinstance(value, (list, tuple)):
                raise ConfigError(f"{key}: expected a list of {plugins.title} blocks, got {shortened(value)}")
            built[f.name] = tuple(plugins.build(v, f"{key}[{i}]") for i, v in enumerate(value))
        else:
            plugins = family(f.metadata["family"])
            if missing:
                raise ConfigError(f"{key}: missing mandatory value; name a {plugins.title}: {', '.join(plugins.names())}")
            built[f.name] = plugins.build(value, key)
    try:
        return cls(**built)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{at}: {_one_line(error)}" if at else _one_line(error)) from error
    except TttError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in's own __post_init__
        where = f"{at}: " if at else ""
        raise ConfigError(f"{where}{name_of(cls)!r} cannot be made: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def check_values(cls: type, values: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Values of ``cls``: unknown keys refused, plain fields converted to their types and held against their choices and ranges.

    Components and nested sections are left to `build_dataclass`.
    """
    known = {f.name: f for f in fields(cls) if f.init}
    values = with_new_names(cls, values, at)
    out: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{at}.{name}" if at else str(name)
        if name not in known:
            mend = suggest(str(name), known)
            if value is None and str(name).partition(":")[0] in (*known, "name"):  # how YAML reads {name:encodec}
                mend = " Write a space behind the colon."
            raise ConfigError(f"{key}: no such key in {name_of(cls)!r}.{mend} Keys: {', '.join(known) or 'none'}")
        f = known[name]
        if "section" in f.metadata:
            if not isinstance(value, (Mapping, f.metadata["section"])) and value is not None:
                raise ConfigError(f"{key}: expected a block of keys, got {shortened(value)}")
            out[name] = value
        elif "family" in f.metadata:
            default = _default(f)
            if isinstance(value, Mapping) and "name" not in value and not f.metadata["many"]:
                if isinstance(default, str):  # fields given for the default plug-in without repeating its name
                    value = {"name": default, **value}
                elif isinstance(default, Mapping):
                    value = {**default, **value}
            out[name] = value
        else:
            out[name] = _plain_value(cls, f, value, key)
    return out


def _plain_value(cls: type, f: Field, value: Any, key: str) -> Any:
    """``value`` converted to the type of ``f`` by OmegaConf, and held against its choices and range."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    declared = field_types(cls)[f.name]
    if isinstance(value, bool) and (texts := choices(declared)) and all(isinstance(c, str) for c in texts):
        words = "yes, on and true" if value else "no, off and false"
        raise ConfigError(
            f"{key}: YAML reads {words} as a truth value; put the choice in quotes. Choices: {', '.join(texts)}"
        )
    try:
        schema = OmegaConf.structured(_leaf_schema(cls, f))
        merged = OmegaConf.merge(schema, OmegaConf.create({f.name: value}))
        converted = OmegaConf.to_container(merged, throw_on_missing=False)[f.name]  # type: ignore[index,call-overload]
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{key}: must be {with_article(plain_type(declared))}, got {shortened(value)}") from error
    if converted != "???" and not has_type(plain_type(declared), converted):
        raise ConfigError(f"{key}: must be {with_article(plain_type(declared))}, got {shortened(value)}")
    wrong = None if converted == "???" else fault(declared, converted)
    if wrong is not None:
        raise ConfigError(f"{key}{wrong[0]}: {wrong[1]}")
    return converted


def with_new_names(cls: type, values: Mapping[str, Any], at: str) -> dict[str, Any]:
    """``values`` with fields that were renamed under their new names; each old name is logged as a warning.

    A class lists its renamed fields as ``renamed_fields: ClassVar = {"old": "new"}``.  Raises `ConfigError` when both are given.
    """
    out = dict(values)
    for old, new in getattr(cls, "renamed_fields", {}).items():
        if old not in out:
            continue
        place = f"{at}." if at else ""
        if new in out:
            raise ConfigError(f"{place}{old}: is the old name of {place}{new}, which is given too; remove {old}")
        log.warning("config: %s%s is now called %s%s; the old name still works", place, old, place, new)
        out[new] = out.pop(old)
    return out


_SCHEMAS: dict[tuple[type, str], type] = {}


def _leaf_schema(cls: type, f: Field) -> type:
    """A one-field dataclass for OmegaConf: frozen classes would come out read-only, components would be refused."""
    if (cls, f.name) not in _SCHEMAS:
        default = field(default_factory=f.default_factory) if f.default_factory is not MISSING else f.default  # type: ignore[misc]
        default = "???" if default is MISSING else default
        typed = (f.name, plain_type(field_types(cls)[f.name]), default)
        _SCHEMAS[(cls, f.name)] = make_dataclass(f"{cls.__name__}_{f.name}", [typed])
    return _SCHEMAS[(cls, f.name)]


def _default(f: Field) -> Any:
    if f.default is not MISSING:
        return f.default
    if f.default_factory is not MISSING:
        return f.default_factory()
    return "???"
