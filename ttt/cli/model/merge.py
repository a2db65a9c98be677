"""Merge adapters and new rows into their base: a whole model folder."""

from __future__ import annotations

import argparse
import logging

from ttt.cli.model import add_dtype_and_base, add_out, add_source, source_and_out

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where, whereto."""
    add_source(parser)
    add_out(parser)
    add_dtype_and_base(parser, "float32")


def run(arguments: argparse.Namespace) -> int:
    """Merge."""
    from ttt.model.merge import merge

    source, out = source_and_out(arguments)
    merge(source, out, arguments.dtype, arguments.base, arguments.overwrite)
    log.info("model: %s -> %s", source, out)
    return 0
