"""Verbs on a model: train, generate, score, report."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.api import decode_settings, model_folder, pick_device
from ttt.cli.common import configure, dry_run
from ttt.cli.model import starting_network
from ttt.config.load import to_plain
from ttt.config.schema import MISSING, RunConfig
from ttt.errors import ConfigError
from ttt.eval.inputs import check_words, eval_folder, read_files, settings_of
from ttt.stage import Stage

if TYPE_CHECKING:
    from ttt.eval.recordings import Recordings

log = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> int:
    """Train ``objective`` on ``data.train``; goes on from the latest complete checkpoint of ``run.dir``."""
    from ttt.train.optim import check_section

    config = configure(arguments, ("run.dir", "data.train", "data.tokenizer"))
    check_section(config.train)
    steps = config.train.steps
    length = f"{steps} updates" if isinstance(steps, int) else f"{config.train.epochs:g} epochs"
    plan = [
        f"read examples of {config.data.train}",
        f"train {type(config.objective).registered_name!r} for {length}",
        f"write checkpoints to {Path(config.run.dir) / 'checkpoints'}",
    ]
    if dry_run(arguments, config, plan):
        return 0
    from ttt.data.batches.loader import fixed_batches
    from ttt.data.batches.prefetch import Prefetcher
    from ttt.data.batches.text_ratio import training_loader
    from ttt.data.sources.mix import open_streams
    from ttt.diffusion.corrupt import NO_MASK
    from ttt.model.arch import check_arch
    from ttt.text.tokenizer import TextTokenizer
    from ttt.train.engine import check_engine, world
    from ttt.train.trainer import Trainer

    check_engine(config.train)
    arch = config.model.arch
    check_arch(
        arch.registered_name, config.objective.arch, f"objective {type(config.objective).registered_name!r}"
    )
    if arguments.overwrite:
        import dataclasses

        config = dataclasses.replace(config, run=dataclasses.replace(config.run, overwrite=True))
    tokenizer = TextTokenizer.load(config.data.tokenizer).check_form(config.data.form)
    if tokenizer.vocab.mask_id < 0 and hasattr(config.objective, "noise"):
        raise ConfigError(NO_MASK)
    rule = config.data.prompt_rule
    rank, size = world()
    if rank:  # what every rank would say is said once
        logging.getLogger("ttt").setLevel(logging.WARNING)
    strategies = getattr(config.objective, "strategies", ())
    loader = training_loader(
        config.data, tokenizer, seed=config.run.seed, accumulate=config.train.accumulate, rank=rank, world=size,
        strategies=strategies,
    )  # fmt: skip
    if rank == 0:
        log.info("train: %s; %d updates an epoch", loader.report.summary(), loader.updates_per_epoch)
    dev = []
    held_out = (
        open_streams(config.data.dev, tokenizer, prompt_rule=rule, mix=config.data.mix) if config.data.dev else []
    )
    if len(held_out):
        dev = fixed_batches(
            held_out, tokenizer.vocab, config.data.row_tokens, config.data.batch_tokens, seed=config.run.seed,
            strategies=strategies, pack=config.data.pack, cut_long=config.data.long_rows == "cut",
            buckets=config.data.buckets, quadratic=config.data.quadratic_tokens,
        )  # fmt: skip
    codec = config.codec.load() if config.codec is not None else None
    judge = config.judge.load() if config.judge is not None and config.train.generate_items else None
    model = starting_network(config, tokenizer, codec)
    if config.model.compile:
        from ttt.model.compiled import compile_layers

        compile_layers(model.hf)
    callbacks = []
    if config.train.generate_items:
        from ttt.eval.answer import AnswersInTraining
        from ttt.sampling.decoder.decoder import Decoder

        tasks = {t.label: t for t in config.tasks}
        asked = read_files([config.data.dev], config.train.generate_items, set(tasks)) if len(held_out) else {}
        folder = Path(config.run.dir)
        callbacks.append(AnswersInTraining(
            Decoder(model, config.objective.mask, config.eval.sampler, decode_settings(config)),
            [e for found in asked.values() for e in found], tasks, judge, codec, config.eval.normalizer,
            folder / "generated", config.eval.batch_size, config.eval.samples, folder / "tensorboard", recordings_of(config),
        ))  # fmt: skip
    ahead = Prefetcher(loader, config.train.accumulate, config.data.prefetch) if config.data.prefetch else loader
    return Trainer(config, model, config.objective, ahead, dev, callbacks=callbacks).run().exit_code


def recordings_of(config: RunConfig) -> Recordings:
    """The recordings of ``data.corpus``, for metrics that compare sounds."""
    from ttt.eval.recordings import Recordings

    return Recordings(None if config.data.corpus == MISSING else config.data.corpus)


def generate(arguments: argparse.Namespace) -> int:
    """Answer the prompts of ``eval.examples`` -> ``eval.out/NAME.generations.jsonl``."""
    config = configure(arguments, ("run.dir", "eval.examples"))
    out = eval_folder(config)
    targets = [out / f"{Path(p).stem}.generations.jsonl" for p in config.eval.examples]
    if dry_run(arguments, config, [f"answer {p} -> {t}" for p, t in zip(config.eval.examples, targets, strict=True)]):
        return 0
    folder = model_folder(config.eval.checkpoint or config.run.dir)
    tasks = {t.label: t for t in config.tasks}
    traces = [out / f"{Path(p).stem}.trace.jsonl" for p in config.eval.examples]
    stages = [
        Stage(
            "generate", t.with_suffix(".done.json"), [Path(p), folder], [t, trace] if arguments.trace else [t],
            settings_of(config),
        )
        for p, t, trace in zip(config.eval.examples, targets, traces, strict=True)
    ]  # fmt: skip
    open_ = [not s.is_done(arguments.overwrite) for s in stages]
    if not any(open_):
        return 0
    from ttt.eval.answer import answer, forced_statistics
    from ttt.model.arch import open_model
    from ttt.sampling.decoder.decoder import Decoder
    from ttt.sampling.trace.record import Tracer, header, write_trace

    files = read_files(config.eval.examples, config.eval.limit, set(tasks))
    attention = "sdpa" if config.model.attention == "flex_attention" else config.model.attention
    model = open_model(folder, attention).to(pick_device(config))
    decoder = Decoder(model, config.objective.mask, config.eval.sampler, decode_settings(config))
    for (path, examples), target, trace, stage, todo in zip(files.items(), targets, traces, stages, open_, strict=True):
        if not todo:
            continue
        started = time.perf_counter()
        tracer = Tracer() if arguments.trace else None
        records = answer(decoder, examples, tasks, config.eval.batch_size, tracer)
        if config.eval.forced:
            found = forced_statistics(model, config.objective, examples, model.tokenizer, config.run.seed)
            records = [{**record, "forced": mine} for record, mine in zip(records, found, strict=True)]
        out.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        temporary.replace(target)
        trace.unlink(missing_ok=True)  # an older one would be of other answers
        if tracer is not None:
            head = header(model.tokenizer, config.eval.sampler, settings_of(config))
            write_trace(trace, head, [tracer.records[e.uid] for e in examples])
        seconds = time.perf_counter() - started
        stage.finish({"items": len(records), "seconds": seconds}, seconds)
        log.info("generate: %s: %d answers in %.1f s", path.stem, len(records), seconds)
    return 0


def score(arguments: argparse.Namespace) -> int:
    """Score the generations of ``eval.examples`` and write ``eval.out/card.json``."""
    config = configure(arguments, ("run.dir", "eval.examples"))
    out = eval_folder(config)
    generations = [out / f"{Path(p).stem}.generations.jsonl" for p in config.eval.examples]
    if dry_run(arguments, config, [f"score {g}" for g in generations]):
        return 0
    from ttt.eval.cards import make_card, write_card
    from ttt.eval.evaluator import read_generations
    from ttt.eval.evaluator import score as score_records
    from ttt.eval.metrics import rests_on
    from ttt.registry.families import METRIC

    codec = config.codec.load() if config.codec is not None else None
    judge = config.judge.load() if config.judge is not None else None
    speaker = config.speaker.load() if config.speaker is not None else None
    settings = {
        "tasks": to_plain(config.tasks), "normalizer": to_plain(config.eval.normalizer), "bootstrap": config.eval.bootstrap,
        "samples": config.eval.samples, "codec": getattr(codec, "codec_id", ""), "judge": getattr(judge, "judge_id", ""),
        "speaker": getattr(speaker, "speaker_id", ""), "floor": config.eval.floor,
    }  # fmt: skip
    asked = [METRIC.build(node, f"tasks.{t.label}.metrics.{n}") for t in config.tasks for n, node in t.metrics.items()]
    if any("reference" in rests_on(metric) for metric in asked):
        settings["recordings"] = config.data.corpus
    inputs = [*map(Path, config.eval.examples), *generations]
    stage = Stage("score", out / "score.done.json", inputs, [out / "card.json"], settings, "run 'ttt generate' first")
    if stage.is_done(arguments.overwrite):
        return 0
    tasks = {t.label: t for t in config.tasks}
    files = read_files(config.eval.examples, config.eval.limit, set(tasks))
    if not config.eval.limit:  # of a few it may be chance
        check_words(files, tasks)
    examples = [e for found in files.values() for e in found]
    limited = f"first {config.eval.limit} items of each task and file" if config.eval.limit else ""
    result = score_records(
        read_generations(*generations), examples, judge, codec, config.eval.normalizer,
        {label: task.metrics for label, task in tasks.items()}, out, speaker=speaker, recordings=recordings_of(config),
        floor=config.eval.floor, samples=config.eval.samples,
        resamples=config.eval.bootstrap, seed=config.run.seed, limited=limited, tensorboard=out / "tensorboard",
    )  # fmt: skip
    card = make_card(
        result,
        config=to_plain(config),
        seeds={"run": config.run.seed},
        data=inputs,
        decode=settings_of(config),
    )
    write_card(out / "card.json", card)
    stage.finish({"items": len(examples)}, result["timing"]["score_s"])
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Collect cards, floor and training log of ``run.dir`` into report.md, report.json and plots; print the table."""
    config = configure(arguments, ("run.dir",))
    if dry_run(arguments, config, [f"write {Path(config.run.dir) / 'report.md'} and report.json"]):
        return 0
    from ttt.data.encode import encode_example
    from ttt.data.read.examples import read_examples
    from ttt.eval.report import build_report, mask_of
    from ttt.text.tokenizer import TextTokenizer

    mask = None
    rule = getattr(config.objective, "mask", None)
    if rule is not None and config.eval.examples and config.data.tokenizer != "???":
        tokenizer = TextTokenizer.load(config.data.tokenizer)
        example = read_examples(config.eval.examples[0])[-1]
        stream = encode_example(example, tokenizer)
        mask = mask_of(rule, stream, tokenizer.vocab.pad_id, tokenizer.vocab.mask_id)
    floor = eval_folder(config) / "floor.json"
    text = build_report(config.run.dir, floor=floor if floor.is_file() else None, mask=mask)
    print(text)
    return 0
