"""Tasks of lm-evaluation-harness, or YAML files of the same format."""

from __future__ import annotations

import argparse

from ttt.cli.eval.common import add_options, add_tasks, options_of, tasks_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tasks, which model, how it is asked."""
    add_options(parser)
    add_tasks(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    from ttt.textbench.benchmarks import run_harness_tasks

    tasks = tasks_of(arguments)
    print(run_harness_tasks(options_of(arguments), tasks))
    return 0
