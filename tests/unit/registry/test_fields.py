"""Choices and ranges declared at fields: what they accept, and what is said of other values."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from ttt.errors import ConfigError
from ttt.registry import PositiveInt, PositiveShare, Range, Registry, Share, checked
from ttt.registry.core import FAMILIES, build_dataclass
from ttt.registry.fields import bounds, choices, fault, plain_type

ANYTHING = Annotated[float, Range(gt=0, inf=True)]


@pytest.mark.parametrize(
    "declared, value, message",
    [
        (Literal["cut", "drop"], "cut", None),
        (Literal["cut", "drop"], "drpo", ("", "no 'drpo'. Did you mean 'drop'? Choices: cut, drop")),
        (Literal["", "on"], "off", ("", "no 'off'. Choices: '', on")),
        (Literal[0, 1], 1, None),
        (Literal[0, 1], True, ("", "no True. Choices: 0, 1")),
        (Share, 0, None),
        (Share, 1.0, None),
        (Share, 1.01, ("", "must be >= 0 and <= 1, got 1.01")),
        (PositiveShare, 0.0, ("", "must be > 0 and <= 1, got 0.0")),
        (PositiveInt, 0, ("", "must be >= 1, got 0")),
        (Annotated[float, Range(lt=3)], 3.0, ("", "must be < 3, got 3.0")),
        (float, float("nan"), ("", "must be a finite number, got nan")),
        (float, float("-inf"), ("", "must be a finite number, got -inf")),
        (ANYTHING, float("inf"), None),
        (ANYTHING, float("-inf"), ("", "must be a finite number, got -inf")),
        (ANYTHING, float("nan"), ("", "must be a finite number, got nan")),
        (list[Share], [0.5, 2.0], ("[1]", "must be >= 0 and <= 1, got 2.0")),
        (tuple[Share, ...], (0.5, 0.5, -1.0), ("[2]", "must be >= 0 and <= 1, got -1.0")),
        (tuple[Share, PositiveInt], (0.5, 0), ("[1]", "must be >= 1, got 0")),
        (dict[str, Share], {"a": 2.0}, (".a", "must be >= 0 and <= 1, got 2.0")),
        (PositiveInt | None, None, None),
        (PositiveInt | None, 0, ("", "must be >= 1, got 0")),
        (Any, float("nan"), None),
        (str, "x", None),
    ],
)
def test_faults(declared, value, message):
    assert fault(declared, value) == message


@pytest.mark.parametrize(
    "declared, plain",
    [
        (Literal["a"], str), (Literal[1, 2], int), (Literal[1, "a"], Any), (Share, float), (list[Literal["a"]], list[str]),
        (tuple[Share, ...], tuple[float, ...]), (dict[str, Share], dict[str, float]), (str, str), (list, list), (Any, Any),
    ],
)  # fmt: skip
def test_plain_types(declared, plain):
    assert plain_type(declared) == plain


def test_descriptions():
    assert choices(list[Literal["a", "b"]]) == ("a", "b") and choices(Share) == ()
    assert str(bounds(tuple[Share, Share])) == ">= 0 and <= 1" and bounds(Literal[1]) is None and bounds(str) is None


class Shape: ...


@pytest.fixture
def shapes():
    registry = Registry("shape_test", "shape", "unused.Shape", Shape)
    registry._loaded = True

    @registry.register("disc")
    @dataclass(frozen=True)
    class Disc(Shape):
        radius: PositiveInt
        fill: Literal["none", "plain"] = "none"
        tones: list[Share] = field(default_factory=list)

        def __post_init__(self) -> None:
            assert self.radius, "checked before"

    @registry.register("ring")
    @dataclass(frozen=True)
    class Ring(Disc):
        inner: Share = 0.5

    yield registry
    del FAMILIES["shape_test"]


@pytest.mark.parametrize(
    "node, line",
    [
        ({"name": "disc", "radius": 0}, "s.radius: must be >= 1, got 0"),
        ({"name": "disc", "radius": 1, "fill": "plane"}, "s.fill: no 'plane'. Did you mean 'plain'? Choices: none, plain"),
        ({"name": "disc", "radius": 1, "tones": [2]}, "s.tones[0]: must be >= 0 and <= 1, got 2.0"),
        ({"name": "ring", "radius": -1}, "s.radius: must be >= 1, got -1"),
        ({"name": "ring", "radius": 1, "inner": 3}, "s.inner: must be >= 0 and <= 1, got 3.0"),
        ({"name": "disc", "radius": 1, "fill": False}, "s.fill: YAML reads no, off and false as a truth value; put the choice "
         "in quotes. Choices: none, plain"),
    ],
)  # fmt: skip
def test_plug_ins_are_checked_when_built(shapes, node, line):
    with pytest.raises(ConfigError) as error:
        shapes.build(node, "s")
    assert str(error.value) == line


@pytest.mark.parametrize(
    "name, args, values, line",
    [
        ("disc", (0,), {}, "radius: must be >= 1, got 0"),
        ("disc", (1, "plane"), {}, "fill: no 'plane'. Did you mean 'plain'"),
        ("ring", (), {"radius": 1, "inner": 2}, "inner: must be >= 0 and <= 1, got 2"),
    ],
)
def test_plug_ins_made_in_python_are_checked(shapes, name, args, values, line):
    with pytest.raises(ValueError, match=f"^{line}") as error:
        shapes.get(name)(*args, **values)
    assert isinstance(error.value, ConfigError)


def test_subclasses_are_checked_without_being_registered(shapes):
    @dataclass(frozen=True)
    class Own(shapes.get("disc")):
        more: Share = 0.5

    with pytest.raises(ValueError, match="^radius: must be >= 1, got 0"):
        Own(0)
    with pytest.raises(ValueError, match="^more: must be >= 0 and <= 1, got 2"):
        Own(1, more=2)


def test_a_missing_value_may_stay_missing_whatever_its_range():
    @checked
    @dataclass(frozen=True)
    class Needs:
        steps: PositiveInt = "???"  # type: ignore[assignment]

    assert build_dataclass(Needs, {}, "x", allow_missing=True).steps == "???"
    with pytest.raises(ConfigError, match=r"^x\.steps: missing mandatory value"):
        build_dataclass(Needs, {"steps": "???"}, "x")


def test_built_in_defaults_keep_their_declarations():
    from ttt.registry import families
    from ttt.registry.core import Registry
    from ttt.registry.fields import field_types

    for registry in vars(families).values():
        if not isinstance(registry, Registry):
            continue
        for entry in registry.entries():
            for name, declared in field_types(entry.cls).items():
                default = entry.cls.__dataclass_fields__[name].default
                assert isinstance(default, str) or fault(declared, default) is None, f"{entry.name}.{name}"
