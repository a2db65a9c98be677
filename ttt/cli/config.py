"""Print the resolved configuration: files, settings and defaults."""

from __future__ import annotations

import argparse

from ttt.cli.common import add_common, configure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which files and settings."""
    add_common(parser, "config", "settings", "plugins")
    parser.add_argument(
        "--explain", nargs="?", const="", metavar="KEY",
        help="explain a key, a section, a plug-in (eval.sampler.blockwise) or all keys instead: type, default, choices, range",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration as YAML that loads again, or what a key of it is."""
    if arguments.explain is not None:
        from ttt.config.explain import explain
        from ttt.registry.plugins import load_plugins

        load_plugins(arguments.plugins)
        print(explain(arguments.explain))
        return 0
    from ttt.config.load import resolved_yaml

    print(resolved_yaml(configure(arguments, ())), end="")
    return 0
