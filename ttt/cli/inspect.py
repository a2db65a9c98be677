"""The verb ``inspect``."""

from __future__ import annotations

import argparse


def inspect(arguments: argparse.Namespace) -> int:
    """``ttt inspect WHAT RUN``: dispatch."""
    import importlib

    return getattr(importlib.import_module(f"ttt.cli.inspect_{arguments.look}"), arguments.look)(arguments)
