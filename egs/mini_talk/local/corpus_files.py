"""What the corpora of the small world share: names of recordings, files of a split, a folder that is whole or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttt.data.manifest import Utterance, write_manifest
from ttt.errors import DataError
from ttt.io.atomic import folder_aside, write_json_lines

REPORT = "corpus.json"


def utterance_id(voice: str, text: str) -> str:
    """A name made of what is said by whom."""
    return f"{voice}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def wav_name(voice: str, text: str) -> str:
    """Path of a wav inside the corpus."""
    return f"wav/{voice}/{utterance_id(voice, text).partition('-')[2]}.wav"


@contextmanager
def made_aside(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside ``out`` to make a corpus in; it becomes ``out`` at the end, and is gone after an exception.

    Raises `DataError` for an ``out`` that holds something, unless that is a corpus and ``overwrite`` is given.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise DataError(f"{out}: exists and is not empty: choose another --out, or pass --overwrite")
        if not (out / REPORT).is_file():
            raise DataError(f"{out}: no {REPORT} there, so --overwrite leaves it alone: choose another --out")
    with folder_aside(out) as building:
        yield building


def write_split(folder: Path, split: str, utterances: Iterable[Utterance], items: Iterable[Mapping[str, Any]]) -> None:
    """``SPLIT.jsonl`` and ``SPLIT.items.jsonl``."""
    write_manifest(folder / f"{split}.jsonl", utterances)
    write_json_lines(folder / f"{split}.items.jsonl", items)


def digest(folder: Path, splits: Sequence[str], more: Iterable[str] = ()) -> str:
    """SHA-256 of the files of `write_split`, then of the strings ``more``."""
    found = hashlib.sha256()
    for split in splits:
        for name in (f"{split}.jsonl", f"{split}.items.jsonl"):
            found.update((folder / name).read_bytes())
    for text in more:
        found.update(text.encode())
    return found.hexdigest()


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """``corpus.json``, keys in order."""
    (folder / REPORT).write_text(json.dumps(dict(sorted(report.items())), indent=1) + "\n")
