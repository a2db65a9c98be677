"""Maps, entropy, distance and shares of a model's attention on examples.

Writes attention.json, pictures, TensorBoard curves, and the arrays of every example (.npz: attention [layers, heads, T, T],
ids, kinds); prints a table for each diffusion time.
"""

from __future__ import annotations

import argparse

from ttt.cli.common import add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model and examples, at which times, what is drawn."""
    add_run(parser)
    parser.add_argument("--examples", required=True, metavar="FILE", help="examples (JSONL or official JSON)")
    parser.add_argument("--uid", action="append", default=[], help="this example (may be repeated; default: the first ones)")
    parser.add_argument("--limit", type=int, default=3, metavar="N", help="how many examples without --uid (default 3)")
    parser.add_argument("--time", type=float, action="append", default=[], metavar="T",
                        help="diffusion time in [0, 1]: how much is masked (may be repeated; default 0.5)")  # fmt: skip
    parser.add_argument("--heads", action="store_true", help="a picture and table lines for every head")
    parser.add_argument("--layers", type=int, nargs="+", default=[], metavar="N", help="draw these layers only; -1: the last")
    parser.add_argument("--max-gib", type=float, default=4.0, metavar="G", help="refuse maps of more than this (default 4)")
    parser.add_argument("--out", default="", metavar="DIR", help="default: RUN/inspect/attention")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print the tables."""
    from ttt.inspection.attention_report import report_attention

    print(report_attention(
        arguments.run, arguments.examples, uids=arguments.uid, limit=arguments.limit, times=arguments.time,
        heads=arguments.heads, layers=arguments.layers, max_gib=arguments.max_gib, out=arguments.out,
        overrides=arguments.overrides, config=arguments.config, plugins=arguments.plugins,
    ))  # fmt: skip
    return 0
