"""Pack examples into a store of tokens that training maps into memory."""

from __future__ import annotations

import argparse
import functools
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ttt.cli.common import add_common
from ttt.cli.data.check import add_jobs, add_tokenizer
from ttt.cli.data.convert import add_skip_bad

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is packed, how, whereto."""
    parser.add_argument(
        "inputs", nargs="+", metavar="DATA", help="examples (.jsonl, .json, .parquet), stores or a mix .json"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the store")
    parser.add_argument("--prompt-rule", default="labels", help="what may be noised: labels (default) | official")
    parser.add_argument(
        "--shard-tokens", type=int, default=1 << 26, metavar="N", help="tokens of a shard (default 2^26)"
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="FIELD=VALUE,...",
        help="pack only records whose field (or meta field) has one of these values, as data.keep",
    )  # fmt: skip
    add_tokenizer(parser, required=True)
    add_jobs(parser)
    add_skip_bad(parser)
    add_common(parser, "overwrite")


def run(arguments: argparse.Namespace) -> int:
    """Pack, and report what was skipped."""
    from ttt.data.sources.build_store import Settings, pack
    from ttt.data.sources.mix import Source, is_mix, named, sources_of
    from ttt.data.sources.store import STORE_FILES, is_store
    from ttt.errors import ConfigError
    from ttt.io.outputs import check_replaced_folder, holds_only
    from ttt.stage import Stage

    out = Path(arguments.out)
    sources: list[Source] = [s for path in arguments.inputs for s in sources_of(path)]
    if len(arguments.inputs) > 1:
        sources = named(sources)
    keep = {}
    for text in arguments.keep:
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise ConfigError(f"--keep: must be FIELD=VALUE,VALUE, got {text!r}")
        keep[name] = values.split(",")
    settings = Settings(arguments.tokenizer, arguments.prompt_rule, arguments.literal_specials, keep)
    if arguments.jobs < 1 or arguments.shard_tokens < 1:
        raise ConfigError("--jobs and --shard-tokens must be >= 1")
    inputs = [*dict.fromkeys([*(Path(p) for p in arguments.inputs if is_mix(p)), *(s.path for s in sources)])]
    inputs = [*inputs, Path(arguments.tokenizer)]
    decisive: dict[str, Any] = {**asdict(settings), "skip_bad": arguments.skip_bad, "shard_tokens": arguments.shard_tokens}
    if not keep:  # stores of older versions stay done
        del decisive["keep"]
    decisive["sources"] = [[s.name, s.ratio] for s in sources]
    is_ours = functools.partial(holds_only, names=STORE_FILES)
    check_replaced_folder(out, inputs, lambda path: is_store(path) and is_ours(path), "'ttt data pack'", overwrite=True)
    marker = out.with_name(f"{out.name}.pack.done.json")
    stage = Stage("data pack", marker, inputs, [out / "store.json"], decisive, named=True)
    if stage.is_done(arguments.overwrite):
        return 0
    store, report = pack(
        sources, out, settings, jobs=arguments.jobs, skip_bad=arguments.skip_bad, shard_tokens=arguments.shard_tokens
    )
    tokens, shards = store.about["tokens"], len(store.about["shards"])
    stage.finish({"examples": len(store), "tokens": tokens, "skipped": dict(report.bad)}, report.seconds)
    for reason, n in report.bad.most_common():
        log.warning("pack: %d skipped: %s; first: %s", n, reason, report.first_bad[reason])
    speed = len(store) / max(report.seconds, 1e-9)
    log.info(
        "pack: %d examples, %d tokens in %d shards, %.1f s (%.0f examples/s) -> %s",
        len(store), tokens, shards, report.seconds, speed, out,
    )  # fmt: skip
    return 0
