"""`ttt bench train`: one training step (forward and backward) beside a plain loop, and what each part of it brings.

Both sides compute the same loss of the same documents under the same noise; that is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

import torch

from ttt.bench.common import Report, Timing, Way, measure, ratios, reference_loop
from ttt.bench.steps import REFERENCE, Steps
from ttt.bench.workload import LENGTHS, PADDED, SHAPE, work
from ttt.errors import ConfigError

if TYPE_CHECKING:
    pass

LADDER = ("unpadded", "packed", "loss_positions")  # steps from the reference to `packed_step`, in order
SWEEP = (2048, 4096, 8192, 16384)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ttt bench train``."""
    parser.add_argument("--ladder", action="store_true", help="time the steps between the reference and ours too")
    parser.add_argument("--no-reference", action="store_true", help="time our step only")
    parser.add_argument(
        "--sweep", choices=("length",), help="our step against packed length, 2k to 16k tokens, instead"
    )
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of the loss, chunked and with all logits, instead"
    )
    parser.add_argument("--attention", default="auto", help="model.attention of our step (default auto)")
    parser.add_argument(
        "--autocast", choices=("none", "bfloat16"), default="none", help="as train.autocast (default none)"
    )
    parser.add_argument("--compile", action="store_true", help="our step with model.compile")
    parser.add_argument("--checkpointing", action="store_true", help="our step with gradient checkpointing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")


def run(arguments: argparse.Namespace) -> Report:
    """The report of what was asked for."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: cuda asked for, but torch sees no GPU")
    if arguments.memory:
        from ttt.bench.memory import memory_report

        return memory_report(arguments)
    if arguments.sweep:
        return sweep_report(arguments)
    return step_report(arguments)


def step_report(arguments: argparse.Namespace) -> Report:
    """Our step, the reference and, with ``--ladder``, what lies between."""
    made = work(arguments.seed)
    plain = None if arguments.no_reference else reference_loop("reference_train")
    bench = Steps(made, arguments, plain)
    names = [*([REFERENCE] if plain else []), *(LADDER if arguments.ladder else ()), "packed_step"]
    if plain:
        bench.check(names)
    # A check has run every way on small rows; the reference takes too long to be run once more for nothing.
    timings = measure({n: bench.way(n) for n in names}, arguments.repeat, warmup=0 if plain else 1)
    lengths = [sum(row) for row in LENGTHS]
    return Report(
        "ttt bench train: forward and backward of one batch",
        {
            "model": f"{sum(p.numel() for p in bench.model.parameters()):,} parameters, vocabulary {made.vocab.size:,}, "
            f"{SHAPE['num_hidden_layers']} layers of {SHAPE['hidden_size']}, {_types(arguments)}",
            "batch": f"4 documents, {min(lengths):,} to {max(lengths):,} real tokens; the reference pads to 4 x {PADDED:,} "
            f"({sum(lengths) / len(lengths) / 4 / PADDED:.0%} real)",
            "our step": f"attention {arguments.attention}, compile {arguments.compile}, "
            f"checkpointing {arguments.checkpointing}; tokens are real ones on both sides",
        },
        timings, ratios(timings, REFERENCE) if plain else {},
    )  # fmt: skip


def sweep_report(arguments: argparse.Namespace) -> Report:
    """Our step against the number of packed tokens, and the slope of its time (1: linear)."""
    lengths = [[n for row in LENGTHS for n in row] for _ in SWEEP]
    rows = []
    for target, row in zip(SWEEP, lengths, strict=True):
        endless = row * (target // sum(row) + 1)
        taken: list[int] = []
        while sum(taken) + endless[len(taken)] <= target:
            taken.append(endless[len(taken)])
        rows.append(taken)
    made = work(arguments.seed, lengths=rows)
    bench = Steps(made, arguments, None)
    ways: dict[str, Way] = {f"packed_{n}": _fixed(bench.way("packed_step"), i) for i, n in enumerate(SWEEP)}
    timings = measure(ways, arguments.repeat)
    slope = fitted_slope([made.tokens(i) for i in range(len(SWEEP))], timings)
    return Report(
        "ttt bench train --sweep length: our step against packed length",
        {"documents": f"144 to 667 tokens each, packed into one row; {_types(arguments)}, attention {arguments.attention}"},
        timings, {}, [f"time grows with length to the power {slope:.2f} (1: linear)"], {"slope": slope},
    )  # fmt: skip


def fitted_slope(sizes: list[int], timings: list[Timing]) -> float:
    """Least-squares slope of log seconds over log size."""
    import statistics

    x = [math.log(n) for n in sizes]
    y = [math.log(statistics.median(t.seconds)) for t in timings]
    mx, my = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def _fixed(way: Way, number: int) -> Way:
    return lambda _: way(number)


def _types(arguments: argparse.Namespace) -> str:
    return "float32" if arguments.autocast == "none" else f"float32 weights, autocast {arguments.autocast}"
