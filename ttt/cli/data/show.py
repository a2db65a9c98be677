"""Show examples decoded, learned tokens marked (with the mask: 'ttt show').

Rows that are not converted yet, and any file without --tokenizer, are shown as they lie: number of rows, columns, then rows.
"""

from __future__ import annotations

import argparse
import sys

from ttt.cli.common import add_color, wants_color
from ttt.cli.data.check import add_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which examples of which file."""
    parser.add_argument("input", metavar="DATA", help="examples (a file, a store, a mix), or rows of another format")
    parser.add_argument(
        "--uid", action="append", default=[], help="this example (may be repeated; default: the first ones)"
    )
    parser.add_argument("--limit", type=int, default=1, metavar="N", help="how many examples without --uid (default 1)")
    parser.add_argument("--prompt-rule", default="labels", help="the run's data.prompt_rule (default labels)")
    add_color(parser)
    add_tokenizer(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the examples, one after another."""
    from ttt.data.convert.core import inputs_of
    from ttt.data.reports.raw import header, is_raw, rows_page
    from ttt.data.reports.show import page, streams_of
    from ttt.data.sources.store import is_store
    from ttt.errors import ConfigError, DataError
    from ttt.io.terminal import own_codes
    from ttt.text.tokenizer import TextTokenizer

    if arguments.limit < 1:
        raise ConfigError(f"--limit: must be >= 1, got {arguments.limit}")
    path = inputs_of(arguments.input)[0]
    if is_raw(path) or (not arguments.tokenizer and path.exists() and not is_store(path)):
        if arguments.uid:
            raise ConfigError(f"--uid: {path} is shown row by row; convert it first, or name its --tokenizer")
        print(header(path) + "\n" + rows_page(path, arguments.limit))
        return 0
    if not arguments.tokenizer:
        raise ConfigError(f"--tokenizer: missing; {path} holds tokens, name the folder with their tokenizer.json")
    tokenizer = TextTokenizer.load(arguments.tokenizer)
    color = wants_color(arguments)
    missing, shown = set(arguments.uid), 0
    for stream in streams_of(path, tokenizer, arguments.prompt_rule, arguments.literal_specials):
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
