"""The verb ``likelihood``: -log p of the answers in example files, text exact or bounded, audio bounded."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from pathlib import Path

from ttt.api import model_folder, open_model
from ttt.cli.common import configure, dry_run
from ttt.config.load import to_plain
from ttt.eval.inputs import eval_folder, read_files
from ttt.interfaces import LanguageModel
from ttt.io.atomic import write_json_lines
from ttt.io.json_input import read_json
from ttt.registry import name_of
from ttt.stage import Stage

log = logging.getLogger(__name__)


def likelihood(arguments: argparse.Namespace) -> int:
    """Write ``likelihood.json`` and ``likelihood.items.jsonl`` to the evaluation folder; print the table."""
    from ttt.errors import ConfigError
    from ttt.likelihood import Draws, item_record, likelihoods, summarise, table

    config = configure(arguments, ("run.dir", "eval.examples"))
    draws = Draws(arguments.draws, arguments.estimator, arguments.group, arguments.antithetic, arguments.cfg)
    if arguments.block is not None and arguments.block < 0:
        raise ConfigError(f"--block: must be >= 0, got {arguments.block}")
    out = eval_folder(config)
    target, lines = out / "likelihood.json", out / "likelihood.items.jsonl"
    if dry_run(arguments, config, [f"score the answers of {p} -> {target}" for p in config.eval.examples]):
        return 0
    folder = model_folder(config.eval.checkpoint or config.run.dir)
    settings = {
        "objective": name_of(config.objective),
        "mask": to_plain(getattr(config.objective, "mask", None)), "draws": dataclasses.asdict(draws),
        "block_length": arguments.block, "seed": config.run.seed, "limit": config.eval.limit, "bootstrap": config.eval.bootstrap,
    }  # fmt: skip
    inputs = [*map(Path, config.eval.examples), folder]
    stage = Stage("likelihood", out / "likelihood.done.json", inputs, [target, lines], settings)
    if stage.is_done(arguments.overwrite):
        print(table(read_json(target, "give --overwrite to make it again")["values"]))
        return 0
    files = read_files(config.eval.examples, config.eval.limit, {t.label for t in config.tasks})
    examples = [e for found in files.values() for e in found]
    from ttt.eval.cards import git_state, hardware, versions
    from ttt.io.atomic import write_json

    model = open_model(config, folder, LanguageModel)
    started = time.perf_counter()
    items = likelihoods(
        model, config.objective, examples, draws, seed=config.run.seed, budget=max(1, config.data.batch_tokens),
        block_length=arguments.block,
    )  # fmt: skip
    values = summarise(items, config.eval.bootstrap, config.run.seed)
    seconds = time.perf_counter() - started
    out.mkdir(parents=True, exist_ok=True)
    write_json_lines(lines, map(item_record, items))
    write_json(target, {
        "format": "ttt-likelihood-1", "values": values, "settings": settings, "checkpoint": str(folder), "items": len(items),
        "config": to_plain(config), "versions": versions(), "git": git_state(), "hardware": hardware(), "seconds": seconds,
    })  # fmt: skip
    stage.finish({"items": len(items)}, seconds)
    log.info("likelihood: %d examples in %.1f s -> %s", len(items), seconds, target)
    print(table(values))
    return 0
