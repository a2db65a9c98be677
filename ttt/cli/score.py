"""Score generated answers: metrics with intervals (text benchmarks: 'ttt eval').

Reads what 'ttt generate' wrote; writes eval.out/card.json, items.jsonl and sample wavs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ttt.cli.common import add_common, configure, dry_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score all files together and write the card."""
    from ttt.config.load import to_plain
    from ttt.eval.inputs import (
        check_words,
        eval_folder,
        generation_files,
        metrics_of,
        read_files,
        recordings_of,
        settings_of,
    )
    from ttt.stage import Stage

    config = configure(arguments, ("run.dir", "eval.examples"))
    out = eval_folder(config)
    generations = list(generation_files(config).values())
    if dry_run(arguments, config, [f"score {g}" for g in generations]):
        return 0
    from ttt.eval.partial import check_complete

    for target in generations:
        check_complete(target)
    from ttt.audio.loading import load_part
    from ttt.eval.cards import make_card, write_card
    from ttt.eval.evaluate import evaluate
    from ttt.eval.generations import read_generations
    from ttt.eval.listen import Instruments
    from ttt.eval.metrics import rests_on
    from ttt.eval.score import Bootstrap
    from ttt.registry.families import METRIC
    from ttt.tasks.records import by_label

    asked = [METRIC.build(node, f"tasks.{t.label}.metrics.{n}") for t in config.tasks for n, node in t.metrics.items()]
    for metric in asked:
        metric.load()
    codec = load_part(config, "codec")
    judge = load_part(config, "judge")
    speaker = load_part(config, "speaker")
    settings = {
        "tasks": to_plain(config.tasks), "normalizer": to_plain(config.eval.normalizer), "bootstrap": config.eval.bootstrap,
        "samples": config.eval.samples, "codec": getattr(codec, "codec_id", ""), "judge": getattr(judge, "judge_id", ""),
        "speaker": getattr(speaker, "speaker_id", ""), "floor": config.eval.floor,
    }  # fmt: skip
    if models := [metric.model_id for metric in asked if "model" in rests_on(metric)]:
        settings["models"] = models
    if any("reference" in rests_on(metric) for metric in asked):
        settings["recordings"] = config.data.corpus
    inputs = [*map(Path, config.eval.examples), *generations]
    stage = Stage(
        "score", out / "score.done.json", inputs, [out / "card.json"], settings, "run 'ttt generate' first",
        also=[out / "items.jsonl", out / "samples", out / "tensorboard"],
    )  # fmt: skip
    if stage.is_done(arguments.overwrite):
        return 0
    tasks = by_label(config.tasks)
    files = read_files(config.eval.examples, config.eval.limit, tasks)
    if not config.eval.limit:  # of a few it may be chance
        check_words(files, tasks)
    examples = [example for listed in files.values() for example in listed]
    limited = f"first {config.eval.limit} items of each task and file" if config.eval.limit else ""
    instruments = Instruments(judge, codec, config.eval.normalizer, speaker, recordings_of(config))
    evaluation = evaluate(
        read_generations(*generations), examples, metrics_of(tasks, examples, codec, judge), instruments, out,
        floor=config.eval.floor, samples=config.eval.samples, intervals=Bootstrap(config.eval.bootstrap, config.run.seed),
        limited=limited,
    )  # fmt: skip
    evaluation.log_to_tensorboard(out / "tensorboard", 0)
    seeds = {"run": config.run.seed}
    card = make_card(evaluation.result, config=to_plain(config), seeds=seeds, data=inputs, decode=settings_of(config))
    write_card(out / "card.json", card)
    stage.finish({"items": len(examples)}, evaluation.result["timing"]["score_s"])
    return 0
