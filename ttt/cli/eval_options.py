"""Options of ``ttt eval BENCHMARK``.  Imports nothing: ``ttt --help`` reads this."""

from __future__ import annotations

import argparse

BENCHMARKS = {
    "lm-eval": "tasks of lm-evaluation-harness, or YAML files of the same format",
    "mmlu-redux": "MMLU-Redux from a local folder: letters scored, or answers written and parsed",
    "guard": "text tasks before and after: what did a checkpoint lose? paired intervals",
}


def evaluate(verb: argparse.ArgumentParser) -> None:
    """``ttt eval``: one sub-command per benchmark."""
    kinds = verb.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, help_line in BENCHMARKS.items():
        one = kinds.add_parser(name, help=help_line, description=help_line)
        if name == "guard":
            one.add_argument("before", metavar="BEFORE", help="result folder of 'ttt eval', or a model to evaluate")
            one.add_argument("after", metavar="AFTER", help="the same")
            one.add_argument("--margin", type=float, default=0.02, metavar="X", help="tolerated loss (default 0.02)")
        else:
            one.add_argument(
                "--model", default="", metavar="DIR", help="run, checkpoint or model folder (default: run.dir)"
            )
        if name == "mmlu-redux":
            _mmlu(one)
        else:
            _tasks(one)
        _common(one)


def _common(one: argparse.ArgumentParser) -> None:
    one.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the files")
    one.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="recipe YAML (default: the run's own)"
    )
    one.add_argument("--out", default="", metavar="DIR", help="folder of the results (default: in RUN/eval)")
    one.add_argument(
        "--limit", type=int, default=0, metavar="N", help="first N items of each task or subject (default: all)"
    )
    one.add_argument("--vocabulary", default="text", help="text (default) | full: what probability is spread over")
    one.add_argument("--template", default="ttt", help="ttt (default) | qwen3: how chats become text")
    one.add_argument("--max-length", type=int, default=2048, metavar="T", help="longest row of tokens (default 2048)")
    one.add_argument(
        "--max-tokens", type=int, default=256, metavar="T", help="new tokens where a task says nothing (default 256)"
    )
    one.add_argument(
        "--batch-tokens", type=int, default=8192, metavar="T", help="positions in a scoring call (default 8192)"
    )
    one.add_argument(
        "--draws", type=int, default=128, metavar="K", help="diffusion: masked copies of an answer (default 128)"
    )
    one.add_argument("--estimator", default="spread", help="diffusion: spread (default) | official | uniform | exact")
    one.add_argument(
        "--group", type=int, default=16, metavar="B", help="diffusion: copies that share one spread (default 16)"
    )
    one.add_argument(
        "--cfg", type=float, default=0.0, metavar="S", help="diffusion: guidance scale of the bound (default 0)"
    )
    one.add_argument("--no-greedy", action="store_true", help="diffusion: leave out the test for greedy continuations")
    one.add_argument("--dry-run", action="store_true", help="check tasks and settings, load no model")
    one.add_argument("--overwrite", action="store_true", help="do it again although the result is there")
    one.add_argument(
        "--plugins", action="append", default=argparse.SUPPRESS, metavar="PATH", help="plug-in file or module"
    )


def _tasks(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="names of tasks, groups or tags, or YAML files"
    )
    one.add_argument(
        "--task-dir", action="append", default=[], metavar="DIR", help="folder with task YAML files of your own"
    )
    one.add_argument("--chat", action="store_true", help="ask in the model's chat template")
    one.add_argument("--system", default="", metavar="TEXT", help="system message (with --chat)")
    one.add_argument(
        "--shots", type=int, default=None, metavar="N", help="examples before each question (default: the task's)"
    )


def _mmlu(one: argparse.ArgumentParser) -> None:
    one.add_argument("data", metavar="FOLDER", help="SUBJECT.csv | .jsonl | .json | .parquet, or SUBJECT/*.parquet ...")
    one.add_argument(
        "--protocol", default="letters", help="letters (default): likeliest of A-D | generate: written and parsed"
    )
    one.add_argument(
        "--subject", nargs="+", default=[], metavar="NAME", help="some subjects (default: all in the folder)"
    )
    one.add_argument(
        "--labels", default="original", help="original (default) | corrected: by error_type and correct_answer"
    )
    one.add_argument("--only-ok", action="store_true", help="only questions that the annotators found no fault in")
    one.add_argument(
        "--parse", default="letter", help="generate: letter (default): first lone A-D | any: first A-D | whole answer"
    )
    one.add_argument("--instruction", default="", metavar="TEXT", help="another wording of the request for a letter")
