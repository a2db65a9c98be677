"""Encode the sound files of an examples file (a corpus: 'ttt tokenize')."""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

from ttt.cli.common import add_common, configure
from ttt.cli.data.convert import add_skip_bad

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which file, which codec."""
    parser.add_argument("input", metavar="INPUT", help="examples .jsonl with sound files")
    parser.add_argument("output", metavar="OUTPUT", help="examples .jsonl with codes")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="sound files encoded together (default 32)")
    add_skip_bad(parser)
    add_common(
        parser, "overwrite", "plugins", settings="settings over the files, e.g. codec.path=DIR",
        config="recipe YAML that names the codec",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Encode, and report what was skipped."""
    from ttt.audio.loading import half_precision, load_part
    from ttt.config.load import to_plain
    from ttt.data.convert.core import Report, write_records
    from ttt.data.convert.encode import encode_records
    from ttt.errors import ConfigError
    from ttt.stage import Stage

    config = configure(arguments, ("codec",))
    source, out = Path(arguments.input), Path(arguments.output)
    if out.suffix != ".jsonl" or out.resolve() == source.resolve():
        raise ConfigError(f"{out}: name another .jsonl file to write")
    codec = load_part(config, "codec")
    fields = {key: value for key, value in to_plain(config.codec).items() if key not in ("device", "dtype")}
    settings = {"codec": codec.codec_id, "skip_bad": arguments.skip_bad, "fields": fields, **half_precision(codec)}
    marker = out.with_suffix(".encode.done.json")
    stage = Stage("data encode", marker, [source], [out], settings, "run 'ttt data convert' first", named=True)
    if stage.is_done(arguments.overwrite):
        return 0
    report = Report()
    write_records(encode_records(source, codec, report, batch=arguments.batch, skip_bad=arguments.skip_bad), out)
    report.seconds = stage.seconds
    stage.finish({**asdict(report), "skipped": dict(report.skipped), "codec": codec.codec_id})
    for message in report.first_skipped.values():
        log.warning("skipped, for example: %s", message)
    log.info("encode: %s -> %s: %s", source, out, report.summary())
    return 0
