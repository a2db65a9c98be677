"""Answer the prompts of example files.

Writes eval.out/NAME.generations.jsonl for every file of eval.examples; 'ttt score' scores them.  Every answer is written
down as soon as it has ended (NAME.generations.jsonl.partial): after an interruption, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ttt.cli.common import add_common, configure, dry_run

if TYPE_CHECKING:

    from ttt.eval.partial import PartialAnswers
    from ttt.sampling.trace.record import Tracer
    from ttt.stage import Stage

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is written beside the answers."""
    parser.add_argument("--trace", action="store_true", help="write every step of decoding too (for 'ttt replay')")
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer, one file after the other."""
    from ttt.api import decode_settings, model_folder
    from ttt.eval.inputs import generation_files, read_files, settings_of
    from ttt.stage import Stage

    config = configure(arguments, ("run.dir", "eval.examples"))
    targets = generation_files(config)
    if dry_run(arguments, config, [f"answer {path} -> {target}" for path, target in targets.items()]):
        return 0
    folder = model_folder(config.eval.checkpoint or config.run.dir)
    settings = settings_of(config)
    jobs = []
    for path, target in targets.items():
        trace = target.with_name(f"{path.stem}.trace.jsonl")
        outputs = [target, trace] if arguments.trace else [target]
        stage = Stage("generate", target.with_suffix(".done.json"), [path, folder], outputs, settings, also=[trace])
        if not stage.is_done(arguments.overwrite):
            jobs.append((path, target, trace, stage))
    if not jobs:
        return 0
    from ttt.api import open_model
    from ttt.eval.generate import forced_statistics
    from ttt.eval.generate import generate as generate_answers
    from ttt.eval.partial import PartialAnswers
    from ttt.io.atomic import write_json_lines
    from ttt.sampling.decoder.decoder import Decoder
    from ttt.sampling.trace.record import Tracer, TraceRecord, header, write_trace

    tasks = {task.label: task for task in config.tasks}
    files = read_files(config.eval.examples, config.eval.limit, tasks)
    with contextlib.ExitStack() as opened:
        answered = [
            opened.enter_context(
                PartialAnswers(target, stage.state, restart=arguments.overwrite, traced=arguments.trace)
            )
            for _, target, _, stage in jobs
        ]
        model = open_model(config, folder)
        decoder = Decoder(model, config.objective.mask, config.eval.sampler, decode_settings(config))
        for (path, target, trace, stage), answers in zip(jobs, answered, strict=True):
            examples, started = files[path], time.perf_counter()
            tracer = Tracer() if arguments.trace else None
            keep = partial(_keep, answers, tracer, stage)
            records = generate_answers(
                decoder, examples, tasks, config.eval.batch_size, tracer, done=answers.records, on_record=keep
            )
            if config.eval.forced:
                statistics = forced_statistics(model, config.objective, examples, model.tokenizer, config.run.seed)
                records = [{**record, "forced": forced} for record, forced in zip(records, statistics, strict=True)]
            write_json_lines(target, records)
            trace.unlink(missing_ok=True)  # an older one would be of other answers
            if tracer is not None:
                head = header(model.tokenizer, config.eval.sampler, settings)
                traces = [TraceRecord.from_json(answers.traces[e.uid], str(answers.path)) for e in examples]
                write_trace(trace, head, traces)
            seconds = time.perf_counter() - started
            stage.finish({"items": len(records), "seconds": seconds}, seconds)
            answers.remove()
            log.info("generate: %s: %d answers in %.1f s", path.stem, len(records), seconds)
    return 0


def _keep(answers: PartialAnswers, tracer: Tracer | None, stage: Stage, record: dict[str, Any]) -> None:
    """Write an answer down as soon as it has ended; with the first one, older generations are no longer the result."""
    if answers.is_new:
        stage.reopen()
    answers.add(record, tracer.records[record["uid"]] if tracer is not None else None)
