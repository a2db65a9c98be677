"""The mechanism behind every plug-in: a registry per family, and components built from configuration."""

from ttt.registry.core import Registry, component, components, name_of, nested
from ttt.registry.fields import (
    Beta,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Range,
    Share,
    checked,
)

__all__ = [
    "Beta", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "PositiveShare", "Range", "Registry",
    "Share", "checked", "component", "components", "name_of", "nested",
]  # fmt: skip
