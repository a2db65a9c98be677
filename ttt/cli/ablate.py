"""Run a table of experiments: every row under every seed, intervals, tests, plots.

Only cells that are missing are trained, decoded and scored; the same command goes on after an interrupt.  Exit code 1: a cell
failed.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ttt.cli.common import add_common

if TYPE_CHECKING:
    from ttt.lab.runner import Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which rows and seeds, where, how many at a time."""
    parser.add_argument("table", metavar="TABLE.yaml", help="table file (egs/mini_talk/ablations)")
    add_common(parser, settings="settings over the table's (a row's own win)")
    parser.add_argument("--seeds", default="", metavar="N", help="seeds 1 .. N, or a list like 1,5 (default: the table's)")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="cells at a time (default: one per GPU, or one)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="run these rows only; the table shows all")
    parser.add_argument(
        "--trainings", nargs="+", default=[], metavar="DIR", help="folders of other tables, whose trainings are used again"
    )
    parser.add_argument("--out", default="", metavar="DIR", help="default: exp/ablations/TABLE")
    add_common(
        parser, "plugins", dry_run="check everything, print the cells, then stop",
        overwrite="make cells again whose settings or data have changed",
    )  # fmt: skip


def run(arguments: argparse.Namespace, runner: Runner | None = None) -> int:
    """Run what is missing and print the table; ``runner`` replaces the child processes of the verbs."""
    from ttt.lab.run_table import run_table

    only = [name for name in arguments.only if "=" not in name]
    swallowed = [name for name in arguments.only if "=" in name]  # settings that stand behind ``--only ROW``
    text, ok = run_table(
        arguments.table, [*arguments.overrides, *swallowed], seeds=arguments.seeds, only=only, jobs=arguments.jobs,
        trainings=arguments.trainings, out=arguments.out, plugins=arguments.plugins, dry_run=arguments.dry_run,
        overwrite=arguments.overwrite, runner=runner,
    )  # fmt: skip
    print(text)
    return int(not ok)
