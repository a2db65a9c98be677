"""``ttt eval guard BEFORE AFTER``: result folders, or models that are evaluated first; exit code 1 when something is lost."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ttt.cli.lm_eval import prepare, run_tasks
from ttt.errors import ConfigError

log = logging.getLogger(__name__)


def guard(arguments: argparse.Namespace) -> int:
    """Compare two evaluations on the same questions; writes ``guard.json`` with ``--out``; prints the table."""
    from ttt.eval.cards import write_json
    from ttt.textbench.guard import compare, guard_record, guard_table, read_scored

    folders = [_evaluated(arguments, side) for side in ("before", "after")]
    if arguments.dry_run:
        return 0
    before, after = map(read_scored, folders)
    changes = compare(before, after, arguments.margin)
    record = guard_record(changes, before, after, arguments.margin)
    if arguments.out:
        write_json(Path(arguments.out) / "guard.json", record)
    title = f"{arguments.before} -> {arguments.after}"
    limited = before.card["limited"] or after.card["limited"]
    print(guard_table(changes, title + (f"  !! {limited} !!" if limited else ""), arguments.margin))
    return 1 if record["verdict"] == "lost" else 0


def _evaluated(arguments: argparse.Namespace, side: str) -> Path:
    """The result folder of one side, made first if a model was named."""
    from ttt.textbench.guard import is_scored

    named = Path(getattr(arguments, side))
    if is_scored(named):
        return named
    if not arguments.out:
        raise ConfigError(
            f"{named}: no results of 'ttt eval' or 'ttt score' here; to evaluate the model first, give --out DIR and --tasks"
        )
    one = argparse.Namespace(**{**vars(arguments), "model": str(named), "out": str(Path(arguments.out) / side)})
    config, folder, out = prepare(one)
    run_tasks(one, config, folder, out)
    return out
