"""Show an example, its labels and its attention mask (files: 'ttt data show').

The mask is that of validation: without strategies, with the noise of run.seed.  A dual stream shows its noisy copy.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.cli.common import add_common, configure
from ttt.errors import DataError
from ttt.io.outputs import check_picture
from ttt.registry import name_of

if TYPE_CHECKING:
    from ttt.config.schema import RunConfig
    from ttt.types import PackedBatch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which example, drawn to which file."""
    parser.add_argument("--uid", default="", help="which example (default: the first)")
    parser.add_argument("--png", default="", metavar="FILE", help="draw the mask to this file")
    add_common(parser, "config", "settings", "plugins")


def run(arguments: argparse.Namespace) -> int:
    """Print every token with its kind, audio run and label, then the mask."""
    from ttt.data.batches.rows import collate
    from ttt.data.sources.mix import open_streams
    from ttt.text.tokenizer import TextTokenizer
    from ttt.types import Kind

    config = configure(arguments, ("data.train", "data.tokenizer"))
    if arguments.png:
        check_picture(Path(arguments.png), [Path(config.data.train)])
    tokenizer = TextTokenizer.load(config.data.tokenizer)
    data = config.data
    streams = open_streams(data.train, tokenizer, prompt_rule=data.prompt_rule, mix=data.mix, keep=data.keep)
    chosen = next((i for i in range(len(streams)) if not arguments.uid or streams.uid(i) == arguments.uid), None)
    if chosen is None:
        raise DataError(f"{Path(config.data.train)}: no example with uid {arguments.uid!r}")
    stream, vocab = streams[chosen], tokenizer.vocab
    batch = collate([[stream]], len(stream), vocab.pad_id, vocab.mask_id, vocab.code_space)
    codes = sum(s.stop - s.start for s in stream.segments)
    print(
        f"{stream.uid}  task {stream.task}  {len(stream)} tokens, {int(stream.target.sum())} targets, "
        f"{codes} codes in {len(stream.segments)} spans"
    )
    for at in range(len(stream)):
        kind = "audio" if stream.kind[at] == Kind.AUDIO else "text"
        label = "loss" if stream.target[at] else ""
        token = tokenizer.token(stream.ids[at])
        print(f"  {at:5d} {kind:5} run {stream.run_id[at]:3d} {label:4} {stream.ids[at]:6d} {token!r}")
    draw_mask(config, batch, stream.uid, arguments.png)
    return 0


def draw_mask(config: RunConfig, batch: PackedBatch, uid: str, png: str) -> None:
    """Print the mask of the objective's own plan; draw it to the file ``png`` too if one is named."""
    from ttt.config.load import to_plain
    from ttt.masks.draw import mask_png, mask_text
    from ttt.masks.materialize import dense
    from ttt.objective.losses import folded
    from ttt.rng import generator

    plan = folded(config.objective.clean_plan(batch, generator(config.run.seed, "show")))
    layout, name = plan.layout, name_of(plan.mask)
    print(f"mask: {to_plain(plan.mask)}")
    print(mask_text(dense(plan.mask, layout)[0], layout.kind[0], stream=layout.stream[0]))
    if png:
        mask_png(plan.mask, layout, png, title=f"mask {name}, example {uid}")
        print(f"drawn to {png}")
