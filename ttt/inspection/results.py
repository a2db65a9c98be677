"""Where ``ttt inspect`` writes."""

from __future__ import annotations

from pathlib import Path

from ttt.errors import ConfigError

_DEPTH = 3  # run/checkpoints/step-N/model lies three folders below its run


def results_folder(run: str | Path, out: str | Path, name: str, marker: str) -> Path:
    """``out``, or ``RUN/inspect/NAME`` of the run that the folder ``run`` lies in.

    ``marker``: the file that an earlier ``ttt inspect NAME`` left, whose results may be replaced.  Raises `ConfigError` for a
    folder that holds something else.
    """
    from ttt.train.checkpoint import MARKER as COMPLETE

    place = Path(run)
    configured = [f for f in (place, *place.resolve().parents[:_DEPTH]) if (f / "config.yaml").is_file()]
    # A checkpoint holds a config.yaml too, and stays as it was written.
    run_folder = next((f for f in configured if not (f / COMPLETE).is_file()), None)
    if not out and run_folder is None:
        raise ConfigError(f"{place}: lies in no run folder; say where results go with --out")
    folder = Path(out) if out or run_folder is None else run_folder / "inspect" / name
    if folder.exists() and not (folder.is_dir() and ((folder / marker).is_file() or not any(folder.iterdir()))):
        raise ConfigError(
            f"{folder}: holds something else than 'ttt inspect {name}' writes; name another folder with --out"
        )
    return folder
