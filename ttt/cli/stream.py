"""Ask a model and hear it while it answers; wavs piece by piece, latency percentiles."""

from __future__ import annotations

import argparse
from pathlib import Path

from ttt.errors import ConfigError


def stream(arguments: argparse.Namespace) -> int:
    """Ask one question at a time."""
    from ttt.api import load
    from ttt.audio.streaming import CHUNK_FRAMES
    from ttt.chat.streaming import RESULTS, parse_chunks, questions_of, stream_questions

    chunks = parse_chunks(arguments.chunks) if arguments.chunks else CHUNK_FRAMES
    if arguments.warmup < 0 or arguments.limit < 0:
        raise ConfigError(f"--warmup and --limit must be >= 0, got {arguments.warmup} and {arguments.limit}")
    if bool(arguments.text) + bool(arguments.wav) + bool(arguments.examples) > 1:
        raise ConfigError("--text, --wav and --examples exclude each other; give one of them")
    if arguments.task and not (arguments.text or arguments.wav):
        raise ConfigError("--task goes with --text or --wav; examples have their own tasks")
    out = Path(arguments.out) if arguments.out else None
    if out is not None and (out / RESULTS).exists() and not arguments.overwrite:
        raise ConfigError(f"{out}: holds the answers of an earlier call; give --overwrite, or another --out")
    needs_codec = bool(arguments.wav) or not arguments.no_sound
    model = load(
        arguments.run, *arguments.overrides, config=arguments.config, plugins=arguments.plugins, sound=needs_codec
    )  # fmt: skip
    if arguments.text:
        questions = [("text", arguments.text)]
    elif arguments.wav:
        questions = [(Path(arguments.wav).stem, Path(arguments.wav))]
    else:
        questions = questions_of(model, arguments.examples, arguments.limit)
    print(stream_questions(
        model, questions, task=arguments.task, chunks=() if arguments.no_sound else chunks, warmup=arguments.warmup, out=out,
        quiet=arguments.report,
    ))  # fmt: skip
    return 0
