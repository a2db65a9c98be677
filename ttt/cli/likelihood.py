"""Measure -log p of the answers of example files: text exact, audio bounded.

Writes likelihood.json and likelihood.items.jsonl to the evaluation folder; prints the table.
"""

from __future__ import annotations

import argparse

from ttt.cli.common import add_common, configure, dry_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, and how spans are masked."""
    add_common(parser, "config", "settings", "dry_run", "overwrite", "plugins")
    parser.add_argument("--draws", type=int, default=16, metavar="K", help="masked copies of a span or block (default 16)")
    parser.add_argument(
        "--estimator", default="uniform",
        help="number of masked tokens k: uniform (default) | spread evenly over a group | official: with LLaDA's rounding | "
        "exact: every mask of a short set",
    )  # fmt: skip
    parser.add_argument("--group", type=int, default=8, metavar="B", help="copies that share one spread (default 8)")
    parser.add_argument("--antithetic", action="store_true", help="draw copies in opposite pairs")
    parser.add_argument("--cfg", type=float, default=0.0, metavar="S", help="guidance scale (default 0: none)")
    parser.add_argument(
        "--block", type=int, default=None, metavar="N",
        help="tokens of a span scored together, given the clean ones before (default: the mask's blocks; 0: the whole span)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Score the answers and print the table."""
    from ttt.eval.inputs import eval_folder
    from ttt.likelihood import Draws
    from ttt.likelihood.report import RESULTS, report_likelihood

    config = configure(arguments, ("run.dir", "eval.examples"))
    draws = Draws(arguments.draws, arguments.estimator, arguments.group, arguments.antithetic, arguments.cfg)
    target = eval_folder(config) / RESULTS
    if dry_run(arguments, config, [f"score the answers of {p} -> {target}" for p in config.eval.examples]):
        return 0
    print(report_likelihood(config, draws, arguments.block, arguments.overwrite))
    return 0
