"""Walks through the README of a published program: its steps typed here, tables of them in a recipe's README.

Tables stand between two comments in the README.  A test compares them with what it found; with ``TTT_WRITE_TABLES=1`` it writes
them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.warm_python import programs

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    """``there``: the published program's item.  ``here``: as it is typed.  ``found``: what came of it, from the world's folder
    and all that was printed.  ``more``: settings that make it small.  ``lines``: standard input.  ``code``: its exit code."""

    there: str
    here: str
    found: Callable[[Path, str], str]
    more: Sequence[str] = field(default=())
    lines: str = ""
    code: int = 0


def typed(step: Step, world: Path, places: Sequence[str]) -> str:
    """Run the step; -> all that it printed.  ``places``: folders of the world, which the step names without it."""
    inside = re.compile(rf"(?<![\w/.-])({'|'.join(places)})/")
    words = shlex.split(inside.sub(rf"{world}/\1/", step.here))
    known = programs()
    words[0] = {"ttt": known["TTT"], "python": known["PYTHON"]}.get(words[0], str(ROOT / words[0]))
    done = subprocess.run(
        [*words, *step.more], cwd=ROOT, capture_output=True, text=True, input=step.lines, env={**os.environ, **known},
        timeout=300,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == step.code, f"{step.here}\n{said}"
    return said


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def in_readme(readme: Path, name: str, made: str, test: str) -> None:
    """Compare (or write) the table ``name``; ``test``: the file that makes it."""
    begin, end = f"<!-- {name}: made by {test} -->\n", "\n<!-- end -->"
    text = readme.read_text()
    assert begin in text, f"{readme}: no place for the table {name!r}"
    before, _, rest = text.partition(begin)
    old, _, after = rest.partition(end)
    if os.environ.get("TTT_WRITE_TABLES"):
        readme.write_text(before + begin + made + end + after)
    else:
        assert old == made, f"{readme}: the table {name!r} is not what was found; TTT_WRITE_TABLES=1 pytest {test} writes it"
