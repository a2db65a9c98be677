"""The mechanism behind every plug-in: a registry per family, and components built from configuration."""

from ttt.registry.core import Registry, component, components, name_of, nested
from ttt.registry.fields import (
    Choices,
    FilledText,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Range,
    Share,
    ShareBelow1,
    checked,
)

__all__ = [
    "Choices", "FilledText", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "PositiveShare", "Range",
    "Registry", "Share", "ShareBelow1", "checked", "component", "components", "name_of", "nested",
]  # fmt: skip
