"""Measure speed beside a reference loop: training, decoding, loading."""

from __future__ import annotations

import argparse
import importlib

# What can be measured -> what it is.  ttt/bench/NAME.py has add_arguments(parser) and run(arguments) -> Report.
BENCHES = {
    "train": "a training step: packed rows, logits at loss positions, chunked cross-entropy",
    "decode": "the cached, batched decoder",
    "valle": "decoding frames of codes, with the first codebook's keys kept and without",
    "size": "training and decoding at 0.5B and 1.5B parameters, on an accelerator",
    "loader": "how many tokens a second the loader can feed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured; the rest belongs to it."""
    lines = "\n".join(f"  {name:8}{line}" for name, line in BENCHES.items())
    parser.description = (
        f"{parser.description}\n\n{lines}\n\nPrints a table; 'ttt bench WHAT --help' shows its own options."
    )
    parser.add_argument("what", choices=tuple(BENCHES), metavar="WHAT", help="one of the above")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its own options")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table and, if asked to, write it."""
    from ttt.bench.common import add_common_arguments, check_common_arguments, write_json

    bench = importlib.import_module(f"ttt.bench.{arguments.what}")
    parser = argparse.ArgumentParser(prog=f"ttt bench {arguments.what}", description=BENCHES[arguments.what])
    add_common_arguments(parser)
    bench.add_arguments(parser)
    try:
        options = parser.parse_args(arguments.rest)
    except SystemExit as stop:  # argparse has printed the help, or what is wrong
        return 2 if stop.code else 0
    check_common_arguments(options)
    import torch

    torch.set_num_threads(options.threads)
    report = bench.run(options)
    print(report.table())
    if options.json is not None:
        write_json(report, options.json)
    return 0
