"""Make, convert and look at model folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from ttt.cli.common import add_common
from ttt.errors import CheckpointError, ConfigError
from ttt.io.outputs import is_inside, is_same

VERBS = ("init", "import", "export", "merge", "text", "show")


def add_source(parser: argparse.ArgumentParser) -> None:
    """The folder that is read."""
    parser.add_argument("source", metavar="FOLDER", help="model folder, checkpoint or run")


def add_out(parser: argparse.ArgumentParser) -> None:
    """The folder that is written."""
    parser.add_argument("out", metavar="OUT", help="folder to write")
    add_common(parser, overwrite="replace OUT")


def add_dtype_and_base(parser: argparse.ArgumentParser, default: str) -> None:
    """How weights are stored, and where the base of adapters lies."""
    parser.add_argument("--dtype", default="", help=f"float32 | bfloat16 | float16 (default: {default})")
    parser.add_argument(
        "--base", default="", metavar="DIR", help="where the base of the adapters is now, when it has moved"
    )


def source_of(arguments: argparse.Namespace) -> Path:
    """The model folder named: itself, or the latest of a run or checkpoint."""
    from ttt.api import model_folder

    folder = Path(arguments.source)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if list(folder.glob("config.json")) or list(folder.glob("*.safetensors")):
        return folder
    return model_folder(folder)


def source_and_out(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The folders read and written; refuses to write what is read, or what somebody else made."""
    from ttt.model.official import check_out

    source, out = source_of(arguments), Path(arguments.out)
    check_out(out, arguments.overwrite, [source])
    if is_same(out, Path(arguments.source)):
        raise ConfigError(f"{out}: is the source; name another folder, so that it stays as it was")
    if is_inside(Path(arguments.source), out):
        raise ConfigError(f"{out}: holds the source {arguments.source}; name another folder")
    return source, out
