"""Run a result card's experiment again and compare.

The experiment runs in a fresh folder with the card's configuration.  Exit code 1: a value lies outside the card's interval.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ttt.cli.common import add_common

if TYPE_CHECKING:
    from ttt.lab.runner import Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which card, where."""
    parser.add_argument("card", metavar="CARD.json", help="result card of 'ttt ablate' or 'ttt score'")
    parser.add_argument("--out", default="", metavar="DIR", help="default: exp/repro/CARD")
    add_common(
        parser, "plugins", dry_run="compare data, versions and code with the card's, then stop",
        overwrite="remove an earlier repetition first",
    )  # fmt: skip


def run(arguments: argparse.Namespace, runner: Runner | None = None) -> int:
    """Repeat and print the comparison; ``runner`` replaces the child processes of the verbs."""
    from ttt.lab.repro import repeat_card

    text, ok = repeat_card(
        arguments.card, out=arguments.out, plugins=arguments.plugins, dry_run=arguments.dry_run,
        overwrite=arguments.overwrite, runner=runner,
    )  # fmt: skip
    print(text)
    return int(not ok)
