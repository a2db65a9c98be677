"""Split an examples file into training and evaluation lines, by a seed."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ttt.cli.common import add_common

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which file, into which, by which share and seed."""
    parser.add_argument("input", metavar="INPUT", help="examples .jsonl (also .gz)")
    parser.add_argument("--train", required=True, metavar="FILE", help="training lines go here")
    parser.add_argument("--eval", required=True, metavar="FILE", help="evaluation lines go here")
    parser.add_argument("--eval-ratio", type=float, default=0.15, metavar="R", help="share of the lines (default 0.15)")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="which ones (default 42)")
    add_common(parser, "overwrite")


def run(arguments: argparse.Namespace) -> int:
    """Split the lines."""
    from ttt.data.read.train_eval_split import split
    from ttt.stage import Stage

    source, train, held_out = (Path(p) for p in (arguments.input, arguments.train, arguments.eval))
    settings = {"eval_ratio": arguments.eval_ratio, "seed": arguments.seed}
    marker = train.with_name(f"{train.name}.split.done.json")
    stage = Stage("data split", marker, [source], [train, held_out], settings, "name the JSONL to split", named=True)
    if stage.is_done(arguments.overwrite):
        return 0
    counts = split(source, train, held_out, arguments.eval_ratio, arguments.seed)
    stage.finish(counts)
    log.info("split: %d lines -> %s, %d lines -> %s", counts["train"], train, counts["eval"], held_out)
    return 0
