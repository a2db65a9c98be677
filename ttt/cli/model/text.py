"""Cut a model down to its text part: tables and tokenizer without speech."""

from __future__ import annotations

import argparse
import logging

from ttt.cli.model import add_out, add_source, source_and_out

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where, whereto."""
    add_source(parser)
    add_out(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the text model."""
    from ttt.model.official import written_aside
    from ttt.model.text_export import save_text_model

    source, out = source_and_out(arguments)
    with written_aside(out, arguments.overwrite, [source]) as partial:
        tokens = save_text_model(source, partial)
    log.info("model: %s -> %s: %d text tokens", source, out, tokens)
    return 0
