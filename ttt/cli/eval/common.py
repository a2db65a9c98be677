"""Arguments that the text benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ttt.cli.common import add_common

if TYPE_CHECKING:
    from ttt.textbench.benchmarks import Options, Tasks


def add_options(parser: argparse.ArgumentParser, model: bool = True) -> None:
    """Which model (unless ``model`` is False), how it is asked, where results go."""
    if model:
        parser.add_argument("--model", default="", metavar="DIR", help="run, checkpoint or model folder (default: run.dir)")
    add_common(parser, "settings", "plugins", config="recipe YAML (default: the run's own)")
    parser.add_argument("--out", default="", metavar="DIR", help="folder of the results (default: in RUN/eval)")
    for flag, kind, default, metavar, words in (
        ("--limit", int, 0, "N", "first N items of each task or subject (default: all)"),
        ("--vocabulary", str, "text", None, "text (default) | full: what probability is spread over"),
        ("--template", str, "ttt", None, "ttt (default) | qwen3: how chats become text"),
        ("--max-length", int, 2048, "T", "longest row of tokens (default 2048)"),
        ("--max-tokens", int, 256, "T", "new tokens where a task says nothing (default 256)"),
        ("--batch-tokens", int, 8192, "T", "positions in a scoring call (default 8192)"),
        ("--draws", int, 128, "K", "diffusion: masked copies of an answer (default 128)"),
        ("--estimator", str, "spread", None, "diffusion: spread (default) | official | uniform | exact"),
        ("--group", int, 16, "B", "diffusion: copies that share one spread (default 16)"),
        ("--cfg", float, 0.0, "S", "diffusion: guidance scale of the bound (default 0)"),
    ):
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=words)
    parser.add_argument("--no-greedy", action="store_true", help="diffusion: leave out the test for greedy continuations")
    add_common(parser, "overwrite", dry_run="check tasks and settings, load no model")


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Which tasks of the harness, how they are asked."""
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="names of tasks, groups or tags, or YAML files"
    )
    parser.add_argument(
        "--task-dir", action="append", default=[], metavar="DIR", help="folder with task YAML files of your own"
    )
    parser.add_argument("--chat", action="store_true", help="ask in the model's chat template")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message (with --chat)")
    parser.add_argument(
        "--shots", type=int, default=None, metavar="N", help="examples before each question (default: the task's)"
    )


def without_settings(arguments: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """``names`` of a list argument; settings (``section.key=value``) that stand behind them go to ``arguments.overrides``."""
    arguments.overrides = [*arguments.overrides, *(n for n in names if "=" in n)]
    return [n for n in names if "=" not in n]


def tasks_of(arguments: argparse.Namespace) -> Tasks:
    """The arguments of `add_tasks`."""
    from ttt.textbench.benchmarks import Tasks

    names = without_settings(arguments, arguments.tasks)
    return Tasks(names, arguments.task_dir, arguments.chat, arguments.system, arguments.shots)


def options_of(arguments: argparse.Namespace) -> Options:
    """The arguments of `add_options`."""
    from ttt.likelihood import Draws
    from ttt.textbench.benchmarks import Options

    return Options(
        model=getattr(arguments, "model", ""), out=arguments.out, limit=arguments.limit, config=arguments.config,
        overrides=arguments.overrides, plugins=arguments.plugins, dry_run=arguments.dry_run, overwrite=arguments.overwrite,
        scorer={
            "vocabulary": arguments.vocabulary, "template": arguments.template, "max_length": arguments.max_length,
            "max_tokens": arguments.max_tokens, "batch_tokens": arguments.batch_tokens,
            "check_greedy": not arguments.no_greedy,
            "draws": Draws(arguments.draws, arguments.estimator, arguments.group, False, arguments.cfg),
        },
    )  # fmt: skip
