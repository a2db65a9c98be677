"""A trained run, or a plain model folder, opened from the command line for talking to it and looking into it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ttt.api import open_run
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError

_DEPTH = 3  # run/checkpoints/step-N/model lies three folders below its run


def open_config(arguments: argparse.Namespace) -> tuple[RunConfig, Path]:
    """(configuration, model folder) of ``arguments.run``; the run's own ``config.yaml`` first, ``--config``, settings.

    Raises like `ttt.api.open_run`.
    """
    return open_run(arguments.run, arguments.overrides, arguments.config, arguments.plugins)


def results_folder(arguments: argparse.Namespace, name: str, marker: str) -> Path:
    """Where ``ttt inspect NAME`` writes: ``--out``, or ``RUN/inspect/NAME``; earlier results (with ``marker``) are replaced.

    Raises `ConfigError` for a folder that holds something else.
    """
    from ttt.train.checkpoint import MARKER as COMPLETE

    place = Path(arguments.run)
    folders = [f for f in (place, *place.resolve().parents[:_DEPTH]) if (f / "config.yaml").is_file()]
    run = next((f for f in folders if not (f / COMPLETE).is_file()), None)  # a checkpoint stays as it was written
    if not arguments.out and run is None:
        raise ConfigError(f"{place}: lies in no run folder; say where results go with --out")
    out = Path(arguments.out) if arguments.out else run / "inspect" / name  # type: ignore[operator]
    if out.exists() and not (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        raise ConfigError(
            f"{out}: holds something else than 'ttt inspect {name}' writes; name another folder with --out"
        )
    return out
