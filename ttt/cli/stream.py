"""Ask a model and hear it while it answers: wavs in pieces, latency percentiles."""

from __future__ import annotations

import argparse
from pathlib import Path

from ttt.cli.common import add_common, add_run
from ttt.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked of which run, in which pieces, and what is written."""
    add_run(parser)
    parser.add_argument("--examples", nargs="+", default=[], metavar="FILE",
                        help="prompts of example files (default: eval.examples)")  # fmt: skip
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="prompts of each task and file (default 0: all)")
    parser.add_argument("--text", default=None, metavar="WORDS", help="one question in text instead of examples")
    parser.add_argument("--wav", default=None, metavar="FILE", help="one spoken question instead of examples")
    parser.add_argument("--task", default="", help="with --text or --wav: the task whose system message is used")
    parser.add_argument("--system", default="", metavar="TEXT", help="with --text or --wav: system message")
    parser.add_argument("--chunks", default="", metavar="N,N,...",
                        help="codes of each piece of sound, the last size goes on (default 25,50,100,150,200)")  # fmt: skip
    parser.add_argument("--no-sound", action="store_true", help="text and codes only; needs no codec")
    parser.add_argument("--out", default="", metavar="DIR", help="write wavs, piece by piece and whole, and stream.json here")
    parser.add_argument("--warmup", type=int, default=1, metavar="N",
                        help="first prompts asked once before, untimed (default 1)")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="no transcript: the table of latencies only")
    add_common(parser, overwrite="write over what an earlier call wrote to --out")


def run(arguments: argparse.Namespace) -> int:
    """Ask one question at a time."""
    from ttt.api import load
    from ttt.audio.streaming import CHUNK_FRAMES
    from ttt.chat.streaming import check_out, parse_chunks, questions_of, stream_questions

    chunks = parse_chunks(arguments.chunks) if arguments.chunks else CHUNK_FRAMES
    if arguments.warmup < 0 or arguments.limit < 0:
        raise ConfigError(f"--warmup and --limit must be >= 0, got {arguments.warmup} and {arguments.limit}")
    for name in ("text", "wav"):
        if getattr(arguments, name) is not None and not getattr(arguments, name).strip():
            raise ConfigError(f"--{name}: is empty; give the question")
    if bool(arguments.text) + bool(arguments.wav) + bool(arguments.examples) > 1:
        raise ConfigError("--text, --wav and --examples exclude each other; give one of them")
    if (arguments.task or arguments.system) and not (arguments.text or arguments.wav):
        option = "--task" if arguments.task else "--system"
        raise ConfigError(f"{option} goes with --text or --wav; examples have their own")
    out = Path(arguments.out) if arguments.out else None
    if out is not None:
        check_out(out, arguments.overwrite)
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
        model, questions, task=arguments.task, system=arguments.system,
        chunks=() if arguments.no_sound else chunks, warmup=arguments.warmup, out=out,
        quiet=arguments.report,
    ))  # fmt: skip
    return 0
