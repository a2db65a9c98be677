"""Print the resolved configuration: files, settings and defaults."""

from __future__ import annotations

import argparse

from ttt.cli.common import add_common, configure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which files and settings."""
    add_common(parser, "config", "settings", "plugins")


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration as YAML that loads again."""
    from ttt.config.load import resolved_yaml

    print(resolved_yaml(configure(arguments, ())), end="")
    return 0
