"""Write a recipe folder that runs as it is."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it is called, where it goes, what it starts from."""
    parser.add_argument("name", metavar="NAME", help="small letters, digits and underscores")
    parser.add_argument("dir", metavar="DIR", help="folder to make; must be new or empty")
    parser.add_argument(
        "--from", dest="source", default="ttt", metavar="KIND", help="ttt (default) | dual_stream | ar | nar | llada"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the folder; say how to go on."""
    from ttt.scaffold.recipe import write_recipe

    folder = Path(arguments.dir)
    files = write_recipe(arguments.name, arguments.source, folder)
    print(f"wrote {folder}: {', '.join(files)}")
    print(f"  ttt config --config {folder / 'conf/base.yaml'}\n  {folder / 'run.sh'}")
    return 0
