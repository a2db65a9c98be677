"""Options of the verbs that are told by flags.  Imports nothing: ``ttt --help`` reads this."""

from __future__ import annotations

import argparse


def likelihood(verb: argparse.ArgumentParser) -> None:
    """``ttt likelihood``: how spans are masked."""
    verb.add_argument(
        "--draws", type=int, default=16, metavar="K", help="masked copies of a span or block (default 16)"
    )
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


def doctor(verb: argparse.ArgumentParser) -> None:
    """``ttt doctor``: which runs, against what."""
    verb.add_argument("runs", nargs="+", metavar="RUN", help="run folder (several with --write-bands)")
    verb.add_argument(
        "--bands", default="", metavar="FILE", help="reference bands (default: bands.yaml beside the recipe)"
    )
    verb.add_argument(
        "--recipe", default="", help="entry of the bands file (default: the recipe the run was started with)"
    )
    verb.add_argument(
        "--write-bands", default="", metavar="FILE", help="make the bands of this recipe from healthy runs"
    )
    verb.add_argument(
        "--slack", type=float, default=0.15, help="how far bands reach beyond the runs, as a share (default 0.15)"
    )
    verb.add_argument("--no-probes", action="store_true", help="read the log only, run no network")
    verb.add_argument("--json", action="store_true", help="findings as JSON")


def opened(verb: argparse.ArgumentParser) -> None:
    """Verbs that look at a trained model: which one, and settings over its own."""
    verb.add_argument(
        "run", metavar="RUN", help="run folder; or a checkpoint or model folder (outside a run: with --config)"
    )
    verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the run's own")
    verb.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="recipe YAML over the run's own settings"
    )


def chat(verb: argparse.ArgumentParser) -> None:
    """``ttt chat``: with whom, how sound goes out."""
    opened(verb)
    verb.add_argument("--system", default="", metavar="TEXT", help="system message")
    verb.add_argument("--task", default="", metavar="NAME", help="take the system message of this task of the run")
    verb.add_argument(
        "--out", default="", metavar="DIR", help="write every answer there: turn-NNN .json, .wav, .tokens.json"
    )
    verb.add_argument(
        "--play", default="", metavar="COMMAND", help="run this with the wav of each spoken answer, e.g. 'aplay -q'"
    )
    verb.add_argument("--room", type=int, default=0, metavar="TOKENS", help="most tokens of history and answer")
    verb.add_argument("--single", action="store_true", help="every question by itself: for models trained on one turn")
    verb.add_argument("--dry-run", action="store_true", help="print the resolved configuration, then stop")


def inspect(verb: argparse.ArgumentParser) -> None:
    """``ttt inspect``: what a trained model attends to, what samplers make of it."""
    looks = verb.add_subparsers(dest="look", metavar="WHAT", required=True)
    attention = looks.add_parser(
        "attention", help="maps, entropy, distance and shares of attention", description="attention maps"
    )
    opened(attention)
    attention.add_argument("--examples", required=True, metavar="FILE", help="examples (JSONL or official JSON)")
    attention.add_argument(
        "--uid", action="append", default=[], help="this example (may be repeated; default: the first ones)"
    )
    attention.add_argument(
        "--limit", type=int, default=3, metavar="N", help="how many examples without --uid (default 3)"
    )
    attention.add_argument("--time", type=float, action="append", default=[], metavar="T",
                           help="diffusion time in [0, 1]: how much is masked (may be repeated; default 0.5)")  # fmt: skip
    attention.add_argument("--heads", action="store_true", help="a picture and table lines for every head")
    attention.add_argument(
        "--layers", type=int, nargs="+", default=[], metavar="N", help="draw these layers only; -1: the last"
    )
    attention.add_argument(
        "--max-gib", type=float, default=4.0, metavar="G", help="refuse maps of more than this (default 4)"
    )
    attention.add_argument("--out", default="", metavar="DIR", help="default: RUN/inspect/attention")
    attention.add_argument("--plugins", action="append", default=[], metavar="PATH", help="plug-in file or module")
    samplers = looks.add_parser(
        "samplers", help="the same prompts through several samplers", description="samplers compared"
    )
    opened(samplers)
    samplers.add_argument("--examples", required=True, metavar="FILE", help="examples whose prompts are answered")
    samplers.add_argument("--samplers", required=True, action="append", metavar="SPEC",
                          help="YAML file, or YAML: own | threshold | '[own, {name: threshold, threshold: 0.7}]' | "
                          "'{label: {sampler: ..., temperature: 0.7}}' (may be repeated)")  # fmt: skip
    samplers.add_argument(
        "--uid", action="append", default=[], help="this example (may be repeated; default: the first ones)"
    )
    samplers.add_argument("--limit", type=int, default=8, metavar="N", help="prompts of each task (default 8; 0: all)")
    samplers.add_argument("--draws", type=int, default=3, metavar="D", help="answers to each prompt (default 3)")
    samplers.add_argument("--likelihood-draws", type=int, default=8, metavar="K",
                          help="masked copies of a span for its bound (default 8; 0: no likelihoods)")  # fmt: skip
    samplers.add_argument(
        "--side-by-side", type=int, default=0, metavar="N", help="show the answers to the first N prompts"
    )
    samplers.add_argument("--out", default="", metavar="DIR", help="default: RUN/inspect/samplers")
    samplers.add_argument("--plugins", action="append", default=[], metavar="PATH", help="plug-in file or module")
