"""Verbs that are not yet one file each: name -> (function, help line, what adds the arguments).  To be emptied."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

from ttt.cli import options
from ttt.cli.common import add_common


def _configured(parser: argparse.ArgumentParser) -> None:
    add_common(parser, "config", "settings", "dry_run", "overwrite")


def _likelihood(parser: argparse.ArgumentParser) -> None:
    _configured(parser)
    options.likelihood(parser)


VERBS = {
    "likelihood": ("ttt.cli.likelihood:likelihood", "-log p of the answers: text exact, audio bounded", _likelihood),
    "doctor": ("ttt.cli.doctor:doctor", "is a run healthy? checks its log, batches and checkpoint", options.doctor),
    "chat": ("ttt.cli.chat:chat", "talk to a trained model: history, streaming text and speech", options.chat),
    "inspect": ("ttt.cli.inspect:inspect", "look into a trained model: attention | samplers", options.inspect),
}  # fmt: skip


def verb(name: str) -> ModuleType:
    """An unconverted verb in the shape of a converted one."""
    place, line, add = VERBS[name]
    module = ModuleType(f"unconverted.{name}", line)

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add(parser)
        add_common(parser, "plugins")

    def run(arguments: argparse.Namespace) -> int:
        where, _, function = place.partition(":")
        arguments.verb = name
        return getattr(importlib.import_module(where), function)(arguments) or 0

    module.add_arguments, module.run = add_arguments, run  # type: ignore[attr-defined]
    return module
