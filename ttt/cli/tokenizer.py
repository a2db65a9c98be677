"""Make a text tokenizer with audio tokens (recordings to codes: 'ttt tokenize').

Extends the tokenizer of model.path by the audio tokens of data.form.  Architectures without a backbone get a small
tokenizer of bytes, template words and audio tokens.  'ttt examples' makes its own, from the texts of the corpus.
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
    """Make the tokenizer and save it."""
    from ttt.audio.loading import load_part
    from ttt.stage import Stage
    from ttt.text.make import plan_tokenizer

    config = configure(arguments, ("data.tokenizer",))
    out = Path(config.data.tokenizer)
    plan = plan_tokenizer(config)
    if dry_run(arguments, config, [f"extend {plan.source} -> {out}" if plan.source else f"make {out}"]):
        return 0
    plan = plan.for_codec(load_part(config, "codec"))
    sources = [] if plan.source is None else [plan.source]
    also = [out / "tokenizer_config.json", out / "vocab.json"]
    hint = "name a folder with tokenizer.json"
    stage = Stage("tokenizer", out / "tokenizer.done.json", sources, [out / "tokenizer.json"], plan.settings(), hint, also=also)
    if stage.is_done(arguments.overwrite):
        return 0
    made = plan.make()
    made.save(out)
    stage.finish({"vocabulary": made.vocab.size})
    v = made.vocab
    codes = f"codes {v.code_start} .. {v.code_stop - 1}" if v.num_codes else f"text alone, mask {v.mask_id}"
    log.info("tokenizer: %d ids, %s", v.size, codes)
    return 0
