"""Reference bands: the range in which logged losses of healthy runs lie, by recipe, key and step.

    ttt+quick:                  # recipe: names of the --config files
      train/loss:
        {10: [5.1, 6.2], ...}   # step: [low, high]
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttt.doctor.finding import FAULT, NOTE, OK, WARN, Finding
from ttt.errors import ConfigError, DataError, suggest
from ttt.io.atomic import write_text
from ttt.io.metrics_log import METRICS_FILE
from ttt.io.outputs import refuse_inputs
from ttt.io.yaml_input import read_yaml

FILE = "bands.yaml"  # beside a recipe
BAND_KEYS = ("train/loss", "train/nll/", "dev/loss", "dev/nll/")
BAND_STEPS = 12
Rows = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
Bands = Mapping[str, Mapping[int, Sequence[float]]]  # key -> step -> (low, high)


def make_bands(runs: Sequence[Rows], slack: float) -> dict[str, dict[int, list[float]]]:
    """key -> step -> [low, high]: the range over healthy runs, widened on both sides by the share ``slack`` of it (at least of 1).

    Keys and steps that every run has; of the steps a dozen, first and last among them.
    """
    logs = [
        {k: {r["step"]: r[k] for r in rows if r.get(k) is not None} for k in {k for r in rows for k in r}}
        for rows in runs
    ]
    bands: dict[str, dict[int, list[float]]] = {}
    for key in sorted(set.intersection(*(set(log) for log in logs))):
        if not key.startswith(BAND_KEYS):
            continue
        steps = sorted(set.intersection(*(set(log[key]) for log in logs)))
        if not steps:
            continue
        chosen = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(BAND_STEPS, len(steps)))})
        bands[key] = {}
        for step in chosen:
            values = [log[key][step] for log in logs]
            low, high = min(values), max(values)
            # Losses near zero differ by large factors between seeds: the margin is a share of at least one nat.
            bands[key][step] = [round(low - slack * max(abs(low), 1), 5), round(high + slack * max(abs(high), 1), 5)]
    return bands


def check_bands(rows: Rows, bands: Bands) -> list[Finding]:
    """Every value of the log that has a band.  Above the band at the end, or at a third of the points: a fault."""
    at = {row["step"]: row for row in rows}
    out, inside, keys = [], 0, 0
    for key, band in bands.items():
        points = [(s, at[s][key], *band[s]) for s in sorted(band) if key in at.get(s, {})]
        keys += bool(points)
        high = [p for p in points if p[1] is None or p[1] > p[3]]
        low = [p for p in points if p[1] is not None and p[1] < p[2]]
        inside += len(points) - len(high) - len(low)
        if not high and not low:
            continue
        step, value, lowest, highest = (high or low)[-1]
        shown = "not a number" if value is None else f"{value:.4f}"
        text = f"{shown} at step {step}, healthy runs: {lowest:.4f} to {highest:.4f}"
        text += f" ({len(high)} of {len(points)} above, {len(low)} below)"
        serious = bool(high) and (high[-1] == points[-1] or 3 * len(high) >= len(points))
        out.append(
            Finding(f"bands/{key}", FAULT if serious else WARN, text, "outside the reference band" if serious else "")
        )
    if not keys:
        return [Finding("bands", NOTE, "no step of this run has a reference band: another number or length of steps")]
    return [Finding("bands", OK, f"{inside} values of {keys} keys inside"), *out]


def recipe_configs(folder: Path) -> list[Path]:
    """The ``--config`` files of the last command that trained the run in ``folder``."""
    path = folder / "command.txt"
    if not path.is_file():
        return []
    commands = path.read_text(encoding="utf-8", errors="replace").splitlines()
    words = shlex.split(commands[-1]) if commands else []
    separate = [Path(value) for flag, value in zip(words, words[1:]) if flag == "--config"]
    return separate + [Path(w.removeprefix("--config=")) for w in words if w.startswith("--config=")]


def recipe_name(folder: Path) -> str:
    """``ttt``, or ``ttt+quick`` for a run of two config files; empty when unknown."""
    return "+".join(p.stem for p in recipe_configs(folder))


def bands_for(folder: Path, path: str = "", recipe: str = "") -> Bands | None:
    """The bands of the run's recipe in the file ``path``, or in the one beside the recipe, if any."""
    name = recipe or recipe_name(folder)
    if path:
        known = read_bands(Path(path))
        if name not in known:
            names = ", ".join(known)
            raise ConfigError(f"{path}: no bands of recipe {name!r}.{suggest(name, known)} There are: {names} (--recipe)")
        return known[name]
    beside = next((c.parent / FILE for c in recipe_configs(folder) if (c.parent / FILE).is_file()), None)
    return read_bands(beside).get(name) if beside is not None else None


def read_bands(path: Path) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Recipe -> key -> step -> [low, high].  Raises `DataError` naming the entry that is not of this form."""
    raw = read_yaml(path, "bands are recipe -> key -> step -> [low, high]; 'ttt doctor RUN --write-bands FILE' makes them")
    for recipe, keys in raw.items():
        for key, steps in (keys if isinstance(keys, dict) else {"": None}).items():
            for step, band in (steps if isinstance(steps, dict) else {"": None}).items():
                pair = band if isinstance(band, list) and len(band) == 2 else [1, 0]
                if not isinstance(step, int) or not all(isinstance(v, (int, float)) for v in pair) or pair[0] > pair[1]:
                    raise DataError(f"{path}: {recipe}: {key}: {step}: expected a step and [low, high], got {band!r}")
    return raw


def write_bands(path: Path, logs: Mapping[Path, Rows], recipe: str = "", slack: float = 0.15) -> str:
    """Make the bands of one recipe from the logs of healthy runs (folder -> lines); other recipes of the file stay.

    Returns a line that says what was written.
    """
    names = {recipe or recipe_name(folder) for folder in logs}
    if len(names) > 1 or "" in names:
        raise ConfigError(f"--write-bands: the runs are of recipes {', '.join(sorted(names)) or '?'}; name one with --recipe")
    if not 0 <= slack < 10:
        raise ConfigError(f"--slack: must be a share >= 0, got {slack}")
    (name,) = names
    bands = make_bands(list(logs.values()), slack)
    if not bands:
        raise DataError("--write-bands: the runs share no logged loss at any step")
    refuse_inputs(path, [folder / METRICS_FILE for folder in logs])
    known: dict[str, Any] = dict(read_bands(path)) if path.is_file() else {}
    known[name] = bands
    lines = [f"# Logs of healthy runs, by recipe, key and step: [low, high].  'ttt doctor RUN... --write-bands {path.name}'"]
    for one in sorted(known):
        lines.append(f"{one}:")
        for key, steps in known[one].items():
            pairs = ", ".join(f"{step}: [{band[0]:g}, {band[1]:g}]" for step, band in steps.items())
            lines.append(f"  {key}: {{{pairs}}}")
    write_text(path, "\n".join(lines) + "\n")
    return f"{path}: {name}: {sum(map(len, bands.values()))} bands of {len(bands)} keys from {len(logs)} runs"
