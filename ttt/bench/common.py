"""The clock and the table of every benchmark: ways of doing one work, timed in turns, compared with a reference.

Ways take turns round by round, so that whatever else the machine does slows all of them alike, and a ratio is the median
of the ratios of each round: what one way did in a round over what the reference did in the same round.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import ttt
from ttt.config.record import command_line
from ttt.errors import ConfigError, DataError, TttError
from ttt.io import atomic, provenance
from ttt.io.outputs import check_file, is_our_json

LEAST_ROUNDS = 5  # below this, a median and a spread say little: the table says so

# A way of doing the work: number of the round (from 0) -> units of work done (tokens, say).
Way = Callable[[int], float]


@dataclass(frozen=True)
class Timing:
    """One way's rounds: ``seconds`` and ``work`` (in ``unit``) of each."""

    name: str
    seconds: tuple[float, ...]
    work: tuple[float, ...]
    unit: str = "tokens"

    @property
    def rates(self) -> tuple[float, ...]:
        """Work per second, round by round."""
        return tuple(w / s for w, s in zip(self.work, self.seconds, strict=True))

    @property
    def rate(self) -> float:
        """Median work per second."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of `rates`, as a share of their median."""
        if len(self.rates) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rates, n=4, method="inclusive")
        return (high - low) / 2 / self.rate


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    ``work``: sizes by name, printed above the table; ``timings``: its rows, in order; ``ratios``: speed over the
    reference's by mode (> 1: faster), other ratios by a name that says which; ``notes``: lines below the table;
    ``extra``: anything else for the JSON file.
    """

    title: str
    work: Mapping[str, Any]
    timings: Sequence[Timing] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """The report as text."""
        lines = [self.title, *(f"  {name}: {value}" for name, value in self.work.items()), f"  {hardware_line()}"]
        if self.timings:
            wide = max(len("way"), *(len(t.name) for t in self.timings))
            unit = f"{self.timings[0].unit}/s"
            lines += ["", f"  {'way':{wide}}  {'s/round':>9}  {unit:>12}  {'spread':>7}  {'ratio':>8}"]
            for t in self.timings:
                ratio = f"{self.ratios[t.name]:7.2f}x" if t.name in self.ratios else f"{'-':>8}"
                lines.append(
                    f"  {t.name:{wide}}  {statistics.median(t.seconds):9.3f}  {t.rate:12,.1f}  {t.spread:7.1%}  {ratio}"
                )
            rounds = len(self.timings[0].seconds)
            lines.append(f"  medians of {rounds} rounds; spread: half the distance of the quartiles, of the median")
            if rounds < LEAST_ROUNDS:
                lines.append(f"  fewer than {LEAST_ROUNDS} rounds: a look, not a measurement")
        others = {n: r for n, r in self.ratios.items() if n not in {t.name for t in self.timings}}
        lines += [f"  {name}: {ratio:.3g}x" for name, ratio in others.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, with versions, git state and hardware."""
        rows = [
            {
                "name": t.name, "unit": t.unit, "seconds": list(t.seconds), "work": list(t.work), "rate": t.rate,
                "spread": t.spread, "median_s": statistics.median(t.seconds), "ratio": self.ratios.get(t.name),
            }
            for t in self.timings
        ]  # fmt: skip
        return {
            "title": self.title, "ratios": dict(self.ratios), "work": dict(self.work), "rows": rows,
            "notes": list(self.notes), **self.extra, "environment": provenance.environment(command_line()),
        }  # fmt: skip


def measure(
    ways: Mapping[str, Way],
    rounds: int,
    *,
    unit: str = "tokens",
    warmup: int = 1,
    wait: Callable[[], None] | None = None,
) -> list[Timing]:
    """Time every way ``rounds`` times, in turns, after ``warmup`` rounds that do not count.

    ``wait``: blocks until the device has done everything (default: nothing to wait for, or all CUDA work).
    """
    if rounds < 1:
        raise ConfigError(f"--repeat: must be >= 1, got {rounds}")
    wait = wait or _device_wait()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    work: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warmup, rounds):
        for name, way in ways.items():
            wait()
            started = time.perf_counter()
            done = way(max(number, 0))
            wait()
            spent = time.perf_counter() - started
            if number >= 0:
                seconds[name].append(spent)
                work[name].append(float(done))
    return [Timing(name, tuple(seconds[name]), tuple(work[name]), unit) for name in ways]


def ratios(timings: Sequence[Timing], reference: str) -> dict[str, float]:
    """Speed of every way over that of ``reference``: the median over rounds of the ratio of their rates.

    >>> slow, fast = Timing("slow", (2.0, 4.0), (8, 8)), Timing("fast", (1.0, 1.0), (8, 8))
    >>> ratios([slow, fast], "slow")
    {'slow': 1.0, 'fast': 3.0}
    """
    base = next(t for t in timings if t.name == reference)
    return {
        t.name: statistics.median(own / other for own, other in zip(t.rates, base.rates, strict=True)) for t in timings
    }


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark is told: rounds, threads, seed, where to write."""
    parser.add_argument("--repeat", type=int, default=LEAST_ROUNDS, metavar="N", help="rounds that count (default 5)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the work that is generated (default 1)")
    parser.add_argument("--json", type=Path, default=None, metavar="PATH", help="write the report there as JSON too")


def check_common_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what would fail, or say nothing, only after the work.  Raises `ConfigError`."""
    check_at_least_one(arguments, "repeat", "threads")
    path: Path | None = arguments.json
    if path is None:
        return
    mend = "name another file with --json"
    check_file(path, is_ours=is_our_json(path, title=None, ratios=None, rows=None, environment=None), mend=mend)
    if not path.parent.is_dir():
        raise ConfigError(f"--json: no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise ConfigError(f"--json: {path} is a folder; name a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--json: the folder {path.parent} cannot be written to")


def check_at_least_one(arguments: argparse.Namespace, *names: str) -> None:
    """Raise `ConfigError` for the first of the options ``names`` below 1."""
    for name in names:
        if (found := getattr(arguments, name)) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be >= 1, got {found}")


def reference_loop(name: str) -> ModuleType:
    """The module ``benchmarks/NAME.py`` beside the package.  Raises `DataError` when it is not there.

    Reference loops are written plainly, as the published code works, and are no part of the installed package.
    """
    path = Path(ttt.__file__).resolve().parents[1] / "benchmarks" / f"{name}.py"
    if not path.is_file():
        raise DataError(
            f"{path}: the reference loop is not there: it comes with the source checkout, not with the installed package; "
            "run `ttt bench` from a checkout (pip install -e), or with --no-reference"
        )
    key = f"ttt_benchmarks_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[key]


def write_json(report: Report, path: Path) -> None:
    """Write the report whole, or raise `TttError` naming the folder that is missing."""
    if not path.parent.is_dir():
        raise TttError(f"--json: no folder {path.parent} to write {path.name} to")
    atomic.write_json(path, report.to_json())


def hardware_line() -> str:
    """``AMD EPYC, 1 thread, torch 2.13``: what the numbers hold for."""
    found = provenance.environment(command_line())
    threads = found["threads"]
    parts = [found["cpu"], f"{threads} thread{'s' * (threads != 1)} of {found['cpus']} CPUs", *found["gpus"]]
    return ", ".join([*parts, *(f"{name} {found['packages'][name]}" for name in ("torch", "transformers"))])


def _device_wait() -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if torch.cuda.is_available() else lambda: None


def ids_of(plain: ModuleType, v: Any) -> Any:
    """The vocabulary in the words of the reference loop."""
    return plain.Ids(
        v.audio_start, v.code_start, v.code_stop, v.mask_id, v.soa_id, v.soa_last_id, v.eoa_id, v.eoa_last_id, v.im_end_id,
        (v.user_end_id, v.im_start_id, v.pad_id),
    )  # fmt: skip
