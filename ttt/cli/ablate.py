"""The verbs ``ablate`` and ``repro``."""

from __future__ import annotations

import argparse

from ttt.lab.runner import Runner


def ablate(arguments: argparse.Namespace, runner: Runner | None = None) -> int:
    """-> 0, or 1 when a cell failed."""
    from ttt.lab.run_table import run_table

    # ``--only ROW ... key=value``: settings that stand behind the list of rows
    only = [name for name in arguments.only if "=" not in name]
    overrides = [*arguments.overrides, *(name for name in arguments.only if "=" in name)]
    text, ok = run_table(
        arguments.table, overrides, seeds=arguments.seeds, only=only, jobs=arguments.jobs, trainings=arguments.trainings,
        out=arguments.out, plugins=arguments.plugins, dry_run=arguments.dry_run, overwrite=arguments.overwrite, runner=runner,
    )  # fmt: skip
    print(text)
    return int(not ok)


def repro(arguments: argparse.Namespace, runner: Runner | None = None) -> int:
    """-> 0 when every value lies in the card's interval."""
    from ttt.lab.repro import repeat_card

    text, ok = repeat_card(
        arguments.card, out=arguments.out, plugins=arguments.plugins, dry_run=arguments.dry_run,
        overwrite=arguments.overwrite, runner=runner,
    )  # fmt: skip
    print(text)
    return int(not ok)
