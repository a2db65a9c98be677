"""What a configuration field accepts, declared in its type.

    engine: Literal["local", "deepspeed"] = "local"          # closed choices
    lr: NonNegativeFloat = 2.0e-5                            # a range
    top_p: Annotated[float, Range(gt=0, le=1)] = 1.0
    device: Annotated[str, Choices(("cpu", "cuda:N"), "cpu|cuda:[0-9]+")] = "cpu"  # choices that a Literal cannot list
    dir: FilledText = "???"                                  # any text but an empty one

`ttt.registry.core` checks the declarations when a configuration is loaded and when a plug-in is made in Python.  Numbers are
finite unless a `Range` allows infinity; text holds no NUL and can be written as UTF-8.

>>> fault(Literal["local", "deepspeed"], "deepsped")
('', "no 'deepsped'. Did you mean 'deepspeed'? Choices: local, deepspeed")
>>> fault(Annotated[float, Range(gt=0, le=1)], 1.5)
('', 'must be > 0 and <= 1, got 1.5')
>>> fault(list[Share], [0.5, float("nan")])
('[1]', 'must be a finite number, got nan')
>>> fault(PositiveInt, 3)
>>> fault(FilledText, " ")
('', 'must not be empty')
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from ttt.errors import FieldValueError, suggest
from ttt.interfaces import Choices

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Range:
    """Bounds of a number: ``ge`` (>=), ``gt`` (>), ``le`` (<=), ``lt`` (<); ``inf`` allows infinity.

    ``cap``: what no machine could do; named only to those who exceed it.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    inf: bool = False
    cap: float | None = None

    def holds(self, value: float) -> bool:
        """Is ``value`` within the bounds?"""
        return (
            (self.ge is None or value >= self.ge) and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le) and (self.lt is None or value < self.lt)
        )  # fmt: skip

    def __str__(self) -> str:
        bounds = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Filled:
    """A text that is more than blanks."""


FilledText = Annotated[str, Filled()]
PositiveInt = Annotated[int, Range(ge=1)]
NonNegativeInt = Annotated[int, Range(ge=0)]
PositiveFloat = Annotated[float, Range(gt=0)]
NonNegativeFloat = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]  # a share or a probability
PositiveShare = Annotated[float, Range(gt=0, le=1)]  # a share that is not 0
ShareBelow1 = Annotated[float, Range(ge=0, lt=1)]  # a share, a probability or a decay rate that is not 1


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Name -> declared type of every field of a dataclass, with `Literal` and `Range` in place."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls) if f.init}


def choices(declared: Any) -> tuple[Any, ...]:
    """The values of a `Literal` or `Choices`, or of those of a list's elements; else nothing.

    >>> choices(Literal["a", "b"]), choices(list[Literal["a"]]), choices(str)
    (('a', 'b'), ('a',), ())
    """
    if typing.get_origin(declared) is Literal:
        return typing.get_args(declared)
    if typing.get_origin(declared) is Annotated:
        listed = next((m.shown for m in declared.__metadata__ if isinstance(m, Choices)), ())
        return listed or choices(declared.__origin__)
    return next((c for part in typing.get_args(declared) if (c := choices(part))), ())


def bounds(declared: Any) -> Range | None:
    """The `Range` of a number, or of a list's elements; None without one."""
    if typing.get_origin(declared) is Annotated:
        return next((m for m in declared.__metadata__ if isinstance(m, Range)), None) or bounds(declared.__origin__)
    if typing.get_origin(declared) is Literal:
        return None
    return next((r for part in typing.get_args(declared) if (r := bounds(part)) is not None), None)


def plain_type(declared: Any) -> Any:
    """The type without choices and ranges: what OmegaConf converts to.

    >>> plain_type(Literal["a"]), plain_type(PositiveInt), plain_type(tuple[Share, Share])
    (<class 'str'>, <class 'int'>, tuple[float, float])
    """
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin is Annotated:
        return plain_type(declared.__origin__)
    if origin is Literal:
        kinds = {type(value) for value in parts}
        return kinds.pop() if len(kinds) == 1 else Any
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(plain_type(part) for part in parts)]  # noqa: UP007  (made of a tuple)
    if origin is None or not parts:
        return declared
    return origin[tuple(part if part is Ellipsis else plain_type(part) for part in parts)]


def fault(declared: Any, value: Any) -> tuple[str, str] | None:
    """What is wrong with ``value``: (the place within it, as ``[1]``; the message), or None.

    Types are not looked at: a value of another type than the declared one passes.
    """
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin is Annotated:
        limits = bounds(declared)
        if limits is not None and _is_number(value):
            if limits.inf and math.isinf(value) and limits.holds(value):
                return None
            if limits.cap is not None and math.isfinite(value) and value > limits.cap:
                return "", f"must be <= {limits.cap}, got {value}"
            if math.isfinite(value) and not limits.holds(value):
                return "", f"must be {limits}, got {value}"
        for mark in declared.__metadata__ if isinstance(value, str) else ():
            if isinstance(mark, Choices) and not mark.holds(value):
                return "", _no_choice(value, mark.shown)
            if isinstance(mark, Filled) and not value.strip():
                return "", "must not be empty"
        return fault(declared.__origin__, value)
    if origin is Literal:
        if any(value == known and type(value) is type(known) for known in parts):
            return None
        return "", _no_choice(value, parts)
    if declared is str and isinstance(value, str) and not _can_be_written(value):
        return "", f"{shortened(value)} holds characters that no file or file name can hold"
    if declared is float and _is_number(value) and not math.isfinite(value):
        return "", f"must be a finite number, got {value}"
    if origin in (typing.Union, types.UnionType):
        return None if value is None else fault(next(p for p in parts if p is not type(None)), value)
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        same = origin is list or Ellipsis in parts
        for i, item in enumerate(value):
            wrong = fault(parts[0] if same else parts[min(i, len(parts) - 1)], item)
            if wrong is not None:
                return f"[{i}]{wrong[0]}", wrong[1]
    if origin is dict and isinstance(value, Mapping):
        for key, item in value.items():
            wrong = fault(parts[1], item)
            if wrong is not None:
                return f".{key}{wrong[0]}", wrong[1]
    return None


def is_text(declared: Any) -> bool:
    """Does a field of this type take text, and nothing else but null?

    >>> is_text(str), is_text(Literal["a"] | None), is_text(int), is_text(Any), is_text(list[str])
    (True, True, False, False, False)
    """
    plain = plain_type(declared)
    parts = typing.get_args(plain) if typing.get_origin(plain) in (typing.Union, types.UnionType) else (plain,)
    return set(parts) - {type(None)} == {str}


def has_type(plain: Any, value: Any) -> bool:
    """Is ``value`` of the type ``plain`` (`plain_type`), its elements too?  A whole number is a number.

    >>> has_type(list[str], ["a", ["b"]]), has_type(tuple[float, float], (1, 0.5)), has_type(int, True), has_type(Any, [])
    (False, True, False, True)
    """
    origin, parts = typing.get_origin(plain), typing.get_args(plain)
    if plain is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(has_type(part, value) for part in parts)
    if plain is type(None):
        return value is None
    if origin in (list, tuple) or plain in (list, tuple):
        if not isinstance(value, (list, tuple)) or (origin is tuple and Ellipsis not in parts and len(parts) != len(value)):
            return False
        kinds = parts if origin is tuple and Ellipsis not in parts else [*parts[:1]] * len(value)
        return all(has_type(kind, item) for kind, item in zip(kinds, value))
    if origin is dict or plain is dict:
        return isinstance(value, Mapping) and all(has_type(parts[1], item) for item in value.values() if parts)
    if plain in (int, float):
        return _is_number(value) and (plain is float or isinstance(value, int))
    return isinstance(value, plain) if isinstance(plain, type) else True


_TYPES = {
    str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any value", list: "list",
    dict: "block of keys", type(None): "null",
}  # fmt: skip


def type_name(plain: Any) -> str:
    """A type in words.

    >>> type_name(list[str]), type_name(float), type_name(tuple[float, float]), type_name(str | None)
    ('list of text', 'number', '2 x number', 'text or null')
    """
    origin, parts = typing.get_origin(plain), typing.get_args(plain)
    if origin is list or (origin is tuple and Ellipsis in parts):
        return f"list of {type_name(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} x {type_name(parts[0])}"
    if origin is dict:
        return "block of keys"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in parts)
    return _TYPES.get(plain, str(plain))


def with_article(plain: Any) -> str:
    """A type in words, behind "must be"."""
    name = type_name(plain)
    return f"a {name}" if name.startswith(("whole", "number", "list", "block")) else name


def shortened(value: Any) -> str:
    """A value in a message: not longer than a line."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _no_choice(value: Any, known: tuple[Any, ...]) -> str:
    shown = ", ".join(str(choice) or "''" for choice in known)
    return f"no {shortened(value)}.{suggest(str(value), map(str, known))} Choices: {shown}"


def _can_be_written(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def checked(cls: T) -> T:
    """Class decorator above ``@dataclass``: objects refuse values that their fields do not accept, with `FieldValueError`.

    Plug-ins get it when they are registered; other dataclasses that are made in Python may have it too.  Subclasses inherit it.
    """
    if "checked_fields" in vars(cls):  # registered again
        return cls
    own_checks = getattr(cls, "__post_init__", None)

    def check(self, *args):
        for name, declared in field_types(type(self)).items():  # type: ignore[arg-type]
            wrong = fault(declared, getattr(self, name, None))
            if wrong is not None:
                raise FieldValueError(f"{name}{wrong[0]}: {wrong[1]}")
        if own_checks is not None:
            own_checks(self, *args)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    cls.checked_fields = True  # type: ignore[attr-defined]
    if own_checks is None:  # the __init__ that @dataclass wrote calls no __post_init__; those of subclasses will
        init = cls.__init__  # type: ignore[misc]

        @functools.wraps(init)
        def checked_init(self, *args, **kwargs):
            init(self, *args, **kwargs)
            check(self)

        cls.__init__ = checked_init  # type: ignore[misc]
    return cls
