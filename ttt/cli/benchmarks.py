"""The verb ``eval``: text benchmarks of a checkpoint."""

from __future__ import annotations

import argparse

from ttt.errors import ConfigError


def evaluate(arguments: argparse.Namespace) -> int:
    """``ttt eval lm-eval | mmlu-redux | guard``."""
    for name in ("tasks", "subject"):  # settings that stand behind a list of names
        given = getattr(arguments, name, [])
        arguments.overrides = [*arguments.overrides, *(g for g in given if "=" in g)]
        setattr(arguments, name, [g for g in given if "=" not in g])
    if arguments.limit < 0:
        raise ConfigError(f"--limit: must be >= 0, got {arguments.limit}")
    if arguments.benchmark == "guard":
        from ttt.cli.guard import guard

        return guard(arguments)
    if arguments.benchmark == "mmlu-redux":
        from ttt.cli.mmlu_redux import mmlu_redux

        return mmlu_redux(arguments)
    from ttt.cli.lm_eval import prepare, run_tasks

    run_tasks(arguments, *prepare(arguments))
    return 0
