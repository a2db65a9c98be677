"""Show how an answer was decoded, call by call: in the terminal or as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which answer, how fast, onto what."""
    parser.add_argument("trace", metavar="TRACE", help="file that 'ttt generate --trace' wrote")
    parser.add_argument("--uid", default="", help="which answer (default: the first)")
    parser.add_argument("--list", action="store_true", help="name the answers of the file, then stop")
    parser.add_argument("--speed", type=float, default=8.0, metavar="X",
                        help="network calls shown a second (default 8; 0: no pause)")  # fmt: skip
    parser.add_argument("--png", default="", metavar="FILE", help="draw position x call to this file")
    parser.add_argument("--quiet", action="store_true", help="no animation (with --png)")
    parser.add_argument("--width", type=int, default=0, metavar="N", help="columns (default: the terminal's)")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="default: on a terminal, without NO_COLOR"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show one answer of a trace, or list all."""
    from ttt.inspection.replay import answers, replay
    from ttt.io.outputs import check_picture

    if arguments.list:
        print(*answers(arguments.trace), sep="\n")
        return 0
    if arguments.png:
        check_picture(Path(arguments.png), [Path(arguments.trace)])
    replay(
        arguments.trace, arguments.uid, speed=arguments.speed, width=arguments.width, color=arguments.color, png=arguments.png,
        quiet=arguments.quiet,
    )  # fmt: skip
    return 0
