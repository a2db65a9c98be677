"""Encode the recordings of a corpus as codes (text tokens: 'ttt tokenizer').

Writes data.dir/codes/SPLIT.jsonl for every split of data.splits.  For sound files that an examples file names, see
'ttt data encode'.
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
    """Encode the manifest of every split."""
    from ttt.stage import Stage
    from ttt.tasks.prepare import encode_manifest

    config = configure(arguments, ("codec", "data.corpus", "data.dir"))
    out = Path(config.data.dir) / "codes"
    manifests = [Path(config.data.corpus) / f"{split}.jsonl" for split in config.data.splits]
    if dry_run(arguments, config, [f"encode {manifest} -> {out / manifest.name}" for manifest in manifests]):
        return 0
    codec = config.codec.load()
    for manifest in manifests:
        target = out / manifest.name
        settings = {"codec": codec.codec_id}
        marker = target.with_suffix(".done.json")
        stage = Stage("tokenize", marker, [manifest], [target], settings, "make the corpus first")
        if stage.is_done(arguments.overwrite):
            continue
        result = encode_manifest(manifest, codec, target, config.data.jobs)
        stage.finish(result)
        speed = result["per_second"]
        if "converted" in result:
            log.info("tokenize: %s: %s", manifest.stem, result["converted"])
        log.info("tokenize: %s: %d utterances, %.0f per second", manifest.stem, result["utterances"], speed)
    return 0
