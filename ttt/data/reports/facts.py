"""Parts of an audit: summary of one example, counts and messages of one file, hashes of all examples."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SHOWN = 5  # messages kept of each kind


@dataclass
class Facts:
    """Summary of one example: place, sizes, hashes."""

    where: str
    uid: int
    length: int
    frames: int
    styles: Counter[str]
    warnings: tuple[str, ...]
    text: int
    codes: int
    text_runs: np.ndarray | None = None
    code_runs: np.ndarray | None = None
    text_hits: np.ndarray | None = None
    code_hits: np.ndarray | None = None


@dataclass
class FileReport:
    """One file: counts, and messages by reason."""

    path: str
    records: int = 0
    examples: int = 0
    tokens: int = 0
    frames: int = 0
    styles: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    shown: dict[str, list[str]] = field(default_factory=dict)  # reason -> first messages

    def error(self, reason: str, message: str) -> None:
        """Count an error and keep the first messages."""
        self.errors[reason] += 1
        self._show(reason, message)

    def warn(self, reason: str, message: str) -> None:
        """Count a warning and keep the first messages."""
        self.warnings[reason] += 1
        self._show(reason, message)

    def _show(self, reason: str, message: str) -> None:
        kept = self.shown.setdefault(reason, [])
        if len(kept) < SHOWN:
            kept.append(message)


class Keys:
    """Per example: where it is, its length, and hashes of its name, text and codes."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.place = array("Q")  # file << 40 | number in the file
        self.length = array("I")
        self.keys = {name: array("Q") for name in ("uid", "text", "codes")}

    def add(self, facts: Facts) -> None:
        file, number = split_place(facts.where)
        if not self.files or self.files[-1] != file:
            self.files.append(file)
        self.place.append((len(self.files) - 1) << 40 | number)
        self.length.append(facts.length)
        for name, value in (("uid", facts.uid), ("text", facts.text), ("codes", facts.codes)):
            self.keys[name].append(value)

    def where(self, index: int) -> str:
        file, number = divmod(self.place[index], 1 << 40)
        path = self.files[file]
        return f"{path}:{number}" if ".jsonl" in Path(path).name else f"{path}[{number}]"

    def doubles(self, *names: str) -> tuple[int, list[tuple[str, str]]]:
        """Examples that repeat an earlier one in all ``names``, and the first few pairs of places."""
        columns = [np.frombuffer(self.keys[n], dtype="u8") if len(self.length) else np.zeros(0, "u8") for n in names]
        present = np.flatnonzero(np.all([c != 0 for c in columns], axis=0))
        order = present[np.lexsort([present, *(c[present] for c in columns)])]
        same = np.all([c[order][1:] == c[order][:-1] for c in columns], axis=0)
        pairs = [(self.where(int(order[i + 1])), self.where(int(order[i]))) for i in np.flatnonzero(same)[:SHOWN]]
        return int(same.sum()), pairs


def split_place(where: str) -> tuple[str, int]:
    """("file", number) of a place.

    >>> split_place("a/b.json[7]"), split_place("b.jsonl:12")
    (('a/b.json', 7), ('b.jsonl', 12))
    """
    file, _, number = where.rstrip("]").rpartition("[" if where.endswith("]") else ":")
    return file, int(number)
