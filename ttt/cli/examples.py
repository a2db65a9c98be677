"""Build a text tokenizer and training examples from a corpus and its codes.

Writes data.dir/tokenizer and data.dir/SPLIT.jsonl from data.corpus/SPLIT.items.jsonl and the codes of 'ttt tokenize'.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ttt.cli.common import add_common, configure, dry_run

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the tokenizer and the examples of every split."""
    from ttt.audio.loading import load_part
    from ttt.config.load import to_plain
    from ttt.registry.families import PATTERN
    from ttt.stage import Stage
    from ttt.tasks.prepare import prepare
    from ttt.text.forms import DEFAULT_FORM
    from ttt.text.vocab import FLATTEN

    config = configure(arguments, ("codec", "data.corpus", "data.dir"))
    data = config.data
    corpus, out = Path(data.corpus), Path(data.dir)
    pattern = PATTERN.build(data.pattern, "data.pattern")
    files = [out / f"{split}.jsonl" for split in data.splits]
    if dry_run(arguments, config, [f"build {file}" for file in files]):
        return 0
    codec = load_part(config, "codec")
    inputs = [out / "codes" / f"{split}.jsonl" for split in data.splits]
    inputs += [corpus / f"{split}.items.jsonl" for split in data.splits]
    settings = {"tasks": to_plain(config.tasks), "bpe_size": data.bpe_size, "codec": codec.codec_id}
    settings |= {"pattern": to_plain(pattern)} if pattern != FLATTEN else {}
    settings |= {"form": data.form} if data.form != DEFAULT_FORM else {}
    outputs = [*files, out / "tokenizer"]
    stage = Stage("examples", out / "examples.done.json", inputs, outputs, settings, "run 'ttt tokenize' first")
    if stage.is_done(arguments.overwrite):
        return 0
    report = prepare(corpus, data.splits, out, codec, config.tasks, data.bpe_size, data.form, pattern)
    stage.finish(report)
    for split in data.splits:
        log.info("examples: %s: %s", split, ", ".join(f"{k} {v}" for k, v in report[split].items()))
    return 0
