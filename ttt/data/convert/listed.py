"""Corpora with a table that lists their recordings, read line by line.

=========== ============================================ ================================ ===============================
layout      table                                        recordings                       speaker, language
=========== ============================================ ================================ ===============================
commonvoice ``train.tsv``: client_id, path, sentence ... ``clips/common_voice_en_1.mp3``  client_id, locale
mls         ``train/transcripts.txt``: ID, tab, text     ``audio/SPEAKER/BOOK/ID.flac``   ID is SPEAKER_BOOK_NUMBER
nemo        JSON a line: audio_filepath, duration, ...   from the table's folder          speaker, lang
emilia      ``EN/EN_B00000.jsonl``: id, wav, text, ...   from the table's folder, mp3     speaker, language
=========== ============================================ ================================ ===============================

Sources: Common Voice as in its release archives (https://commonvoice.mozilla.org, cv-corpus-*); MLS as in
https://www.openslr.org/94 (flac, and the smaller archives of opus); manifests of NVIDIA NeMo (its documentation,
"Preparing Custom ASR Data"); Emilia as distributed by OpenXLab (https://openxlab.org.cn/datasets/Amphion/Emilia).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.data.convert.chats import write_json
from ttt.data.convert.core import UNKNOWN_SPEAKER, Speech, folder_of, mapping, text_of
from ttt.data.convert.corpora import Corpus, seconds, silence, sound_file
from ttt.data.read.records import RecordError, list_or_lines
from ttt.errors import DataError
from ttt.io.text_input import text_lines
from ttt.registry.families import CONVERTER

MEND = "convert the file to UTF-8"
CLIP_COLUMNS = ("client_id", "path", "sentence")
MLS_SUFFIXES = (".flac", ".opus", ".wav")


@CONVERTER.register("commonvoice")
@dataclass(frozen=True)
class CommonVoice(Corpus):
    """Common Voice, the folder of a language: ``train.tsv`` (dev, test, validated, ...) and ``clips``."""

    part: str = "train"  # which table: train, dev, test, validated, other, ...

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a line: a dictionary by the names of the first line."""
        table = path / f"{self.part}.tsv" if path.is_dir() or not path.suffix else path
        if not table.is_file():
            parts = ", ".join(p.stem for p in sorted(path.glob("*.tsv"))) or "none: is this the folder of a language?"
            raise DataError(f"{table}: no such table; choose 'part' among those that are there: {parts}")
        names: list[str] = []
        for number, line in text_lines(table, MEND):
            fields = line.rstrip("\r\n").split("\t")
            if number == 1:
                names = fields
                gone = [column for column in CLIP_COLUMNS if column not in names]
                if gone:
                    raise DataError(f"{table}: no column {gone[0]!r}; columns: {', '.join(names)}")
            elif fields != [""]:
                yield f"{table}:{number}", dict(zip(names, fields, strict=True)) if len(fields) == len(names) else fields

    def convert(self, where: str, row: Any) -> Speech:
        """A clip."""
        if isinstance(row, list):
            message = f"{len(row)} fields, the first line has another number; mend or drop the line"
            raise RecordError(where, "other number of fields", message)
        found = mapping(where, row)
        name = text_of(found, "path", where)
        clip = Path(name if Path(name).suffix else f"{name}.mp3")  # some releases leave the ending out
        wav = sound_file(folder_of(where) / "clips" / clip, where, "copy it there, or drop the row")
        speaker, locale = (text_of(found, key, where, "").strip() for key in ("client_id", "locale"))
        return Speech(
            clip.stem, wav, text_of(found, "sentence", where, "").strip(), speaker or UNKNOWN_SPEAKER,
            meta={"language": locale} if locale else {}, text_at="column 'sentence' is empty",
        )  # fmt: skip

    def sample(self, folder: Path) -> Path:
        """One clip; a wav, named as it is."""
        (folder / "clips").mkdir()
        silence(folder / "clips" / "common_voice_en_1.wav", 0.5)
        (folder / "train.tsv").write_text("client_id\tpath\tsentence\tlocale\n9f\tcommon_voice_en_1.wav\tyes\ten\n")
        return folder


@CONVERTER.register("mls")
@dataclass(frozen=True)
class Mls(Corpus):
    """Multilingual LibriSpeech, one part: ``transcripts.txt`` and ``audio/SPEAKER/BOOK/ID.flac`` (or .opus)."""

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a line of ``transcripts.txt``."""
        table = path / "transcripts.txt"
        if not table.is_file():
            raise DataError(f"{table}: no such file; name the folder of one part, as mls_german/train")
        for number, line in text_lines(table, MEND):
            if line.strip():
                yield f"{table}:{number}", line.strip().split("\t", 1)

    def convert(self, where: str, row: Any) -> Speech:
        """A recording; its name says whose it is."""
        uid, text = row if isinstance(row, list) and [*map(type, row)] == [str, str] else ("", "")
        names = uid.split("_")
        if len(names) != 3 or not all(names):
            raise RecordError(where, "not a line", "expected SPEAKER_BOOK_NUMBER, a tab, the text; mend or drop the line")
        folder = folder_of(where).absolute()
        files = [folder / "audio" / names[0] / names[1] / f"{uid}{suffix}" for suffix in MLS_SUFFIXES]
        wav = next((f for f in files if f.is_file()), files[0])
        language = re.fullmatch(r"mls_(\w+?)(_opus)?", folder.parent.name)
        return Speech(
            uid, sound_file(wav, where, "unpack the audio there, or drop the line"), text.strip(), names[0],
            meta={"language": language[1]} if language else {}, text_at="nothing behind the tab",
        )  # fmt: skip

    def sample(self, folder: Path) -> Path:
        """One recording of a speaker, as a wav."""
        (folder / "audio" / "10" / "20").mkdir(parents=True)
        silence(folder / "audio" / "10" / "20" / "10_20_000000.wav", 0.5)
        (folder / "transcripts.txt").write_text("10_20_000000\tyes\n")
        return folder


@CONVERTER.register("nemo")
@dataclass(frozen=True)
class Nemo(Corpus):
    """Manifests of one JSON object a line, as NeMo's (``audio_filepath``, ``offset``, ``duration``) and Emilia's (``wav``).

    With ``offset`` a line is that stretch of its file; otherwise ``duration`` is the file's, and is checked.  ``id``,
    ``text``, ``speaker`` and ``lang`` or ``language`` are read where they are given.
    """

    root: str = ""  # folder that relative paths count from; empty: the manifest's

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a line, whether the file is called ``.jsonl`` or ``.json``."""
        return list_or_lines(path)

    def convert(self, where: str, row: Any) -> Speech:
        """An utterance."""
        found = mapping(where, row)
        name = text_of(found, "audio_filepath" if "audio_filepath" in found else "wav", where)
        start = found.get("offset")
        uid = next((str(found[k]) for k in ("id", "_id", "utt_id") if isinstance(found.get(k), str | int)), "")
        speaker = next((str(found[k]) for k in ("speaker", "speaker_id") if isinstance(found.get(k), str | int)), "")
        language = text_of(found, "lang" if "lang" in found else "language", where, "")
        return Speech(
            uid or Path(name).with_suffix("").as_posix() + ("" if start is None else f"-{start}"),
            sound_file(Path(self.root or folder_of(where)) / name, where), text_of(found, "text", where, "").strip(),
            speaker or UNKNOWN_SPEAKER, seconds(start or 0.0, where),
            seconds(found["duration"], where) if "duration" in found else None, whole=start is None,
            meta={"language": language} if language else {}, text_at="field 'text'",
        )  # fmt: skip

    def sample(self, folder: Path) -> Path:
        """A whole file and the second half of it."""
        silence(folder / "a.wav", 1.0)
        return write_json(folder, "manifest.jsonl", [
            {"audio_filepath": "a.wav", "duration": 1.0, "text": "yes no", "lang": "en"},
            {"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.5, "text": "no", "speaker": "ann"},
        ])  # fmt: skip
