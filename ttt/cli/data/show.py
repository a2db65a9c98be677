"""Show examples decoded, learned tokens marked (with the mask: 'ttt show')."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ttt.cli.common import add_color, wants_color
from ttt.cli.data.check import add_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which examples of which file."""
    parser.add_argument("input", metavar="DATA", help="examples (.jsonl, .json, .parquet), a store or a mix")
    parser.add_argument(
        "--uid", action="append", default=[], help="this example (may be repeated; default: the first ones)"
    )
    parser.add_argument("--limit", type=int, default=1, metavar="N", help="how many examples without --uid (default 1)")
    parser.add_argument("--prompt-rule", default="labels", help="the run's data.prompt_rule (default labels)")
    add_color(parser)
    add_tokenizer(parser, required=True)


def run(arguments: argparse.Namespace) -> int:
    """Print the examples, one after another."""
    from ttt.data.reports.show import page, streams_of
    from ttt.errors import ConfigError, DataError
    from ttt.io.terminal import own_codes
    from ttt.text.tokenizer import TextTokenizer

    if arguments.limit < 1:
        raise ConfigError(f"--limit: must be >= 1, got {arguments.limit}")
    tokenizer = TextTokenizer.load(arguments.tokenizer)
    color = wants_color(arguments)
    missing, shown = set(arguments.uid), 0
    for stream in streams_of(Path(arguments.input), tokenizer, arguments.prompt_rule, arguments.literal_specials):
        if arguments.uid and stream.uid not in missing:
            continue
        print(("\n" if shown else "") + page(stream, tokenizer, color), file=own_codes(sys.stdout))
        shown += 1
        missing.discard(stream.uid)
        if not missing if arguments.uid else shown >= arguments.limit:
            break
    if missing or not shown:
        raise DataError(f"{arguments.input}: no example{f' called {sorted(missing)[0]!r}' if missing else ''}")
    return 0
