"""Check a run: its log, its batches, its checkpoint; names likely faults.

One line for each check.  Exit code 1: there is a fault.  With --write-bands: makes reference bands of healthy runs instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ttt.cli.common import add_common
from ttt.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runs, against what."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder (several with --write-bands)")
    parser.add_argument("--bands", default="", metavar="FILE", help="reference bands (default: bands.yaml beside the recipe)")
    parser.add_argument("--recipe", default="", help="entry of the bands file (default: the recipe the run was started with)")
    parser.add_argument("--write-bands", default="", metavar="FILE", help="make the bands of this recipe from healthy runs")
    parser.add_argument(
        "--slack", type=float, default=0.15, help="how far bands reach beyond the runs, as a share (default 0.15)"
    )
    parser.add_argument("--no-probes", action="store_true", help="read the log only, run no network")
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    add_common(parser, "plugins")


def run(arguments: argparse.Namespace) -> int:
    """Examine one run, or make reference bands of several."""
    from ttt.doctor.bands import write_bands
    from ttt.doctor.examine import examine
    from ttt.doctor.finding import as_json, as_text, faults
    from ttt.io.metrics_log import METRICS_FILE, read_metrics

    folders = [Path(p) for p in arguments.runs]
    if arguments.write_bands:
        logs = {folder: read_metrics(folder / METRICS_FILE) for folder in folders}
        print(write_bands(Path(arguments.write_bands), logs, arguments.recipe, arguments.slack))
        return 0
    if len(folders) > 1:
        raise ConfigError(f"{len(folders)} runs given: one at a time (several only with --write-bands)")
    findings = examine(
        folders[0], probes=not arguments.no_probes, bands=arguments.bands, recipe=arguments.recipe,
        plugins=arguments.plugins,
    )  # fmt: skip
    print((as_json if arguments.json else as_text)(folders[0], findings))
    return 1 if faults(findings) else 0
