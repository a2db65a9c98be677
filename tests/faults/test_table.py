"""The table: every verb that reads files x every file it reads x every way in which a file can be bad.

Whatever comes: exit code 2 with one line that names the file, or success where it does no harm; never a traceback; no file
but the verb's own changes.  All pairs of verb and file are tried.  Verbs that run a network get a few ways each, chosen so
that together they get all; the others get some each.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from broken_files import ANY_FILE, FAULTS, TEXT_FILE, restore
from verb_inputs import ROWS

# Ways to try at each file: verbs that load a network, all others.
FEW, MORE = 1, 4
SLOW = {"train", "generate", "score", "likelihood", "report", "inspect", "stream", "chat", "eval", "doctor", "model"}
PAIRS = [(row, path) for row in ROWS for path in row.reads]
# The file's name need not stand in the line where the line names the record, key or folder; these name something else.
ELSEWHERE = (
    "recipe.yaml",
    "run/config.yaml",
    "COMPLETE",
    "state.json",
    "vocab.json",
    "tokenizer.json",
    "model.safetensors",
)


def ways(number: int, row, path: str) -> list[str]:
    """The ways in which this file of this verb is spoilt."""
    binary = path.endswith((".wav", ".safetensors"))
    names = list(ANY_FILE) if binary else list(FAULTS)
    few = FEW if row.words[0] in SLOW else MORE
    return [names[(7 * number + 5 * k) % len(names)] for k in range(min(few, len(names)))]


def test_all_ways_are_tried():
    tried = {how for number, (row, path) in enumerate(PAIRS) for how in ways(number, row, path)}
    assert tried == set(FAULTS) and set(TEXT_FILE) < set(FAULTS)


def reset(finished: Path, good: dict[str, str], now: dict[str, str]) -> None:
    """Make the working folder what it was."""
    for name in sorted(set(now) - set(good), reverse=True):
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for name in sorted(good):
        if good[name] == "folder":
            Path(name).mkdir(exist_ok=True)
        elif good[name] != now.get(name):
            restore(Path(name), (finished / name).read_bytes())


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=[f"{row.verb}-{path}" for row, path in PAIRS])
def test_bad_files(number, world, run, tree, finished):
    row, path = PAIRS[number]
    good = tree()
    wrong = []
    for how in ways(number, row, path):
        FAULTS[how](Path(path))
        before = tree()
        outcome = run(*row.words, stdin=row.stdin)
        after = tree()
        lines = outcome.err.splitlines()
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        foreign = [name for name in changed if not name.startswith(row.writes or ("\0",))]
        leftover = [name for name in changed if name.endswith(".tmp")]
        if outcome.crashed:
            wrong.append(f"{how}: traceback: {lines[-1]}")
        elif outcome.code == 2 and len(lines) != 1:
            wrong.append(f"{how}: {len(lines)} lines: {outcome.err[-300:]}")
        elif outcome.code == 2 and not named(path, lines[0]):
            wrong.append(f"{how}: the line does not name {path}: {lines[0]}")
        elif outcome.code not in (0, 1, 2):
            wrong.append(f"{how}: exit code {outcome.code}")
        if foreign or leftover:
            wrong.append(f"{how}: changed {foreign[:3]} left {leftover[:3]}")
        reset(finished, good, after)
    assert not wrong, "\n".join([" ".join(row.words), *wrong])


def named(path: str, line: str) -> bool:
    """Does the line name the file, or the folder that it makes what it is?"""
    return Path(path).stem in line or path.endswith(ELSEWHERE) or Path(path).parent.name in line
