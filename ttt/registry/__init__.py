"""The mechanism behind every plug-in: a registry per family, and components built from configuration."""

from ttt.registry.core import Registry, component, components, nested

__all__ = ["Registry", "component", "components", "nested"]
