"""Talk to a trained model: history, text and speech as they come, settings.

Lines come from the terminal or from a pipe; /help lists the commands.
"""

from __future__ import annotations

import argparse

from ttt.cli.common import add_common, add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """With whom, where sound goes."""
    add_run(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    parser.add_argument("--task", default="", metavar="NAME", help="take the system message of this task of the run")
    parser.add_argument("--out", default="", metavar="DIR", help="write every answer there: turn-NNN .json, .wav, .tokens.json")
    parser.add_argument("--play", default="", metavar="COMMAND",
                        help="run this with the wav of each spoken answer, e.g. 'aplay -q'; "
                             "with - at its end it gets the sound while the answer is written: 'aplay -q -'")  # fmt: skip
    parser.add_argument("--room", type=int, default=0, metavar="TOKENS", help="most tokens of history and answer")
    parser.add_argument("--single", action="store_true", help="every question by itself: for models trained on one turn")
    parser.add_argument("--raw", action="store_true", help="no template: base models go on with your text")
    add_common(parser, dry_run="print the resolved configuration, then stop")


def run(arguments: argparse.Namespace) -> int:
    """Talk until the input ends."""
    from ttt.api import open_run
    from ttt.chat.open import open_chat
    from ttt.cli.common import dry_run

    config, folder = open_run(arguments.run, arguments.overrides, arguments.config, arguments.plugins)
    if dry_run(arguments, config, [f"load {folder}", "answer the lines of standard input"]):
        return 0
    return open_chat(
        config, folder, out=arguments.out, player=arguments.play, room=arguments.room, single=arguments.single,
        raw=arguments.raw, system=arguments.system, task=arguments.task,
    )  # fmt: skip
