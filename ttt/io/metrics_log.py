"""``metrics.jsonl``, the log of a training: one flat object per line, ``step`` first, every step once.

The keys are listed in `ttt.train.progress`; values that are not finite are null.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt.errors import DataError
from ttt.io.atomic import write_bytes
from ttt.io.json_input import read_json_lines

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
ANSWERS_FILE = "answers.jsonl"  # of the same form: what was generated in a training (`ttt.eval.during_training`)


class MetricsLog:
    """Appends lines.  Opening it drops the lines after ``step``, from which the training goes on."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        cut_back(path, step)
        self._file = path.open("a", encoding="utf-8")

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """One line, handed to the operating system at once.  Raises `OSError`."""
        finite = {key: float(value) if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Have everything written so far on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log, ``step`` a whole number; nested objects (older logs) are joined by '/'.

    The last line may be half written, because a training goes on; any other fault is a `DataError` naming the line.
    """
    path = Path(path)
    mend = "not a line of a training log; name the folder of a run that was trained"
    if not path.is_file():
        raise DataError(f"{path}: no such training log; it is written by 'ttt train'")
    records = []
    for number, record in read_json_lines(path, mend, may_end_early=True):
        row = {**_flat(record), "step": _step_of(record, f"{path}:{number}", mend)}
        for key, value in row.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise DataError(f"{path}:{number}: {key!r} must be a number or null, got {value!r}; {mend}")
        records.append(row)
    return records


def cut_back(path: Path, step: int) -> int:
    """Drop the lines after ``step``, and a last line that was cut short.  -> number of lines dropped."""
    if not path.is_file():
        return 0
    mend = "mend the line, or move the log away to begin a new one"
    lines = path.read_bytes().splitlines(keepends=True)
    numbers = []
    for number, record in read_json_lines(path, mend, may_end_early=True):
        if _step_of(record, f"{path}:{number}", mend) > step:
            break  # what follows is newer still
        numbers.append(number)
    kept = [lines[number - 1] for number in numbers]
    dropped = sum(1 for line in lines if line.strip()) - len(kept)
    if dropped:
        write_bytes(path, b"".join(kept))
        log.info("%s: %d lines after step %d dropped; they are made again", path.name, dropped, step)
    return dropped


def _step_of(record: Mapping[str, Any], where: str, mend: str) -> int:
    step = record.get("step")
    if isinstance(step, bool) or not isinstance(step, (int, float)):
        raise DataError(f"{where}: 'step' must be a number, got {step!r}; {mend}")
    return int(step)


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
