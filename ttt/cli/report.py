"""Collect scores, floor and training log of a run in one report, and print it.

Reads the cards below eval.out (default: those of run.dir); writes report.md, report.json and plots to run.dir.
"""

from __future__ import annotations

import argparse
from collections import deque
from pathlib import Path

from ttt.cli.common import add_common, configure, dry_run
from ttt.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(parser, "config", "settings", "dry_run", "plugins")


def run(arguments: argparse.Namespace) -> int:
    """Write the report."""
    config = configure(arguments, ("run.dir",))
    if dry_run(arguments, config, [f"write {Path(config.run.dir) / 'report.md'} and report.json"]):
        return 0
    from ttt.config.schema import MISSING
    from ttt.data.read.prompts import stream_of_example
    from ttt.eval.inputs import eval_folder, iter_file
    from ttt.eval.report import build_report, mask_of
    from ttt.tasks.records import by_label
    from ttt.text.tokenizer import TextTokenizer

    mask = None
    rule = getattr(config.objective, "mask", None)
    if rule is not None and config.eval.examples and config.data.tokenizer != MISSING:
        tokenizer = TextTokenizer.load(config.data.tokenizer)
        examples = iter_file(Path(config.eval.examples[0]), 0, by_label(config.tasks))
        (example,) = deque(examples, maxlen=1)
        stream = stream_of_example(example, tokenizer)
        mask = mask_of(rule, stream, tokenizer.vocab.pad_id, tokenizer.vocab.mask_id)
    floor = eval_folder(config) / "floor.json"
    cards = sorted(eval_folder(config).glob("**/card.json"))
    if config.eval.out and not cards:
        raise DataError(f"{config.eval.out}: no result card here; run 'ttt score' first")
    print(build_report(config.run.dir, cards=cards, floor=floor if floor.is_file() else None, mask=mask))
    return 0
