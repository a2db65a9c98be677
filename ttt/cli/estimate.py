"""Estimate what a training costs: parameters, memory, speed, hours, price.

From the recipe alone: no weights are needed, only the config.json of model.path.
"""

from __future__ import annotations

import argparse
import json

from ttt.cli.common import add_common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recipe, on what, for how long."""
    parser.add_argument(
        "recipe", metavar="RECIPE.yaml", help="a recipe; weights are not needed, only model.path's config.json"
    )
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs in all, over every node (default 8)")
    parser.add_argument("--gpu", default="a100-80gb", help="kind of GPU (default a100-80gb; a wrong name lists them)")
    parser.add_argument(
        "--mfu", type=float, default=0.4, metavar="X", help="share of the GPU's peak that is reached (default 0.4)"
    )
    parser.add_argument(
        "--tokens", type=float, default=0.0, metavar="N", help="tokens to train on (default: train.steps updates)"
    )
    parser.add_argument(
        "--price", type=float, default=0.0, metavar="X", help="price of one GPU for one hour, in your currency"
    )
    parser.add_argument(
        "--vocab", type=int, default=0, metavar="N", help="ids in the vocabulary (default: from the tokenizer)"
    )
    parser.add_argument(
        "--loss-share", type=float, default=0.6, metavar="X", help="share of positions that carry loss (default 0.6)"
    )
    parser.add_argument(
        "--global-batch", type=int, default=0, metavar="ROWS",
        help="refuse a recipe whose update is not exactly so many rows over all GPUs (the paper: 2048)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_common(parser, "plugins", settings="settings over the recipe")


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate; refuse a wrong global batch."""
    from ttt.config.load import load_config
    from ttt.train.estimate import check_global_batch, counted_in_tokens, estimate
    from ttt.train.estimate_page import estimate_page

    config = counted_in_tokens(load_config([arguments.recipe], arguments.overrides, arguments.plugins))
    if arguments.global_batch:
        check_global_batch(config, arguments.gpus, arguments.global_batch)
    result = estimate(
        config,
        gpus=arguments.gpus,
        gpu=arguments.gpu,
        mfu=arguments.mfu,
        tokens=arguments.tokens,
        price=arguments.price,
        vocab=arguments.vocab,
        loss_share=arguments.loss_share,
    )
    checkpointing = config.model.gradient_checkpointing
    print(json.dumps(result, indent=1) if arguments.json else estimate_page(result, checkpointing, arguments.price))
    return 0
