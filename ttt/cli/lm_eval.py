"""``ttt eval lm-eval``: tasks of the harness.  Everything that can be refused is refused before a model is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.config.load import to_plain
from ttt.config.schema import MISSING, RunConfig
from ttt.errors import ConfigError
from ttt.stage import Stage
from ttt.textbench.opening import checkpoint_folder, make_scorer, read_config, settings_from

log = logging.getLogger(__name__)


def prepare(arguments: argparse.Namespace, name: str = "lm-eval") -> tuple[RunConfig, Path, Path]:
    """(configuration, folder with weights, folder of the results) of one model; ``name``: of that folder in a run."""
    model = arguments.model
    given = [o.partition("=")[2] for o in arguments.overrides if o.startswith(("run.dir=", "eval.checkpoint="))]
    config = read_config(model or (given or ["."])[-1], arguments.config, arguments.overrides, arguments.plugins)
    if not model:
        model = config.eval.checkpoint or ("" if config.run.dir == MISSING else config.run.dir)
    folder = checkpoint_folder(model)
    if config.run.threads:
        import torch

        torch.set_num_threads(config.run.threads)
    out = Path(arguments.out) if arguments.out else Path(model) / "eval" / name
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--out: missing; {folder} is a model folder, which results do not belong into")
    return config, folder, out


def run_tasks(arguments: argparse.Namespace, config: RunConfig, folder: Path, out: Path) -> None:
    """Tasks of the harness -> ``card.json`` and ``questions.jsonl`` in ``out``; prints the table."""
    from ttt.api import decode_settings
    from ttt.textbench.tasks import check_documents, choose, harness_version, load, task_digest

    settings = settings_from(arguments, config)
    chosen = choose(arguments.tasks, arguments.task_dir)
    told = {
        "tasks": sorted(arguments.tasks), "chat": arguments.chat, "system": arguments.system, "shots": arguments.shots,
        "limit": arguments.limit, "harness": harness_version(), **reading_settings(config, settings),
    }  # fmt: skip
    stage = Stage(
        "eval lm-eval",
        out / "eval.done.json",
        [folder, *chosen.files],
        [out / "card.json", out / "questions.jsonl"],
        told,
    )
    if not arguments.dry_run and stage.is_done(arguments.overwrite):
        show_card(out / "card.json")
        return
    tasks, groups = load(chosen)
    check_documents(tasks, arguments.limit)
    if any(task.OUTPUT_TYPE == "generate_until" for task in tasks.values()) and config.objective.canvas == "answer":
        decode_settings(config)
    if arguments.dry_run:
        for name, task in tasks.items():
            n = min(arguments.limit or len(task.eval_docs), len(task.eval_docs))
            digest = task_digest(task, itertools.islice(task.eval_docs, n))
            print(f"{name}: {n} of {len(task.eval_docs)} documents, {task.OUTPUT_TYPE}, digest {digest}")
        return
    from ttt.textbench.run import evaluate as run

    started = time.perf_counter()
    result = run(
        make_scorer(folder, config, settings), tasks, groups, limit=arguments.limit, chat=arguments.chat,
        shots=arguments.shots, system=arguments.system, resamples=config.eval.bootstrap, seed=config.run.seed,
    )  # fmt: skip
    finish(stage, config, out, result, told, chosen.files, arguments.limit, time.perf_counter() - started)


def reading_settings(config: RunConfig, settings: Any) -> dict[str, Any]:
    """What decides how a model reads and writes, for markers and cards."""
    return {
        "objective": getattr(type(config.objective), "registered_name", ""),
        "mask": to_plain(getattr(config.objective, "mask", None)), "dtype": config.model.dtype,
        "sampler": to_plain(config.eval.sampler) if config.objective.canvas == "answer" else None,
        **dataclasses.asdict(settings),
    }  # fmt: skip


def finish(
    stage: Stage, config: RunConfig, out: Path, result: Mapping[str, Any], told: Mapping[str, Any], files: Sequence[Path],
    limit: int, seconds: float,
) -> None:  # fmt: skip
    """Write items, card and marker, in this order; print the table."""
    from ttt.data.manifest import write_jsonl
    from ttt.eval.cards import make_card, plain, write_card

    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "questions.jsonl", map(plain, result["items"]))
    # as the report's tables want them
    metrics = {key: {"task": key.rpartition("/")[0], "split": "", **entry} for key, entry in result["metrics"].items()}
    counts, result = result["counts"], {"normalizer": "each task's own", **result, "metrics": metrics, "counts": {}}
    card = make_card(
        result, name=stage.name.removeprefix("eval "), config=to_plain(config), seeds={"run": config.run.seed}, data=files,
        decode={**told, "tasks": result["tasks"], "counts": counts}, limited=f"first {limit} items of each task" if limit else "",
    )  # fmt: skip
    if "harness" in result:
        card["versions"]["lm_eval"] = result["harness"]
    write_card(out / "card.json", card)
    stage.finish({"items": len(result["items"])}, seconds)
    log.info("eval: %d items in %.1f s -> %s", len(result["items"]), seconds, out / "card.json")
    show_card(out / "card.json")


def show_card(path: Path) -> None:
    """The card as a table."""
    from ttt.eval.cards import read_card
    from ttt.eval.tables import Row, text_table

    card = read_card(path)
    rows = [
        Row(
            key.rpartition("/")[0],
            key.rpartition("/")[2],
            entry.get("unit", "score"),
            {" ": entry},
            entry.get("higher_is_better"),
        )
        for key, entry in card["metrics"].items()
    ]
    notes = [f"{name}: {count}" for name, count in card["decode"]["counts"].items() if count and "cut" in name]
    print(text_table(rows, f"{path.parent}", notes, card["limited"]))
