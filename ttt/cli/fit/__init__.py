"""Fit a component that learns on a corpus."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ttt.cli.common import configure, dry_run

VERBS = ("codec", "judge", "speaker")
log = logging.getLogger(__name__)


def fit_component(
    arguments: argparse.Namespace, key: str, splits: Sequence[str], method: str, fit: Callable[..., Mapping[str, float]]
) -> int:
    """Fit the component ``key`` of the configuration on splits of the corpus and save it to ``KEY.path``.

    ``fit(component, manifests, seed)`` returns what it measured; a component without ``method`` cannot learn.
    """
    from ttt.config.load import to_plain
    from ttt.errors import ConfigError
    from ttt.registry import name_of
    from ttt.stage import Stage

    config = configure(arguments, (key, "data.corpus"))
    component = getattr(config, key)
    if not getattr(component, "path", None):
        raise ConfigError(f"{key}.path: missing; name the folder it is saved to")
    folder = Path(component.path)
    manifests = [Path(config.data.corpus) / f"{split}.jsonl" for split in splits]
    if not hasattr(component, method):
        raise ConfigError(f"{key}: {name_of(component)!r} is not trainable; point {key}.path at its weights")
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
