"""The utterance manifest: one JSON line per utterance, checked when read, written completely or not at all."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ttt.audio.sound import Sound
from ttt.errors import DataError
from ttt.io.atomic import write_json_lines
from ttt.io.digests import hash64
from ttt.io.json_input import parse_json


@dataclass(frozen=True)
class Utterance:
    """One recording and what is said in it; ``duration_s`` in seconds.

    ``wav`` names the sound as `ttt.audio.sound` does: a file, a member of a tar, a row of a table, a stretch of one of
    these.  Its path is relative to the manifest's folder.

    ``text`` may be empty, and a line may leave it out; code that requires it calls `need_text`.  ``speaker`` names the
    voice, ``split`` the part of the corpus; ``meta`` is free (kind, pair, ...).
    """

    id: str
    wav: str
    text: str
    duration_s: float
    speaker: str
    split: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise DataError(f"field 'text' must be a string (empty: nobody knows), got {self.text!r}: mend the line")
        for name in ("id", "wav", "speaker", "split"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise DataError(f"field {name!r} must be a non-empty string, got {value!r}: mend the line")
        number = isinstance(self.duration_s, int | float) and not isinstance(self.duration_s, bool)
        if not number or not 0 < self.duration_s < float("inf"):
            raise DataError(f"field 'duration_s' must be seconds > 0, got {self.duration_s!r}: mend the line")
        if not isinstance(self.meta, Mapping):
            raise DataError(f"field 'meta' must be an object, got {self.meta!r}: mend the line")

    def need_text(self, reader: str) -> str:
        """The text.  Raises `DataError` naming the utterance and ``reader`` (what requires text) when there is none."""
        if not self.text.strip():
            raise DataError(
                f"utterance {self.id!r} has no text, which {reader} reads: write it into the manifest, or leave the "
                "utterance out"
            )
        return self.text


def wav_path(manifest: str | Path, utterance: Utterance) -> Path:
    """Where the sound of an utterance of this manifest lies (`ttt.audio.sound`)."""
    return Path(manifest).parent / utterance.wav


def read_manifest(path: str | Path, check_files: bool = True) -> list[Utterance]:
    """Read and check a manifest; every refusal is a `DataError` "path:line: what: mend".

    ``check_files``: also require that the file of each sound exists (it is not opened).
    """
    items: list[Utterance] = []
    line_of: dict[str, int] = {}
    for number, item in iter_manifest(path, check_files):
        if item.id in line_of:
            raise DataError(
                f"{path}:{number}: id {item.id!r} is used twice, first on line {line_of[item.id]}: rename or drop one"
            )
        line_of[item.id] = number
        items.append(item)
    if not items:
        raise DataError(f"{path}: the manifest holds no utterances: make it again")
    return items


def iter_manifest(path: str | Path, check_files: bool = True) -> Iterator[tuple[int, Utterance]]:
    """(line, utterance) one at a time, checked but for ids that come twice and for an empty manifest."""
    for number, text in enumerate(_lines(path), start=1):
        yield number, _checked(path, number, text, check_files)


def scan_manifest(path: str | Path, check_files: bool = True) -> Iterator[tuple[int, int, Utterance]]:
    """(line, byte at which it ends, utterance) one at a time, with all checks of `read_manifest`.

    Remembers eight bytes per utterance, so a manifest of any length can be read.
    """
    ids = array("Q")
    end = 0
    for number, text in enumerate(_lines(path), start=1):
        end += len(text.encode()) + 1
        item = _checked(path, number, text, check_files)
        ids.append(hash64(item.id.encode()))
        yield number, end, item
    if not ids:
        raise DataError(f"{path}: the manifest holds no utterances: make it again")
    if len(np.unique(np.frombuffer(ids, dtype=np.uint64))) < len(ids):
        read_manifest(path, check_files=False)  # names the id and its lines


def read_lines_between(path: str | Path, line: int, start: int, stop: int) -> Iterator[tuple[int, Utterance]]:
    """(line, utterance) of the bytes [start, stop) of a manifest, the first of which is line number ``line``."""
    with Path(path).open("rb") as file:
        file.seek(start)
        text = file.read(stop - start).decode()
    for number, row in enumerate(text.removesuffix("\n").split("\n"), start=line):
        yield number, _checked(path, number, row, check_files=False)


def _checked(path: str | Path, number: int, text: str, check_files: bool) -> Utterance:
    item = _parse(text, f"{path}:{number}")
    file = Sound.of(wav_path(path, item)).file
    if check_files and not file.is_file():
        raise DataError(f"{path}:{number}: id {item.id!r}: wav {file} is missing: make it again or drop the line")
    return item


def write_manifest(path: str | Path, items: Iterable[Utterance]) -> None:
    """Write a manifest, whole or not at all.  Ids must be unique."""
    write_json_lines(path, (asdict(item) for item in _unique(path, items)))


def _lines(path: str | Path) -> Iterator[str]:
    try:
        with Path(path).open(encoding="utf-8", newline="\n") as lines:
            yield from (line.removesuffix("\n") for line in lines)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such manifest: make the data first (stage 1), or name the splits that are there (data.splits=[train])"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}): make it again") from error


def _parse(text: str, place: str) -> Utterance:
    record = parse_json(text, place)
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(record).__name__}: mend or drop the line")
    known = [f.name for f in fields(Utterance)]
    missing = [name for name in known if name not in record and name not in ("text", "meta")]
    if missing:
        raise DataError(f"{place}: missing field {', '.join(missing)}: add it; a line holds {', '.join(known)}")
    unknown = [name for name in record if name not in known]
    if unknown:
        raise DataError(f"{place}: unknown field {', '.join(unknown)}: move it into 'meta' or drop it")
    try:
        return Utterance(**{"text": "", **record})
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _unique(path: str | Path, items: Iterable[Utterance]) -> Iterable[Utterance]:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"{path}: id {item.id!r} is to be written twice: give every utterance its own id")
        seen.add(item.id)
        yield item
