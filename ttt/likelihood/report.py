"""Likelihoods of a run's answers: example files in, ``likelihood.json`` and ``likelihood.items.jsonl`` out."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from ttt.api import model_folder, open_model
from ttt.config.load import to_plain
from ttt.config.schema import RunConfig
from ttt.data.read.prompts import IDS
from ttt.errors import ConfigError, DataError
from ttt.eval.inputs import dtype_of, eval_folder, read_files
from ttt.interfaces import LanguageModel
from ttt.io.atomic import write_json, write_json_lines
from ttt.io.json_input import read_json
from ttt.likelihood.draws import Draws
from ttt.likelihood.items import likelihoods
from ttt.likelihood.summary import item_record, summarise, table
from ttt.registry.core import name_of
from ttt.stage import Stage
from ttt.tasks.records import by_label

log = logging.getLogger(__name__)

RESULTS, ITEMS, MARKER = "likelihood.json", "likelihood.items.jsonl", "likelihood.done.json"


def report_likelihood(config: RunConfig, draws: Draws, block_length: int | None = None, overwrite: bool = False) -> str:
    """Score the answers of ``eval.examples`` unless that is done already; returns the table.

    ``block_length``: see `ttt.likelihood.likelihoods`.
    """
    if block_length is not None and block_length < 0:
        raise ConfigError(f"--block: must be >= 0, got {block_length}")
    out = eval_folder(config)
    folder = model_folder(config.eval.checkpoint or config.run.dir, config.eval.weights)
    settings = {
        "objective": name_of(config.objective), "mask": to_plain(getattr(config.objective, "mask", None)),
        "draws": dataclasses.asdict(draws), "block_length": block_length, "seed": config.run.seed, "limit": config.eval.limit,
        "bootstrap": config.eval.bootstrap, **dtype_of(config),
    }  # fmt: skip
    inputs = [*map(Path, config.eval.examples), folder]
    stage = Stage("likelihood", out / MARKER, inputs, [out / RESULTS, out / ITEMS], settings)
    if stage.is_done(overwrite):
        return table(read_json(out / RESULTS, "score again with --overwrite")["values"])
    files = read_files(config.eval.examples, config.eval.limit, by_label(config.tasks))
    examples = [e for listed in files.values() for e in listed]
    given = next((e for e in examples if IDS in e.meta), None)
    if given is not None:
        raise DataError(f"example {given.uid!r}: holds token ids; make text and codes of them with 'ttt data convert --from llada'")
    model = open_model(config, folder, LanguageModel)
    started = stage.seconds
    items = likelihoods(
        model, config.objective, examples, draws, seed=config.run.seed, budget=max(1, config.data.batch_positions),
        block_length=block_length,
    )  # fmt: skip
    if not any(item.by for item in items):
        raise DataError(f"eval.examples: none of the {len(items)} examples has an answer, and only answers have a likelihood")
    values = summarise(items, config.eval.bootstrap, config.run.seed)
    seconds = stage.seconds - started
    write_json_lines(out / ITEMS, map(item_record, items))
    write_json(out / RESULTS, {
        **_facts(config), "values": values, "settings": settings, "checkpoint": str(folder), "items": len(items),
        "seconds": seconds,
    })  # fmt: skip
    stage.finish({"items": len(items)}, seconds)
    log.info("likelihood: %d examples in %.1f s -> %s", len(items), seconds, out / RESULTS)
    return table(values)


def _facts(config: RunConfig) -> dict[str, Any]:
    from ttt.eval.cards import git_state, hardware, versions

    return {
        "format": "ttt-likelihood-1", "config": to_plain(config), "versions": versions(), "git": git_state(),
        "hardware": hardware(),
    }  # fmt: skip
