"""Encode the recordings of a corpus as codes (text tokens: 'ttt tokenizer').

Writes data.dir/codes/SPLIT.jsonl for every split of data.splits, by data.jobs processes.  A call that was stopped goes on
where it was.  For array jobs: --shard 1/8 to 8/8, then once without.  For sound files that an examples file names, see
'ttt data encode'.
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path

from ttt.cli.common import add_common, configure, dry_run

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments, a share of the work, and what happens to bad recordings."""
    parser.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N",
        help="encode only part I of N of each split (for N machines); a last call without it joins the parts",
    )  # fmt: skip
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="leave recordings out that cannot be encoded, listed in codes/SPLIT.skipped.jsonl, not stop at the first",
    )  # fmt: skip
    add_common(parser)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, for example 3/8, got {text!r}")
    return int(match[1]) - 1, int(match[2])


def run(arguments: argparse.Namespace) -> int:
    """Encode the manifest of every split."""
    from ttt.audio.loading import half_precision, load_part
    from ttt.stage import Stage
    from ttt.tasks.encode_corpus import cut_into_parts, encode_manifest, one_at_a_time, remove_parts, skipped_path

    config = configure(arguments, ("codec", "data.corpus", "data.dir"))
    out = Path(config.data.dir) / "codes"
    manifests = [Path(config.data.corpus) / f"{split}.jsonl" for split in config.data.splits]
    if dry_run(arguments, config, [f"encode {manifest} -> {out / manifest.name}" for manifest in manifests]):
        return 0
    codec = load_part(config, "codec")
    parts = [cut_into_parts(manifest) for manifest in manifests]  # all are checked before the first is encoded
    with one_at_a_time(out, together=arguments.shard[1] > 1):
        for manifest, its_parts in zip(manifests, parts, strict=True):
            target = out / manifest.name
            settings = {"codec": codec.codec_id, **half_precision(codec), **({"skip_bad": True} if arguments.skip_bad else {})}
            marker = target.with_suffix(".done.json")
            stage = Stage(
                "tokenize", marker, [manifest], [target], settings, "make the corpus first", also=[skipped_path(target)]
            )
            if stage.is_done(arguments.overwrite):
                remove_parts(target)
                continue
            result = encode_manifest(
                manifest, codec, target, config.data.jobs, parts=its_parts, shard=arguments.shard, skip_bad=arguments.skip_bad,
                overwrite=arguments.overwrite,
            )  # fmt: skip
            if result is None:
                continue
            stage.finish(result)
            remove_parts(target)
            if "converted" in result:
                log.info("tokenize: %s: %s", manifest.stem, result["converted"])
            if result["skipped"]:
                log.warning("tokenize: %s: %d left out, see %s", manifest.stem, result["skipped"], skipped_path(target))
            log.info(
                "tokenize: %s: %d utterances, %.2f h; %.1f s of audio per second",
                manifest.stem, result["utterances"], result["hours"], result["audio_s_per_s"],
            )  # fmt: skip
    return 0
