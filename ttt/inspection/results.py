"""Where ``ttt inspect`` writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ttt.errors import ConfigError
from ttt.io.outputs import check_replaced_folder, holds_only

_DEPTH = 3  # run/checkpoints/step-N/model lies three folders below its run


def results_folder(
    run: str | Path, out: str | Path, name: str, marker: str, files: Sequence[str] = (), inputs: Sequence[Path] = ()
) -> Path:
    """``out``, or ``RUN/inspect/NAME`` of the run that the folder ``run`` lies in.

    ``marker``: the file that an earlier ``ttt inspect NAME`` left, whose results may be replaced; ``files``: patterns of all names
    that it writes; ``inputs``: what is read.  Raises `ConfigError` for a folder that holds something else.
    """
    from ttt.model.folder import MARKER as COMPLETE

    place = Path(run)
    configured = [f for f in (place, *place.resolve().parents[:_DEPTH]) if (f / "config.yaml").is_file()]
    # A checkpoint holds a config.yaml too, and stays as it was written.
    run_folder = next((f for f in configured if not (f / COMPLETE).is_file()), None)
    if not out and run_folder is None:
        raise ConfigError(f"{place}: lies in no run folder; say where results go with --out")
    folder = Path(out) if out or run_folder is None else run_folder / "inspect" / name
    def is_ours(path: Path) -> bool:
        return (path / marker).is_file() and holds_only(path, [re.escape(marker), *files])

    check_replaced_folder(folder, inputs, is_ours, f"'ttt inspect {name}'", overwrite=True)
    return folder
