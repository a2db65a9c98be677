"""Text tasks before and after training: what was lost?  With paired intervals.

Compares two evaluations on the same questions; models are evaluated first.  Exit code 1: something is lost.
"""

from __future__ import annotations

import argparse

from ttt.cli.eval.common import add_options, add_tasks, options_of, tasks_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is compared, which loss is tolerated, and how models are evaluated."""
    parser.add_argument("before", metavar="BEFORE", help="result folder of 'ttt eval', or a model to evaluate")
    parser.add_argument("after", metavar="AFTER", help="the same")
    parser.add_argument("--margin", type=float, default=0.02, metavar="X", help="tolerated loss (default 0.02)")
    add_options(parser, model=False)
    add_tasks(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print the table."""
    from ttt.textbench.benchmarks import run_guard

    tasks = tasks_of(arguments)
    text, kept = run_guard(options_of(arguments), arguments.before, arguments.after, tasks, arguments.margin)
    if text:
        print(text)
    return int(not kept)
