"""One JSONL file -> training and evaluation files: a seeded share of the lines, both in the order of the source."""

from __future__ import annotations

import gzip
import random
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ttt.data.read.records import raw_records
from ttt.errors import ConfigError, DataError
from ttt.io.atomic import file_aside


def held_out(n: int, ratio: float, seed: int) -> bytearray:
    """Which of ``n`` lines are for evaluation (1) and which for training (0): int(n * ratio) of them.

    The first int(n * ratio) line numbers after ``random.Random(seed).shuffle``, as in the published split of
    SLAM-Omni's data (arXiv 2412.15649).  Memory: 5 bytes a line.

    >>> sum(held_out(10, 0.15, 42)), sum(held_out(463071, 0.15, 42))
    (1, 69460)
    """
    order = array("I", range(n))
    random.Random(seed).shuffle(order)
    chosen = bytearray(n)
    for number in order[: int(n * ratio)]:
        chosen[number] = 1
    return chosen


def split(source: Path, train: Path, evaluation: Path, ratio: float = 0.15, seed: int = 42) -> dict[str, int]:
    """Write both files, complete or not at all; returns the number of lines of each.

    The source is read twice, line by line: once to count, once to write; blank lines are left out.  Raises
    `ConfigError` for a ratio that leaves one of the files empty, `DataError` for a source that is no JSONL.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"--eval-ratio: must lie between 0 and 1, got {ratio:g}")
    if ".jsonl" not in source.name:
        raise DataError(f"{source}: lines are split; name a .jsonl (or .jsonl.gz) file")
    if len({p.resolve() for p in (source, train, evaluation)}) < 3:
        raise ConfigError(f"{source}: the source and the two outputs must be three different files")
    n = sum(1 for _ in raw_records(source))
    chosen = held_out(n, ratio, seed)
    counts = {"train": n - sum(chosen), "eval": sum(chosen)}
    if not all(counts.values()):
        empty = "eval" if not counts["eval"] else "train"
        raise ConfigError(
            f"--eval-ratio: {ratio:g} of {n} lines leaves the {empty} file empty; give more data or another ratio"
        )
    with ExitStack() as stack:
        outs = [stack.enter_context(_aside(path)) for path in (train, evaluation)]
        for number, (_, line) in enumerate(raw_records(source)):
            outs[chosen[number]].write(line.rstrip(b"\r\n") + b"\n")
    return counts


@contextmanager
def _aside(path: Path) -> Iterator[Any]:
    """A binary file (compressed for names in ``.gz``) that gets its name at the end, or is removed after an error."""
    with file_aside(path) as temporary:
        with gzip.open(temporary, "wb") if path.name.endswith(".gz") else temporary.open("wb") as out:
            yield out
