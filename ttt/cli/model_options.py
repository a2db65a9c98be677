"""Options of ``ttt model`` and ``ttt estimate``.  Imports nothing: ``ttt --help`` reads this."""

from __future__ import annotations

import argparse


def model(verb: argparse.ArgumentParser) -> None:
    """``ttt model``: what to do with which folder."""
    verb.add_argument(
        "action", choices=("init", "import", "export", "merge", "text", "show"),
        help="init: FOLDER is a recipe; write the model its training would start from | "
        "import: a folder in the official layout (Qwen2ForARDiffLM) -> a model folder | export: a model folder or run -> "
        "plain transformers or the official layout | merge: adapters into their base | "
        "text: the text model inside, tables and tokenizer cut down to text | show: what a folder holds",
    )  # fmt: skip
    verb.add_argument("source", metavar="FOLDER", help="model folder, checkpoint or run (init: a recipe YAML)")
    verb.add_argument("out", metavar="OUT", nargs="?", default="", help="folder to write (not for show)")
    verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="init: settings over the recipe")
    verb.add_argument("--layout", default="hf", help="export: hf (default) | official")
    verb.add_argument(
        "--dtype", default="", help="export, merge: float32 | bfloat16 (default: as stored; merge: float32)"
    )
    verb.add_argument(
        "--base", default="", metavar="DIR", help="where the base of the adapters is now, when it has moved"
    )
    verb.add_argument("--json", action="store_true", help="show: as JSON")
    verb.add_argument("--overwrite", action="store_true", help="replace OUT")
