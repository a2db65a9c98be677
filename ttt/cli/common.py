"""What every verb needs first: the configuration, checked, and the CPU threads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ttt.config.load import load_config, resolved_yaml
from ttt.config.schema import RunConfig


def configure(arguments: argparse.Namespace, need: tuple[str, ...]) -> RunConfig:
    """The configuration of this call; ``need`` names the keys the verb cannot do without."""
    config = load_config(arguments.config, arguments.overrides, arguments.plugins, need)
    if config.run.threads:
        import torch

        torch.set_num_threads(config.run.threads)
    return config


def dry_run(arguments: argparse.Namespace, config: RunConfig, plan: list[str]) -> bool:
    """With ``--dry-run``: print the resolved configuration and the plan; True means stop here."""
    if not arguments.dry_run:
        return False
    print(resolved_yaml(config), end="")
    print("plan:")
    for number, line in enumerate(plan, 1):
        print(f"  {number}. {line}")
    return True


def spelled(name: str, names: Sequence[str]) -> str:
    """The one of ``names`` that is ``name`` but for hyphens, underscores and capitals; ``name`` itself if none or several are.

    >>> spelled("SlamOmni", ["sharegpt", "slam_omni"])
    'slam_omni'
    """

    def bare(text: str) -> str:
        return text.replace("-", "").replace("_", "").lower()

    alike = [n for n in names if bare(n) == bare(name)]
    return alike[0] if name not in names and len(alike) == 1 else name


def component_path(component: object, key: str) -> Path:
    """The folder a trainable component saves to (its field ``path``)."""
    from ttt.errors import ConfigError

    path = getattr(component, "path", None)
    if not path:
        raise ConfigError(f"{key}.path: missing; name the folder it is saved to")
    return Path(path)
