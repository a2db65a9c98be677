"""What verbs share: common arguments, the checked configuration, ``--dry-run``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.registry import name_of

if TYPE_CHECKING:
    from ttt.config.schema import RunConfig

log = logging.getLogger(__name__)
_ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "config": ("--config", {
        "action": "append", "default": [], "metavar": "FILE", "help": "recipe YAML; may be repeated, later ones win"}),
    "settings": ("overrides", {"nargs": "*", "metavar": "section.key=value", "help": "settings over the files"}),
    "dry_run": ("--dry-run", {"action": "store_true", "help": "print configuration and plan, then stop"}),
    "overwrite": ("--overwrite", {"action": "store_true", "help": "do it again although the result is there"}),
    "plugins": ("--plugins", {"action": "append", "default": [], "metavar": "PATH", "help": "plug-in file or module"}),
}  # fmt: skip


def add_common(parser: argparse.ArgumentParser, *names: str, **help_lines: str) -> None:
    """Add those of the shared arguments that a verb has: config, settings, dry_run, overwrite, plugins.

    All of them when none is named.  A keyword adds the argument of that name with another help line, as in
    ``add_common(parser, "plugins", settings="fields of the plug-in")``.
    """
    for name in (*names, *help_lines) or _ARGUMENTS:
        flag, options = _ARGUMENTS[name]
        parser.add_argument(flag, **{**options, **({"help": help_lines[name]} if name in help_lines else {})})


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments of verbs that open a trained model: RUN, settings and ``--config`` over its own configuration."""
    parser.add_argument(
        "run", metavar="RUN", help="run folder; or a checkpoint or model folder (outside a run: with --config)"
    )
    add_common(
        parser, "plugins", settings="settings over the run's own", config="recipe YAML over the run's own settings"
    )


def add_color(parser: argparse.ArgumentParser) -> None:
    """``--color``, for `wants_color`."""
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="default: on a terminal, without NO_COLOR"
    )


def wants_color(arguments: argparse.Namespace) -> bool:
    """Whether what is printed to stdout is colored."""
    auto = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return arguments.color == "always" or (arguments.color == "auto" and auto)


def configure(arguments: argparse.Namespace, need: tuple[str, ...]) -> RunConfig:
    """The configuration of this call; ``need`` names the keys the verb cannot do without."""
    from ttt.config.load import load_config

    config = load_config(arguments.config, arguments.overrides, arguments.plugins, need)
    if config.run.threads:
        import torch

        torch.set_num_threads(config.run.threads)
    return config


def dry_run(arguments: argparse.Namespace, config: RunConfig, plan: Sequence[str]) -> bool:
    """With ``--dry-run``: print the resolved configuration and the plan; True means stop here."""
    if not arguments.dry_run:
        return False
    from ttt.config.load import resolved_yaml

    print(resolved_yaml(config), end="")
    print("plan:")
    for number, line in enumerate(plan, 1):
        print(f"  {number}. {line}")
    return True


def fit_component(
    arguments: argparse.Namespace, key: str, splits: Sequence[str], method: str, fit: Callable[..., Mapping[str, float]]
) -> int:
    """Fit the component ``key`` of the configuration on splits of the corpus and save it to ``KEY.path``.

    ``fit(component, manifests, seed)`` returns what it measured; a component without ``method`` cannot learn.
    """
    from ttt.config.load import to_plain
    from ttt.errors import ConfigError
    from ttt.stage import Stage

    config = configure(arguments, (key, "data.corpus"))
    component = getattr(config, key)
    if not getattr(component, "path", None):
        raise ConfigError(f"{key}.path: missing; name the folder it is saved to")
    folder = Path(component.path)
    manifests = [Path(config.data.corpus) / f"{split}.jsonl" for split in splits]
    if not hasattr(component, method):
        raise ConfigError(
            f"{key}: {name_of(component)!r} is not trainable; point {key}.path at its weights"
        )
    if dry_run(arguments, config, [f"read wavs of {manifests[0]}", f"fit and save to {folder}"]):
        return 0
    settings = {key: to_plain(component), "seed": config.run.seed}
    stage = Stage(key, folder / ".done.json", manifests, [folder], settings, "make the corpus first")
    if stage.is_done(arguments.overwrite):
        return 0
    measured = fit(component, manifests, config.run.seed)
    component.save(folder)
    stage.finish(measured)
    log.info("%s: %s -> %s", key, ", ".join(f"{k} {v:.4g}" for k, v in measured.items()), folder)
    return 0
