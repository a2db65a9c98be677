"""Sets of minimal pairs as they are published: which recording (or text) should be likelier than which.

=========================================== ==========================================================================
what is named                               how it is read
=========================================== ==========================================================================
a folder with ``gold.csv`` (or with such    ZeroSpeech 2021's sWUGGY (``lexical``) and sBLIMP (``syntactic``): rows of one
folders)                                    ``id`` and ``voice``, ``correct`` 1 and 0, ``filename`` beside the table
a parquet with ``positive_audio``,          SALMon on the Hugging Face Hub, and whatever has these columns; ``task`` names
``negative_audio``, or a folder of such     the group, else the file's folder
a folder of ``sample_N_*.wav``              SALMon's own archive: the first of a number, by name, is right
a folder of ``N_*.wav`` or ``N+*.wav``      slamkit's layout (StoryCloze, sWUGGY, sBLIMP): two files of one number, told by
                                            their names (correct, incorrect), or numbers 2k (right) and 2k + 1 (wrong)
``.jsonl``, ``.json``                       rows of ``id``, ``group``, ``positive``, ``negative``: each a sound file, a list
                                            of codes, or a text
=========================================== ==========================================================================

Sources: slp-rl/slamkit, ``slamkit/metric/modelling_metric.py``; slp-rl/salmon, ``salmon.py``; zerospeech2021, ``lexical.py`` and
``syntactic.py``.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttt.audio.sound import Sound
from ttt.data.read.examples import codes_array
from ttt.data.read.records import read_records
from ttt.data.read.tables import parquet_rows, schema_of
from ttt.errors import DataError

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus")
_NUMBERED = re.compile(r"(\d+)[_+.]")
_SAMPLE = re.compile(r"[A-Za-z]+_(\d+)_")
_WRONG = re.compile(r"incorrect|wrong|neg|false|bad", re.IGNORECASE)
_RIGHT = re.compile(r"correct|right|pos|true|good", re.IGNORECASE)
Side = Sound | np.ndarray | str


@dataclass(frozen=True)
class MinimalPair:
    """``positive`` should be likelier than ``negative``: sounds, codes i32 [F, Q], or texts.  Pairs of one ``group`` and ``id``
    (several voices of one word) count as one item."""

    id: str
    group: str
    positive: Side
    negative: Side


def read_pairs(path: str | Path) -> tuple[list[MinimalPair], list[Path]]:
    """(pairs, the files that say which belong together; of folders that files' names tell, the folders).

    Raises `DataError` for what is none of the layouts above, and for a file without its partner.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder of pairs")
    if path.is_file():
        if path.suffix == ".parquet":
            return list(_table(path, path.parent.name)), [path]
        return [_row(where, record, path.parent) for where, record in read_records(path)], [path]
    tables = sorted(path.rglob("gold.csv"))
    if tables:
        return [pair for table in tables for pair in _zerospeech(table, _inside(table.parent, path))], tables
    shards = sorted(path.rglob("*.parquet"))
    if shards:
        return [pair for file in shards for pair in _table(file, _inside(file.parent, path))], shards
    folders = sorted({file.parent for file in path.rglob("*") if file.suffix.lower() in SOUNDS})
    if not folders:
        raise DataError(f"{path}: no gold.csv, no parquet and no sound file in it; name the folder of a benchmark")
    return [pair for folder in folders for pair in _by_name(folder, _inside(folder, path))], folders


def _inside(folder: Path, root: Path) -> str:
    """The group that a folder stands for: its path below the root, else the root's name."""
    return "/".join(folder.relative_to(root).parts) or root.resolve().name


def _row(where: str, record: Any, base: Path) -> MinimalPair:
    if not isinstance(record, Mapping) or not {"positive", "negative"} <= set(record):
        raise DataError(f"{where}: a pair needs 'positive' and 'negative' (and 'id', 'group'); mend or drop the row")
    sides = [_side(record[key], base, f"{where}, {key}") for key in ("positive", "negative")]
    return MinimalPair(str(record.get("id", where.rpartition("/")[2])), str(record.get("group", "pairs")), *sides)


def _side(value: Any, base: Path, where: str) -> Side:
    if isinstance(value, list | np.ndarray):
        return codes_array(value, where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: expected a sound file, a list of codes, or a text; mend or drop the row")
    if Path(value).suffix.lower() in SOUNDS or "#row=" in value or "#at=" in value:
        return Sound.of(str(_there(base / value.partition("#")[0], where)) + "".join(value.partition("#")[1:]))
    return value


def _there(file: Path, where: str) -> Path:
    if not file.is_file():
        raise DataError(f"{where}: {file}: no such file; copy it there, or mend the row")
    return file


def _zerospeech(table: Path, group: str) -> Iterator[MinimalPair]:
    sides: dict[tuple[str, str], dict[str, list[Mapping[str, str]]]] = defaultdict(lambda: {"1": [], "0": []})
    with table.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        missing = {"filename", "id", "correct"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(f"{table}: no column {sorted(missing)[0]!r}; the answers of the test sets are not published with them")
        for row in rows:
            if row["correct"] not in ("0", "1"):
                raise DataError(f"{table}:{rows.line_num}: correct must be 1 or 0, got {row['correct']!r}; mend the table")
            sides[row["id"], row.get("voice", "")][row["correct"]].append({**row, "line": str(rows.line_num)})
    for (number, voice), found in sides.items():
        if not found["1"] or not found["0"]:
            raise DataError(f"{table}: id {number}, voice {voice!r}: a row with correct = 1 and one with 0 are needed")
        for right in found["1"]:
            part = right.get("type") or ("" if "frequency" not in right else "oov" if _unknown(right) else "in_vocabulary")
            name = f"{group}/{part}" if part else group
            for wrong in found["0"]:
                files = [_there(_named(table.parent, r["filename"]), f"{table}:{r['line']}") for r in (right, wrong)]
                yield MinimalPair(number, name, Sound(files[0]), Sound(files[1]))


def _unknown(row: Mapping[str, str]) -> bool:
    """Is the word not in the training text?  Its frequency is empty then, or says so."""
    return row["frequency"].strip().lower() in ("", "nan", "oov", "0")


def _named(folder: Path, name: str) -> Path:
    return folder / (name if Path(name).suffix.lower() in SOUNDS else f"{name}.wav")


def _table(file: Path, group: str) -> Iterator[MinimalPair]:
    names = schema_of(file).names
    missing = {"positive_audio", "negative_audio"} - set(names)
    if missing:
        raise DataError(f"{file}: no column {sorted(missing)[0]!r}; columns: {', '.join(names)}")
    known = [name for name in ("task", "ind") if name in names]
    rows = parquet_rows(file, known) if known else ({} for _ in parquet_rows(file, names[:1]))
    for number, row in enumerate(rows):
        cells = [Sound(file.absolute(), cell=(number, f"{side}_audio")) for side in ("positive", "negative")]
        yield MinimalPair(str(row.get("ind", f"{file.name}[{number}]")), str(row.get("task", group)), *cells)


def _by_name(folder: Path, group: str) -> Iterator[MinimalPair]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SOUNDS)
    by_number: dict[int, list[Path]] = {}
    samples = all(_SAMPLE.match(file.name) for file in files)
    for file in files:
        told = (_SAMPLE if samples else _NUMBERED).match(file.name)
        if not told:
            raise DataError(f"{file}: its name begins with no number, so its partner is not known; use a .jsonl of pairs")
        by_number.setdefault(int(told[1]), []).append(file)
    if not samples and all(len(f) == 1 for f in by_number.values()):  # 2k is right, 2k + 1 wrong
        singles = [by_number[number][0] for number in sorted(by_number)]
        if len(singles) % 2:
            raise DataError(f"{folder}: {len(singles)} files are no pairs: one is missing, or one too many")
        by_number = {number: singles[2 * number : 2 * number + 2] for number in range(len(singles) // 2)}
    elif not samples:
        by_number = {number: _told(found, folder) for number, found in by_number.items()}
    for number, found in sorted(by_number.items()):
        if len(found) != 2:
            raise DataError(f"{folder}: number {number} has {len(found)} files, expected 2; copy the folder again")
        yield MinimalPair(str(number), group, *map(Sound, found))


def _told(files: list[Path], folder: Path) -> list[Path]:
    """(right, wrong) of the files of one number, by what their names say."""
    wrong = [file for file in files if _WRONG.search(file.stem)]
    right = [file for file in files if file not in wrong and _RIGHT.search(file.stem)]
    if len(files) == 2 and (len(wrong) != 1 or len(right) != 1):
        raise DataError(f"{folder}: {files[0].name} and {files[1].name}: which is right? Name them correct and incorrect")
    return [*right, *wrong]
