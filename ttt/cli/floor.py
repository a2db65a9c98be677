"""Measure the judge's error on true recordings, plain and through the codec.

Writes eval.out/floor.json from the test splits of data.corpus; 'ttt report' shows it beside the scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ttt.cli.common import add_common, configure, dry_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Transcribe recordings and their resynthesis; write error rates."""
    from ttt.audio.loading import load_part
    from ttt.errors import ConfigError, DataError
    from ttt.eval.measure_floor import measure_floor
    from ttt.stage import Stage

    config = configure(arguments, ("codec", "judge", "data.corpus", "eval.out"))
    if not config.eval.out:
        raise ConfigError("eval.out: missing; name the folder the floor is written to")
    corpus, out = Path(config.data.corpus), Path(config.eval.out)
    manifests = [corpus / f"{split}.jsonl" for split in config.data.splits if split.startswith("test")]
    if not manifests:
        raise DataError("data.splits: no test split to measure the floor on")
    if dry_run(arguments, config, [f"transcribe {m} and its resynthesis" for m in manifests]):
        return 0
    codec, judge = load_part(config, "codec"), load_part(config, "judge")
    limit, target = config.eval.limit, out / "floor.json"
    also = [out / "floor.items.jsonl"]
    settings = {"codec": codec.codec_id, "judge": judge.judge_id, "limit": limit}
    stage = Stage("floor", out / "floor.done.json", manifests, [target], settings, "make the corpus first", also=also)
    if not stage.is_done(arguments.overwrite):
        stage.finish(measure_floor(manifests, codec, judge, config.eval.normalizer, target, limit))
    return 0
