"""``ttt data split | stats | show``: cut a file in two, measure lengths, look at examples as they are trained on."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.errors import ConfigError, DataError
from ttt.stage import Stage

if TYPE_CHECKING:
    from ttt.data.lengths import Lengths
    from ttt.types import TokenStream

log = logging.getLogger(__name__)
ROWS = (("tokens", "tokens"), ("targets", "learned"), ("speech", "codes"), ("seconds", "speech s"))
COLUMNS = ("n", "mean", "p50", "std", "min", "max", "p25", "p75", "p95", "p99")


def split(arguments: argparse.Namespace) -> int:
    """One JSONL -> training and evaluation files."""
    from ttt.data.split import split as run

    source, train, held_out = (Path(p) for p in (arguments.input, arguments.train, arguments.eval))
    settings = {"eval_ratio": arguments.eval_ratio, "seed": arguments.seed}
    marker = train.with_name(f"{train.name}.split.done.json")
    stage = Stage("data split", marker, [source], [train, held_out], settings, "name the JSONL to split")
    if stage.is_done(arguments.overwrite):
        return 0
    started = time.perf_counter()
    counts = run(source, train, held_out, arguments.eval_ratio, arguments.seed)
    stage.finish(counts, time.perf_counter() - started)
    log.info("split: %d lines -> %s, %d lines -> %s", counts["train"], train, counts["eval"], held_out)
    return 0


def stats(arguments: argparse.Namespace) -> int:
    """Lengths of examples, what contexts would cost, a histogram."""
    from ttt.data.lengths import measure
    from ttt.data.pack import Settings
    from ttt.text.tokenizer import TextTokenizer

    if min([arguments.jobs, *arguments.context]) < 1 or arguments.limit < 0:
        raise ConfigError("--jobs and --context must be >= 1 and --limit >= 0")
    if arguments.png and Path(arguments.png).suffix != ".png":
        raise ConfigError(f"--png: name a .png file, got {arguments.png!r}")
    rate = 0.0
    if arguments.tokenizer:
        vocab = TextTokenizer.load(arguments.tokenizer).vocab
        rate = vocab.frame_rate_hz * vocab.num_codebooks
    settings = Settings(arguments.tokenizer, literal_specials=arguments.literal_specials)
    found = measure(arguments.inputs, settings, jobs=arguments.jobs, limit=arguments.limit)
    print(
        json.dumps(found.as_json(arguments.context, rate), indent=1)
        if arguments.json
        else _page(found, arguments.context, rate)
    )
    for reason, n in found.bad.most_common():
        log.warning("stats: %d records cannot be used: %s; first: %s", n, reason, found.first_bad[reason])
    if arguments.png:
        from ttt.inspection.length_plot import length_histogram

        title = f"{', '.join(Path(p).name for p in arguments.inputs)}: {len(found.tokens):,} examples"
        length_histogram(found.tokens, arguments.png, arguments.context, title=title)
        log.info("stats: histogram -> %s", arguments.png)
    return 0


def _page(found: Lengths, contexts: list[int], codes_hz: float) -> str:
    from ttt.data.lengths import context

    numbers = found.as_json((), codes_hz)
    lines = ["".join([f"{'':9}", *(f"{'median' if c == 'p50' else c:>9}" for c in COLUMNS)])]
    for key, name in ROWS:
        if key in numbers:
            digits = 2 if key == "seconds" else 0
            cells = (f"{numbers[key][c]:9.{0 if c == 'n' else digits}f}" for c in COLUMNS)
            lines.append("".join([f"{name:9}", *cells]))
    lines.append(f"{numbers['tokens']['sum']:,} tokens, {numbers['targets']['sum']:,} of them learned")
    return "\n".join([*lines, *(context(found.tokens, c).line() for c in contexts)])


def show(arguments: argparse.Namespace) -> int:
    """Examples, decoded, with the borders of what is learned."""
    from ttt.data.show import page
    from ttt.text.tokenizer import TextTokenizer

    if arguments.limit < 1:
        raise ConfigError(f"--limit: must be >= 1, got {arguments.limit}")
    tokenizer = TextTokenizer.load(arguments.tokenizer)
    color = arguments.color == "always" or (
        arguments.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )
    wanted, shown = set(arguments.uid), 0
    for stream in _streams(Path(arguments.input), tokenizer, arguments.prompt_rule, arguments.literal_specials):
        if arguments.uid and stream.uid not in wanted:
            continue
        print(("\n" if shown else "") + page(stream, tokenizer, color))
        shown += 1
        wanted.discard(stream.uid)
        if not wanted if arguments.uid else shown >= arguments.limit:
            break
    if wanted or not shown:
        raise DataError(f"{arguments.input}: no example{f' called {sorted(wanted)[0]!r}' if wanted else ''}")
    return 0


def _streams(path: Path, tokenizer, prompt_rule: str, literal_specials: bool) -> Iterator[TokenStream]:
    """Token streams of a file, a store or the sources of a mix, one at a time."""
    from ttt.data.formats import example_of
    from ttt.data.mix import check_store, sources_of
    from ttt.data.records import raw_records
    from ttt.data.spans import encode_example
    from ttt.data.store import Store, is_store

    for source in sources_of(path):
        if is_store(source.path):
            store = Store(source.path)
            check_store(store, tokenizer, prompt_rule)
            yield from store
            continue
        for where, raw in raw_records(source.path):
            example = example_of(where, raw, source.name)
            yield encode_example(example, tokenizer, prompt_rule=prompt_rule, literal_specials=literal_specials)
