"""The same prompts through several samplers: answers, cost, variety, likelihood.

Writes samplers.json, samplers.md and answers.jsonl; prints the table.
"""

from __future__ import annotations

import argparse

from ttt.cli.common import add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, prompts and samplers, how many answers."""
    add_run(parser)
    parser.add_argument("--examples", required=True, metavar="FILE", help="examples whose prompts are answered")
    parser.add_argument("--samplers", required=True, action="append", metavar="YAML",
                        help="YAML file, or YAML: own | threshold | '[own, {name: threshold, threshold: 0.7}]' | "
                        "'{label: {sampler: ..., temperature: 0.7}}' (may be repeated)")  # fmt: skip
    parser.add_argument("--uid", action="append", default=[], help="this example (may be repeated; default: the first ones)")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="prompts of each task (default 8; 0: all)")
    parser.add_argument("--draws", type=int, default=3, metavar="D", help="answers to each prompt (default 3)")
    parser.add_argument("--likelihood-draws", type=int, default=8, metavar="K",
                        help="masked copies of a span for its bound (default 8; 0: no likelihoods)")  # fmt: skip
    parser.add_argument("--side-by-side", type=int, default=0, metavar="N", help="show the answers to the first N prompts")
    parser.add_argument("--out", default="", metavar="DIR", help="default: RUN/inspect/samplers")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print the table."""
    from ttt.inspection.sampler_report import compare_samplers

    print(compare_samplers(
        arguments.run, arguments.examples, arguments.samplers, uids=arguments.uid, limit=arguments.limit,
        draws=arguments.draws, likelihood_draws=arguments.likelihood_draws, side_by_side=arguments.side_by_side,
        out=arguments.out, overrides=arguments.overrides, config=arguments.config, plugins=arguments.plugins,
    ))  # fmt: skip
    return 0
