"""`ttt bench`: how fast training, decoding and loading are, beside a reference loop, on the machine at hand."""

from __future__ import annotations

import argparse
import importlib

# What can be measured -> its module, which has add_arguments(parser) and run(arguments) -> Report.
BENCHES = {
    "train": ("ttt.bench.train", "a training step: packed rows, logits at loss positions, chunked cross-entropy"),
    "decode": ("ttt.bench.decode", "decoding: the cached, batched decoder"),
    "valle": ("ttt.bench.valle", "decoding frames of codes, with the first book's keys kept and without"),
    "size": ("ttt.bench.size", "training and decoding at 0.5B and 1.5B parameters, on an accelerator"),
    "loader": ("ttt.bench.loader", "the loader: how many tokens a second it can feed"),
}


def bench(arguments: argparse.Namespace) -> int:
    """Measure, print the table and, if asked to, write it."""
    from ttt.bench.common import add_common_arguments, check_common_arguments, write_json

    module = importlib.import_module(BENCHES[arguments.what][0])
    grammar = argparse.ArgumentParser(prog=f"ttt bench {arguments.what}", description=BENCHES[arguments.what][1])
    add_common_arguments(grammar)
    module.add_arguments(grammar)
    told = grammar.parse_args(arguments.rest)
    check_common_arguments(told)
    import torch

    torch.set_num_threads(told.threads)
    report = module.run(told)
    print(report.table())
    if told.json is not None:
        write_json(report, told.json)
    return 0
