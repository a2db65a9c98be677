"""MMLU-Redux from a local folder: letters scored, or answers written and parsed."""

from __future__ import annotations

import argparse

from ttt.cli.eval.common import add_options, options_of, without_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which questions, which model, how it is asked."""
    parser.add_argument("data", metavar="FOLDER", help="SUBJECT.csv | .jsonl | .json | .parquet, or SUBJECT/*.parquet ...")
    parser.add_argument(
        "--protocol", default="letters", help="letters (default): likeliest of A-D | generate: written and parsed"
    )
    parser.add_argument(
        "--subject", nargs="+", default=[], metavar="NAME", help="some subjects (default: all in the folder)"
    )
    parser.add_argument(
        "--labels", default="original", help="original (default) | corrected: by error_type and correct_answer"
    )
    parser.add_argument("--only-ok", action="store_true", help="only questions that the annotators found no fault in")
    parser.add_argument(
        "--parse", default="letter", help="generate: letter (default): first lone A-D | any: first A-D | whole answer"
    )
    parser.add_argument("--instruction", default="", metavar="TEXT", help="another wording of the request for a letter")
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    from ttt.textbench.benchmarks import run_mmlu_redux
    from ttt.textbench.mmlu_redux import Protocol

    subjects = without_settings(arguments, arguments.subject)
    protocol = Protocol(arguments.protocol, arguments.labels, arguments.only_ok, arguments.parse, arguments.instruction)
    print(run_mmlu_redux(options_of(arguments), arguments.data, protocol, subjects))
    return 0
