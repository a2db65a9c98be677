"""Write the untrained model that a recipe's training would start from.

For a baseline, or to look at its new rows.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ttt.cli.common import add_common, configure
from ttt.cli.model import add_out

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recipe, whereto."""
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="a recipe; data.tokenizer must be there")
    add_out(parser)
    add_common(parser, "plugins", settings="settings over the recipe")


def run(arguments: argparse.Namespace) -> int:
    """Make and write."""
    from ttt.api import start_model
    from ttt.audio.loading import load_part
    from ttt.model.official import check_out, written_aside
    from ttt.text.tokenizer import TextTokenizer

    out = Path(arguments.out)
    arguments.config = [arguments.recipe]
    config = configure(arguments, ("data.tokenizer",))
    sources = [Path(p) for p in (arguments.recipe, config.data.tokenizer, config.model.path) if p]
    check_out(out, arguments.overwrite, sources)  # before weights are drawn
    tokenizer = TextTokenizer.load(config.data.tokenizer)
    codec = load_part(config, "codec")
    model = start_model(config, tokenizer, codec)
    with written_aside(out, arguments.overwrite, sources) as partial:
        model.save(partial)
    log.info("model: %s -> %s: %d ids, seed %d", arguments.recipe, out, tokenizer.vocab.size, config.run.seed)
    return 0
