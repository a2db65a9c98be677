"""Options of the verbs that are told by flags.  Imports nothing: ``ttt --help`` reads this."""

from __future__ import annotations

import argparse


def likelihood(verb: argparse.ArgumentParser) -> None:
    """``ttt likelihood``: how spans are masked."""
    verb.add_argument("--draws", type=int, default=16, metavar="K", help="masked copies of a span or block (default 16)")
    verb.add_argument(
        "--estimator", default="uniform",
        help="number of masked tokens k: uniform (default) | spread evenly over a group | official: with LLaDA's rounding | "
        "exact: every mask of a short set",
    )  # fmt: skip
    verb.add_argument("--group", type=int, default=8, metavar="B", help="copies that share one spread (default 8)")
    verb.add_argument("--antithetic", action="store_true", help="draw copies in opposite pairs")
    verb.add_argument("--cfg", type=float, default=0.0, metavar="S", help="guidance scale (default 0: none)")
    verb.add_argument(
        "--block", type=int, default=None, metavar="N",
        help="tokens of a span scored together, given the clean ones before (default: the mask's blocks; 0: the whole span)",
    )  # fmt: skip


def check(verb: argparse.ArgumentParser) -> None:
    """``ttt check``: which plug-in, with which fields."""
    verb.add_argument("family", help="mask, noise (or schedule), weighting, strategy, objective, sampler, remask, length, "
                      "codec, task, metric")  # fmt: skip
    verb.add_argument("name", help="registered name (see 'ttt list FAMILY')")
    verb.add_argument("overrides", nargs="*", metavar="field=value", help="fields of the plug-in")


def doctor(verb: argparse.ArgumentParser) -> None:
    """``ttt doctor``: which runs, against what."""
    verb.add_argument("runs", nargs="+", metavar="RUN", help="run folder (several with --write-bands)")
    verb.add_argument("--bands", default="", metavar="FILE", help="reference bands (default: bands.yaml beside the recipe)")
    verb.add_argument("--recipe", default="", help="entry of the bands file (default: the recipe the run was started with)")
    verb.add_argument("--write-bands", default="", metavar="FILE", help="make the bands of this recipe from healthy runs")
    verb.add_argument("--slack", type=float, default=0.15, help="how far bands reach beyond the runs, as a share (default 0.15)")
    verb.add_argument("--no-probes", action="store_true", help="read the log only, run no network")
    verb.add_argument("--json", action="store_true", help="findings as JSON")
