"""Sound inside tables: parquet shards and folders that Hugging Face `datasets` saved, with the feature ``Audio``.

A cell holds ``bytes`` (a whole sound file) and ``path``; it is not decoded here.  This is how LibriSpeech, Multilingual
LibriSpeech, Common Voice, GigaSpeech, LibriTTS-R, VoiceAssistant-400K and others lie on the Hugging Face Hub
(``data/train-00000-of-00014.parquet``), and what ``Dataset.save_to_disk`` writes.  Source: documentation of `datasets`,
"Audio" and "Load audio data" (whose folders with ``metadata.csv`` or ``metadata.jsonl`` are read too).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.audio.sound import Sound
from ttt.data.convert.core import UNKNOWN_SPEAKER, Speech, mapping
from ttt.data.convert.corpora import Corpus, silence, sound_file
from ttt.data.read.records import RecordError, decode, raw_records
from ttt.data.read.tables import arrow_rows, is_saved, parquet_rows, saved_files, schema_of
from ttt.errors import DataError, suggest
from ttt.io.text_input import text_lines
from ttt.registry.families import CONVERTER

# Names of columns (and of fields beside the members of tars), the first that is there
TEXT = ("text", "sentence", "transcript", "transcription", "normalized_text", "text_normalized", "raw_text")
SPEAKER = ("speaker", "speaker_id", "client_id")
LANGUAGE = ("language", "lang", "locale")
ID = ("id", "_id", "segment_id", "utt_id")
METADATA = ("metadata.jsonl", "metadata.csv")
_SHARD = re.compile(r"(.+)-\d+-of-\d+")


def table_files(path: Path, part: str = "") -> list[Path]:
    """The parquet or Arrow files of a table: of a file, a folder of shards, or a saved dataset; ``part``: of that split.

    Raises `DataError` where there are none, or several splits to choose from.
    """
    if path.is_file():
        return [path]
    if is_saved(path):
        return saved_files(path / part if part and (path / "dataset_dict.json").is_file() else path)
    found = sorted(path.rglob("*.parquet"))
    split_of = {file: match[1] for file in found if (match := _SHARD.fullmatch(file.stem))}
    splits = sorted(set(split_of.values()))
    if part:
        found = [file for file in found if split_of.get(file, file.stem) == part]
    if not found or (len(splits) > 1 and not part):
        there = f"; splits: {', '.join(splits)}; choose 'part'" if splits else ""
        what = "several splits" if len(splits) > 1 and not part else "no parquet file and no saved dataset"
        raise DataError(f"{path}: {what}{there}" if path.exists() else f"{path}: no such file or folder")
    return found


def table_rows(path: Path, columns: Sequence[str], part: str = "") -> Iterator[tuple[str, Path, int, dict[str, Any]]]:
    """(place, file, number in the file, the row's ``columns``) of a table, in order; a field without a value is left out."""
    for file in table_files(path, part):
        rows = arrow_rows(file, columns) if file.suffix == ".arrow" else parquet_rows(file, columns)
        for number, row in enumerate(rows):
            yield f"{file}[{number}]", file, number, row


@CONVERTER.register("hf")
@dataclass(frozen=True)
class HuggingFace(Corpus):
    """Tables with a column of sound: parquet shards, `save_to_disk`, folders with ``metadata.csv`` or ``metadata.jsonl``.

    The columns are found by the names in use (``ttt/data/convert/sound_tables.py``) unless they are given.
    """

    part: str = ""  # split of a folder of shards or of a saved dictionary, as train
    audio: str = ""  # column of the sound; empty: the only one with bytes and path
    text: str = ""  # column of the transcript; empty: text, sentence, transcript, ...
    speaker: str = ""  # column of the speaker; empty: speaker, speaker_id, client_id
    language: str = ""  # column of the language; empty: language, lang, locale
    id: str = ""  # column of the name; empty: id, segment_id, ..., else file and row

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a recording: its transcript, speaker, language, name; and where its sound is: ``cell`` or ``file``."""
        table = next((path / name for name in METADATA if (path / name).is_file()), None)
        if table is not None and not is_saved(path):
            yield from self._metadata(table)
            return
        for file in table_files(path, self.part):
            roles, sound = self._columns(file)
            rows = arrow_rows if file.suffix == ".arrow" else parquet_rows
            for number, row in enumerate(rows(file, list(roles.values()))):
                yield f"{file}[{number}]", {**picked(row, roles), "cell": [str(file.absolute()), number, sound]}

    def convert(self, where: str, row: Any) -> Speech:
        """A recording; whether its cell holds sound is seen when it is opened."""
        found = mapping(where, row)
        if "file" in found:
            wav: Path | Sound = sound_file(Path(word(found, "file", where)), where, "copy it there, or drop the row")
        else:
            file, number, column = cell if isinstance(cell := found.get("cell"), list) and len(cell) == 3 else ("", -1, "")
            if not (isinstance(file, str) and type(number) is int and number >= 0 and isinstance(column, str) and column):
                raise RecordError(where, "not a row", "expected where the sound is, 'cell' or 'file'; mend or drop the row")
            wav = Sound(Path(file), cell=(number, column))
        language = word(found, "language", where)
        return Speech(
            word(found, "id", where) or where.rpartition("/")[2], wav, word(found, "text", where),
            word(found, "speaker", where) or UNKNOWN_SPEAKER, meta={"language": language} if language else {},
            text_at="its column of text is empty",
        )  # fmt: skip

    def sample(self, folder: Path) -> Path:
        """A folder of two sounds with ``metadata.jsonl``, which needs no pyarrow."""
        silence(folder / "a.wav", 0.5)
        (folder / "metadata.jsonl").write_text('{"file_name": "a.wav", "transcription": "yes", "speaker_id": 7}\n')
        return folder

    def _columns(self, file: Path) -> tuple[dict[str, str], str]:
        """(what is read of a table: role -> column, the column of the sound)."""
        schema = schema_of(file)
        kinds = dict(zip(schema.names, schema.types, strict=True))
        sounds = [n for n, kind in kinds.items() if {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}]
        sounds = sounds or [name for name, kind in kinds.items() if str(kind) in ("binary", "large_binary")]
        if not self.audio and len(sounds) != 1:
            what = f"several columns hold sound: {', '.join(sounds)}" if sounds else "no column holds bytes of sound"
            raise DataError(f"{file}: {what}; name one in 'audio'; columns: {', '.join(kinds)}")
        return roles_of(self, kinds, str(file)), self._known(self.audio or sounds[0], kinds, file)

    def _known(self, column: str, known: Mapping[str, Any], file: Path) -> str:
        if column not in known:
            raise DataError(f"{file}: no column {column!r}.{suggest(column, list(known))} Columns: {', '.join(known)}")
        if "#" in column:
            raise DataError(f"{file}: column {column!r}: a column of sound may not have '#' in its name; rename it")
        return column

    def _metadata(self, table: Path) -> Iterator[tuple[str, Any]]:
        """Rows of ``metadata.csv`` or ``metadata.jsonl``: ``file_name`` counts from their folder."""
        rows = _csv_rows(table) if table.suffix == ".csv" else raw_records(table)
        for where, raw in rows:
            try:
                row = mapping(where, decode(where, raw))
            except RecordError:
                yield where, raw
                continue
            name = row.get("file_name")
            named = {"file": str(table.parent.absolute() / name)} if isinstance(name, str) and name else {}
            yield where, {**picked(row, roles_of(self, row, where)), **named}


def roles_of(fields: Any, known: Mapping[str, Any], place: str) -> dict[str, str]:
    """Role (text, speaker, language, id) -> the name of it in ``known``: the one that ``fields`` gives, else the first in use.

    Raises `RecordError` for a given name that is not there.
    """
    found = {}
    for role, names in (("text", TEXT), ("speaker", SPEAKER), ("language", LANGUAGE), ("id", ID)):
        given = getattr(fields, role)
        if given and given not in known:
            message = f"no column or field {given!r}.{suggest(given, list(known))} There are: {', '.join(known)}"
            raise RecordError(place, f"no {role}", message)
        name = given or next((n for n in names if n in known), "")
        if name:
            found[role] = name
    return found


def picked(row: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a row that have a role, by role."""
    return {role: row[column] for role, column in roles.items() if column in row}


def word(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text, or a number as text; "" where there is none."""
    value = row.get(key, "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError(where, "unexpected form", f"{key}: expected a text, got {type(value).__name__}; mend or drop the row")
    return str(value).strip()


def _csv_rows(table: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(line for _, line in text_lines(table, "convert the file to UTF-8"))
    if "file_name" not in (reader.fieldnames or ()):
        raise DataError(f"{table}: no column 'file_name'; for LJSpeech's metadata.csv use --from folder")
    for row in reader:
        yield f"{table}:{reader.line_num}", {k: v for k, v in row.items() if isinstance(k, str) and v is not None}
