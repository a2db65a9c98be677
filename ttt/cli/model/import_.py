"""Import a published folder: LLaDA, Dream, or the official TtT layout.

Tensors get the names of transformers' own classes; no code of the folder is run.
"""

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
    """Write a model folder of this toolkit."""
    from ttt.model.published import import_any

    source, out = source_and_out(arguments)
    vocab = import_any(source, out, arguments.overwrite).vocab
    log.info("model: %s -> %s: %d ids, %d codes, mask %d", source, out, vocab.size, vocab.num_codes, vocab.mask_id)
    return 0
