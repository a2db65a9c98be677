"""How an answer was decoded, call by call: in the terminal, as a picture."""

from __future__ import annotations

import argparse


def replay(arguments: argparse.Namespace) -> int:
    """Show one answer of a trace."""
    from ttt.inspection.replay import answers
    from ttt.inspection.replay import replay as show

    if arguments.list:
        print(*answers(arguments.trace), sep="\n")
        return 0
    show(
        arguments.trace, arguments.uid, speed=arguments.speed, width=arguments.width, color=arguments.color, png=arguments.png,
        quiet=arguments.quiet,
    )  # fmt: skip
    return 0
