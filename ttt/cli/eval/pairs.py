"""Minimal pairs by likelihood: sWUGGY, sBLIMP, StoryCloze, SALMon, your own.

How often is the right recording likelier than the wrong one?  Exact for models that write from left to right, a bound otherwise.
"""

from __future__ import annotations

import argparse

from ttt.cli.common import add_common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which pairs, which model, what is compared."""
    parser.add_argument("data", metavar="DATA", help="folder of a benchmark as published, a parquet, or a .jsonl of pairs")
    parser.add_argument("--model", default="", metavar="DIR", help="run, checkpoint or model folder (default: run.dir)")
    add_common(parser, "settings", "plugins", config="recipe YAML (default: the run's own)")
    parser.add_argument("--out", default="", metavar="DIR", help="folder of the results (default: RUN/eval/pairs)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="first N pairs of each group (default: all)")
    parser.add_argument("--score", default="token", help="compare -log p per token (default) | total")
    parser.add_argument("--form", default="document", help="a side stands alone: document (default) | as an answer")
    parser.add_argument("--draws", type=int, default=16, metavar="K", help="diffusion: masked copies of a span (default 16)")
    parser.add_argument(
        "--estimator", default="spread", help="diffusion: spread (default) | uniform | official | exact: see 'ttt likelihood'"
    )
    parser.add_argument("--group", type=int, default=8, metavar="B", help="diffusion: copies that share one spread (default 8)")
    parser.add_argument("--batch-tokens", type=int, default=8192, metavar="T", help="positions in a scoring call (default 8192)")
    add_common(parser, "overwrite", dry_run="count the pairs, load no model")


def run(arguments: argparse.Namespace) -> int:
    """Score the pairs and print the table."""
    from ttt.likelihood import Draws
    from ttt.textbench.benchmarks import Options
    from ttt.textbench.pairs import PairScore, run_pairs

    options = Options(
        model=arguments.model, out=arguments.out, limit=arguments.limit, config=arguments.config, overrides=arguments.overrides,
        plugins=arguments.plugins, dry_run=arguments.dry_run, overwrite=arguments.overwrite,
        scorer={"batch_tokens": arguments.batch_tokens},
    )  # fmt: skip
    how = PairScore(arguments.score, arguments.form)
    print(run_pairs(options, arguments.data, how, Draws(arguments.draws, arguments.estimator, arguments.group)))
    return 0
