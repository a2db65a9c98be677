"""`ttt bench loader`: tokens a second out of the loader, beside what a training step takes in.

Streams lie in memory; a batch is planned, cut, laid out and collated each time it is asked for.  The reference is our own
training step on the same machine: a loader that is ten times as fast is never waited for.
"""

from __future__ import annotations

import argparse

from ttt.bench.common import Report, Way, check_at_least_one, measure, ratios
from ttt.bench.steps import Steps
from ttt.bench.workload import LENGTHS, work
from ttt.data.batches.loader import Loader
from ttt.data.batches.prefetch import Prefetcher

STEP = "training_step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ttt bench loader``."""
    parser.add_argument(
        "--documents", type=int, default=4000, metavar="N", help="documents in the corpus (default 4000)"
    )
    parser.add_argument("--batches", type=int, default=400, metavar="N", help="batches a round (default 400)")
    parser.add_argument("--row-tokens", type=int, default=2048, metavar="N", help="as data.row_tokens (default 2048)")
    parser.add_argument("--no-reference", action="store_true", help="leave the training step out")


def run(arguments: argparse.Namespace) -> Report:
    """Packed and unpacked rows, made when asked for and ahead."""
    check_at_least_one(arguments, "documents", "batches", "row_tokens")
    lengths = [n for row in LENGTHS for n in row]
    corpus = work(arguments.seed, lengths=[[lengths[i % len(lengths)] for i in range(arguments.documents)]])
    streams, vocab, row = list(corpus.rounds[0]), corpus.vocab, arguments.row_tokens

    def made(pack: bool) -> Loader:
        return Loader(
            streams, vocab, row_tokens=row, batch_tokens=row, seed=arguments.seed, pack=pack, max_drop_share=0.5
        )

    loaders = {"packed_loader": made(True), "unpacked_loader": made(False)}
    ahead = Prefetcher(made(True), 1)
    ways: dict[str, Way] = {}
    if not arguments.no_reference:
        small = argparse.Namespace(
            seed=arguments.seed, device="cpu", autocast="none", attention="auto", compile=False, checkpointing=False
        )
        steps = Steps(work(arguments.seed), small, None)
        ways[STEP] = steps.way("packed_step")

    def drawn(source) -> Way:
        def way(number: int) -> float:
            first = number * arguments.batches
            return float(sum(source.micro_batch(u, 0).n_tokens for u in range(first, first + arguments.batches)))

        return way

    ways.update({name: drawn(loader) for name, loader in loaders.items()})
    ways["prefetching_loader"] = drawn(ahead)
    timings = measure(ways, arguments.repeat)
    ahead.close()
    fill = loaders["packed_loader"].report
    return Report(
        "ttt bench loader: real tokens out of the loader",
        {
            "corpus": f"{len(streams):,} documents of {min(lengths)} to {max(lengths)} tokens, in memory",
            "batches": f"{arguments.batches} a round, of {row:,} positions; packed rows: {fill.summary()}",
        },
        timings, ratios(timings, STEP) if not arguments.no_reference else {},
        ["ratio: tokens a second over those the training step of `ttt bench train` takes in"] if STEP in ways else [],
        {"fill": fill.fill},
    )  # fmt: skip
