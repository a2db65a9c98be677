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


def estimate(verb: argparse.ArgumentParser) -> None:
    """``ttt estimate``: which recipe, on what, for how long."""
    verb.add_argument(
        "recipe", metavar="RECIPE.yaml", help="a recipe; weights are not needed, only model.path's config.json"
    )
    verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the recipe")
    verb.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs in all, over every node (default 8)")
    verb.add_argument("--gpu", default="a100-80gb", help="kind of GPU (default a100-80gb; a wrong name lists them)")
    verb.add_argument(
        "--mfu", type=float, default=0.4, metavar="X", help="share of the GPU's peak that is reached (default 0.4)"
    )
    verb.add_argument(
        "--tokens", type=float, default=0.0, metavar="N", help="tokens to train on (default: train.steps updates)"
    )
    verb.add_argument(
        "--price", type=float, default=0.0, metavar="X", help="price of one GPU for one hour, in your currency"
    )
    verb.add_argument(
        "--vocab", type=int, default=0, metavar="N", help="ids in the vocabulary (default: from the tokenizer)"
    )
    verb.add_argument(
        "--loss-share", type=float, default=0.6, metavar="X", help="share of positions that carry loss (default 0.6)"
    )
    verb.add_argument(
        "--global-batch", type=int, default=0, metavar="ROWS",
        help="refuse a recipe whose update is not exactly so many rows over all GPUs (the paper: 2048)",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="as JSON")
