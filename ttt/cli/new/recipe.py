"""Write a recipe folder: a published method's, or a toy that runs as it is.

--from llada writes pretrain, sft, tts and mixed configurations with their comments (likewise ttt, audiolm, slamomni).
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it is called, where it goes, what it starts from."""
    parser.add_argument("name", metavar="NAME", help="small letters, digits and underscores")
    parser.add_argument("dir", metavar="DIR", nargs="?", default="", help="folder to make, new or empty (default: NAME)")
    parser.add_argument(
        "--from", dest="source", default="toy", metavar="KIND",
        help="ttt | llada | audiolm | slamomni: the method's recipe; toy (default) | dual_stream | ar | nar | toy_llada: tones",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the folder; say how to go on."""
    from ttt.scaffold.recipe import write_recipe

    folder = Path(arguments.dir or arguments.name)
    files = write_recipe(arguments.name, arguments.source, folder)
    print(f"wrote {folder}: {', '.join(files)}")
    config = next(file for file in ("conf/base.yaml", *sorted(files)) if file in files and file.startswith("conf/"))
    print(f"  ttt config --config {folder / config}\n  {folder / 'run.sh'} --help")
    return 0
