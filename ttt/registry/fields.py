"""What a configuration field accepts, declared in its type.

    engine: Literal["local", "deepspeed"] = "local"          # closed choices
    lr: NonNegativeFloat = 2.0e-5                            # a range
    top_p: Annotated[float, Range(gt=0, le=1)] = 1.0

`ttt.registry.core` checks the declarations when a configuration is loaded and when a plug-in is made in Python.  Numbers are
finite unless a `Range` allows infinity.

>>> fault(Literal["local", "deepspeed"], "deepsped")
('', "no 'deepsped'. Did you mean 'deepspeed'? Choices: local, deepspeed")
>>> fault(Annotated[float, Range(gt=0, le=1)], 1.5)
('', 'must be > 0 and <= 1, got 1.5')
>>> fault(list[Share], [0.5, float("nan")])
('[1]', 'must be a finite number, got nan')
>>> fault(PositiveInt, 3)
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

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Range:
    """Bounds of a number: ``ge`` (>=), ``gt`` (>), ``le`` (<=), ``lt`` (<); ``inf`` allows infinity."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    inf: bool = False

    def holds(self, value: float) -> bool:
        """Is ``value`` within the bounds?"""
        return (
            (self.ge is None or value >= self.ge) and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le) and (self.lt is None or value < self.lt)
        )  # fmt: skip

    def __str__(self) -> str:
        bounds = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)


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
    """The values of a `Literal`, or of the `Literal` of a list's elements; else nothing.

    >>> choices(Literal["a", "b"]), choices(list[Literal["a"]]), choices(str)
    (('a', 'b'), ('a',), ())
    """
    if typing.get_origin(declared) is Literal:
        return typing.get_args(declared)
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
            if math.isfinite(value) and not limits.holds(value):
                return "", f"must be {limits}, got {value}"
        return fault(declared.__origin__, value)
    if origin is Literal:
        if any(value == known and type(value) is type(known) for known in parts):
            return None
        shown = ", ".join(str(known) or "''" for known in parts)
        return "", f"no {value!r}.{suggest(str(value), map(str, parts))} Choices: {shown}"
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
