"""Verbs that only look: list, show, inspect."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.config.load import to_plain
from ttt.config.schema import RunConfig
from ttt.errors import DataError

if TYPE_CHECKING:
    from ttt.types import PackedBatch


def list_plugins(arguments: argparse.Namespace) -> int:
    """Families, or the plug-ins of one: name, fields with defaults, first line of the docstring, file:line."""
    import ttt.registry.families  # noqa: F401  (declares the families)
    from ttt.registry.core import FAMILIES, family
    from ttt.registry.plugins import load_plugins

    load_plugins(arguments.plugins)
    keys = [arguments.family] if arguments.family else sorted(FAMILIES)
    for key in keys:
        registry = family(key)
        entries = registry.entries()
        if arguments.markdown:
            print(f"## {key}: {registry.title}\n")
            print("| name | fields | what it is |\n|---|---|---|")
            for e in entries:
                print(f"| `{e.name}` | {_fields(e.cls, '`{}`', ', ') or '-'} | {e.doc.replace('|', chr(92) + '|')} |")
            print()
            continue
        print(f"{key}: {registry.title}")
        for e in entries:
            print(f"  {e.name:18} {e.doc}")
            fields = _fields(e.cls, "{}", ", ")
            if fields:
                print(f"  {'':18} {fields}")
            print(f"  {'':18} {_relative(e.where)}")
    return 0


def _fields(cls: type, form: str, joint: str) -> str:
    parts = []
    for f in dataclasses.fields(cls):
        if not f.init or f.name.startswith("_"):
            continue
        default: Any = f.default
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        if isinstance(default, tuple):
            default = list(default)
        parts.append(form.format(f.name if default is dataclasses.MISSING else f"{f.name}={default}"))
    return joint.join(parts)


def _relative(where: str) -> str:
    path, _, line = where.rpartition(":")
    try:
        return f"{os.path.relpath(path)}:{line}" if os.path.relpath(path).count("..") < 3 else where
    except ValueError:
        return where


def inspect(arguments: argparse.Namespace) -> int:
    """``ttt inspect WHAT RUN``: dispatch."""
    import importlib

    return getattr(importlib.import_module(f"ttt.cli.inspect_{arguments.look}"), arguments.look)(arguments)


def show(arguments: argparse.Namespace) -> int:
    """One example: every token with its kind, audio run and label, and the attention mask of the objective."""
    from ttt.cli.common import configure
    from ttt.data.batches.rows import collate
    from ttt.data.sources.mix import open_streams
    from ttt.text.tokenizer import TextTokenizer

    settings = configure(arguments, ("data.train", "data.tokenizer"))
    tokenizer = TextTokenizer.load(settings.data.tokenizer)
    found = open_streams(settings.data.train, tokenizer, prompt_rule=settings.data.prompt_rule, mix=settings.data.mix)
    chosen = next((i for i in range(len(found)) if not arguments.uid or found.uid(i) == arguments.uid), None)
    if chosen is None:
        raise DataError(f"{Path(settings.data.train)}: no example with uid {arguments.uid!r}")
    stream = found[chosen]
    batch = collate(
        [[stream]], len(stream), tokenizer.vocab.pad_id, tokenizer.vocab.mask_id, tokenizer.vocab.code_space
    )
    print(f"{stream.uid}  task {stream.task}  {len(stream)} tokens, {int(stream.target.sum())} targets, "
          f"{sum(s.stop - s.start for s in stream.segments)} codes in {len(stream.segments)} spans")  # fmt: skip
    for at in range(len(stream)):
        kind = "audio" if stream.kind[at] == 2 else "text "
        mark = "loss" if stream.target[at] else "    "
        print(
            f"  {at:5d} {kind} run {stream.run_id[at]:3d} {mark} {stream.ids[at]:6d} {tokenizer.token(stream.ids[at])!r}"
        )
    draw_mask(settings, batch, stream.uid, arguments.png)
    return 0


def draw_mask(settings: RunConfig, batch: PackedBatch, uid: str, png: str) -> None:
    """The mask of the objective's own plan (a dual stream shows its noisy copy), and to the file ``png`` if asked.

    Strategies are left out: this is the plan validation uses, with the noise of ``run.seed``.
    """
    from ttt.masks.draw import mask_png, mask_text
    from ttt.masks.materialize import dense
    from ttt.rng import generator

    plan = settings.objective.clean_plan(batch, generator(settings.run.seed, "show"))
    layout, name = plan.layout, getattr(type(plan.mask), "registered_name", type(plan.mask).__name__)
    print(f"mask: {to_plain(plan.mask)}")
    print(mask_text(dense(plan.mask, layout)[0], layout.kind[0], stream=layout.stream[0]))
    if png:
        mask_png(plan.mask, layout, png, title=f"mask {name}, example {uid}")
        print(f"drawn to {png}")
