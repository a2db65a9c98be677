"""What verbs share: common arguments, the checked configuration, ``--dry-run``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttt.config.schema import RunConfig

_ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "config": ("--config", {
        "action": "append", "default": [], "metavar": "FILE", "help": "recipe YAML; may be repeated, later ones win"}),
    "settings": ("overrides", {"nargs": "*", "metavar": "section.key=value", "help": "settings over the files"}),
    "dry_run": ("--dry-run", {"action": "store_true", "help": "print configuration and plan, then stop"}),
    "overwrite": ("--overwrite", {"action": "store_true", "help": "do it again although the result is there"}),
    "plugins": ("--plugins", {"action": "append", "default": [], "metavar": "PATH", "help": "plug-in file or module"}),
}  # fmt: skip


def add_common(parser: argparse.ArgumentParser, *names: str, **help_lines: str) -> None:
    """Add those of the shared arguments that a verb has: config, settings, dry_run, overwrite, plugins (with ``--trust``).

    All of them when none is named.  A keyword adds the argument of that name with another help line, as in
    ``add_common(parser, "plugins", settings="fields of the plug-in")``.
    """
    for name in (*names, *help_lines) or _ARGUMENTS:
        flag, options = _ARGUMENTS[name]
        parser.add_argument(flag, **{**options, **({"help": help_lines[name]} if name in help_lines else {})})
        if name == "plugins":
            parser.add_argument("--trust", action="store_true", help="run plug-ins that only a file of others names")


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments of verbs that open a trained model: RUN, settings and ``--config`` over its own configuration."""
    parser.add_argument(
        "run", metavar="RUN", help="run folder; or a checkpoint or model folder (outside a run: with --config)"
    )
    add_common(
        parser, "plugins", settings="settings over the run's own", config="recipe YAML over the run's own settings"
    )


def add_color(parser: argparse.ArgumentParser) -> None:
    """``--color``, for `wants_color`."""
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="default: on a terminal, without NO_COLOR"
    )


def wants_color(arguments: argparse.Namespace) -> bool:
    """Whether what is printed to stdout is colored."""
    auto = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return arguments.color == "always" or (arguments.color == "auto" and auto)


def configure(arguments: argparse.Namespace, need: tuple[str, ...]) -> RunConfig:
    """The configuration of this call; ``need`` names the keys the verb cannot do without."""
    from ttt.config.load import load_config
    from ttt.io.threads import choose_threads

    config = load_config(arguments.config, arguments.overrides, arguments.plugins, need)
    choose_threads(config.run.threads)
    return config


def dry_run(arguments: argparse.Namespace, config: RunConfig, plan: Sequence[str]) -> bool:
    """With ``--dry-run``: print the resolved configuration and the plan; True means stop here."""
    if not arguments.dry_run:
        return False
    from ttt.config.load import resolved_yaml

    print(resolved_yaml(config), end="")
    print("plan:")
    for number, line in enumerate(plan, 1):
        print(f"  {number}. {line}")
    return True
