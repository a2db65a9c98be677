"""Answer the prompts of example files.

Writes eval.out/NAME.generations.jsonl for every file of eval.examples; 'ttt score' scores them.  Every answer is written
down as soon as it has ended (NAME.generations.jsonl.partial): after an interruption, the same command goes on from there.
Under torchrun, the processes share the prompts of each file and write one file together.
"""

from __future__ import annotations

import argparse

from ttt.cli.common import add_common, configure, dry_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is written beside the answers."""
    parser.add_argument("--trace", action="store_true", help="write every step of decoding too (for 'ttt replay')")
    parser.add_argument("--wav", action="store_true", help="write the sound of each spoken answer to NAME.wavs (needs codec=)")
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer, one file after the other."""
    from ttt.eval.inputs import generation_files

    config = configure(arguments, ("run.dir", "eval.examples"))
    targets = generation_files(config)
    if dry_run(arguments, config, [f"answer {path} -> {target}" for path, target in targets.items()]):
        return 0
    from ttt.answering import answer_files

    answer_files(config, targets, trace=arguments.trace, wav=arguments.wav, overwrite=arguments.overwrite)
    return 0
