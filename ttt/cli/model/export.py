"""Export a model for plain transformers, or in the official TtT layout.

Adapters are merged into their base on the way.
"""

from __future__ import annotations

import argparse
import logging

from ttt.cli.model import add_dtype_and_base, add_out, add_source, source_and_out

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where, whereto, in which layout."""
    add_source(parser)
    add_out(parser)
    parser.add_argument("--layout", default="hf", help="hf (default) | official")
    add_dtype_and_base(parser, "as stored")


def run(arguments: argparse.Namespace) -> int:
    """Export."""
    from ttt.model.merge import export_any

    source, out = source_and_out(arguments)
    export_any(source, out, arguments.layout, arguments.dtype, arguments.base, arguments.overwrite)
    log.info("model: %s -> %s", source, out)
    return 0
