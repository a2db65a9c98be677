"""Show what a model folder holds: sizes, types, vocabulary, adapters."""

from __future__ import annotations

import argparse
import json

from ttt.cli.model import add_source, source_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which folder."""
    add_source(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    from ttt.model.facts import as_text, facts

    contents = facts(source_of(arguments))
    print(json.dumps(contents, indent=1) if arguments.json else as_text(contents))
    return 0
