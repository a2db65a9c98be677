"""Measure lengths in tokens: a table, what a context would cut, a histogram.

Of rows that are not converted yet: what each column holds.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ttt.cli.data.check import add_inputs, add_jobs, add_tokenizer

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which files, which contexts, in which form."""
    add_inputs(parser)
    parser.add_argument(
        "--context",
        type=int,
        nargs="+",
        default=[1024, 2048],
        metavar="N",
        help="longest rows to report on (default 1024 2048)",
    )
    parser.add_argument("--png", default="", metavar="FILE", help="draw a histogram of lengths to this file")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="first N examples of each file only")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON")
    add_tokenizer(parser)
    add_jobs(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from ttt.data.reports.lengths import measure
    from ttt.data.reports.raw import columns_page, header, raw_and_examples
    from ttt.data.reports.text import lengths_page
    from ttt.data.sources.build_store import Settings
    from ttt.errors import ConfigError
    from ttt.io.outputs import check_picture
    from ttt.text.tokenizer import TextTokenizer

    if min([arguments.jobs, *arguments.context]) < 1 or arguments.limit < 0:
        raise ConfigError("--jobs and --context must be >= 1 and --limit >= 0")
    raw, inputs = raw_and_examples(arguments.inputs)
    for path in raw:
        print(header(path) + "\n" + columns_page(path, arguments.limit)[0])
    if not inputs:
        if arguments.png or arguments.json:
            raise ConfigError("--png, --json: lengths in tokens are those of examples; convert the rows first ('ttt data convert')")
        return 0
    if arguments.png and Path(arguments.png).suffix != ".png":
        raise ConfigError(f"--png: name a .png file, got {arguments.png!r}")
    if arguments.png:
        check_picture(Path(arguments.png), inputs)
    codes_hz = 0.0
    if arguments.tokenizer:
        vocab = TextTokenizer.load(arguments.tokenizer).vocab
        codes_hz = vocab.frame_rate_hz * vocab.num_codebooks
    settings = Settings(arguments.tokenizer, literal_specials=arguments.literal_specials)
    lengths = measure(inputs, settings, jobs=arguments.jobs, limit=arguments.limit)
    if arguments.json:
        print(json.dumps(lengths.as_json(arguments.context, codes_hz), indent=1))
    else:
        print(lengths_page(lengths, arguments.context, codes_hz))
    for reason, n in lengths.bad.most_common():
        log.warning("stats: %d records cannot be used: %s; first: %s", n, reason, lengths.first_bad[reason])
    if arguments.png:
        from ttt.inspection.length_plot import length_histogram

        title = f"{', '.join(p.name for p in inputs)}: {len(lengths.tokens):,} examples"
        length_histogram(lengths.tokens, arguments.png, arguments.context, title=title)
        log.info("stats: histogram -> %s", arguments.png)
    return 0
