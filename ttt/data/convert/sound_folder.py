"""Folders of sound files, with transcripts as corpora are distributed.

=========== ============================================ ====================================== ======================
layout      recordings                                   transcripts                            speaker
=========== ============================================ ====================================== ======================
beside      any tree                                     a text file of the same name beside    ``speaker_level``
ljspeech    ``wavs/ID.wav``                              ``metadata.csv``: ID|text|normalized   unknown
libritts    SPEAKER/CHAPTER/ID.wav                       ID.normalized.txt beside               the folder SPEAKER
librispeech SPEAKER/CHAPTER/ID.flac                      SPEAKER-CHAPTER.trans.txt beside       the folder SPEAKER
aishell     ``wav/PART/SPEAKER/ID.wav``                  ``transcript/aishell*.txt``            the folder SPEAKER
aishell2    ``wav/SPEAKER/ID.wav``                       ``trans.txt``: ID, tab, text           the folder SPEAKER
aishell3    ``wav/SPEAKER/ID.wav``                       ``content.txt``: characters and pinyin the folder SPEAKER
=========== ============================================ ====================================== ======================

Sources: https://keithito.com/LJ-Speech-Dataset, https://www.openslr.org/60 (LibriTTS; LibriTTS-R, 141, is alike), /12
(LibriSpeech), /33 (AISHELL-1), /93 (AISHELL-3); AISHELL-2 (``iOS/data``, and ``iOS/dev``, ``iOS/test`` of its test set) as in
Kaldi's ``egs/aishell2/s5/local/prepare_data.sh``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.data.convert.core import UNKNOWN_SPEAKER, LeftOut, Speech
from ttt.data.convert.corpora import Corpus, silence, sound_file
from ttt.data.read.records import RecordError
from ttt.errors import DataError
from ttt.io.text_input import EncodingFault, decode_text, read_text, text_lines
from ttt.registry import NonNegativeInt
from ttt.registry.families import CONVERTER

MEND = "convert the file to UTF-8"
SOUND = (
    ".wav", ".flac", ".mp3", ".opus", ".ogg", ".m4a", ".aac", ".wma", ".aiff", ".aif", ".au", ".snd", ".sph", ".amr", ".3gp",
    ".webm", ".mp4", ".mkv", ".mka", ".caf", ".w64", ".wv", ".ape", ".oga", ".m4b", ".mp2", ".raw", ".pcm", ".voc",
)  # fmt: skip
ARCHIVES = (".tar", ".gz", ".tgz", ".zip", ".bz2", ".xz", ".7z", ".rar")
DEFAULT_TEXT = ".txt"
LIBRITTS, LIBRISPEECH = ".normalized.txt", ".trans.txt"
HIGHER = 3  # folders above that may hold the transcripts of AISHELL
_BETWEEN = re.compile(r"(?<=[\u3400-\u9fff])\s+(?=[\u3400-\u9fff])")


# (id, sound file, transcript, speaker, where the transcript was looked for, does the corpus leave it out of its
# transcripts?); the transcript is the text, the file that holds it, or None.
Entry = tuple[str, Path, str | Path | None, str, str, bool]


@CONVERTER.register("folder")
@dataclass(frozen=True)
class Folder(Corpus):
    """A folder tree of sound files with transcripts, or without: LJSpeech, LibriTTS, LibriSpeech, AISHELL-1/2/3, or files beside.

    The layout is seen from the files.  Sound files of other kinds, and transcripts without recording, are counted.
    """

    suffixes: tuple[str, ...] = (".wav", ".flac", ".mp3", ".opus", ".ogg")  # endings of sound files
    text_suffix: str = DEFAULT_TEXT  # ending of the text file beside (LibriTTS: .normalized.txt, found by itself)
    speaker_level: NonNegativeInt = (
        0  # which folder above the file names the speaker: 1 its own, 2 the one above; 0: none
    )

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a sound file: (place, where it and its transcript are)."""
        if not path.is_dir():
            raise DataError(f"{path}: no such folder")
        if (path / "metadata.csv").is_file():
            with (path / "metadata.csv").open("rb") as file:
                if b"file_name" in file.readline():
                    raise DataError(f"{path / 'metadata.csv'}: the table of a Hugging Face folder; use --from hf")
            yield from self._ljspeech(path)
            return
        table = _aishell(path)
        listed: set[str] = set()
        yield from self._tree(path, path, table, listed)
        if table is not None:
            for name in table.texts:
                if name not in listed and not table.elsewhere:
                    yield str(table.path), _without_recording(name)

    def convert(self, where: str, row: Any) -> Speech:
        """A whole sound file."""
        if isinstance(row, EncodingFault):
            raise RecordError(where, "not UTF-8", f"{row}; {MEND}")
        if not isinstance(row, tuple) or len(row) != 6:
            raise RecordError(where, "not a row", f"expected a sound file's entries, got {type(row).__name__}")
        uid, path, text, speaker, text_at, unlisted = row
        if isinstance(text, Path):
            try:
                text = read_text(text, MEND)
            except DataError as error:
                raise RecordError(where, "transcript not readable", str(error)) from error
        wav = sound_file(Path(path), where, "copy it there, or drop the row")
        return Speech(uid, wav, " ".join((text or "").split()), speaker, text_at=text_at, unlisted=bool(unlisted))

    def sample(self, folder: Path) -> Path:
        """One speaker, one file."""
        (folder / "ann").mkdir()
        silence(folder / "ann" / "one.wav", 0.5)
        (folder / "ann" / "one.txt").write_text("yes\n")
        return folder

    def _ljspeech(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Lines ``id|text|normalized``; where there is no normalized text, the text."""
        table, named = path / "metadata.csv", set()
        with table.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                where = f"{table}:{number}"
                try:
                    fields = decode_text(raw).rstrip("\r\n").split("|")
                except EncodingFault as fault:
                    yield where, fault
                    continue
                if fields == [""]:
                    continue
                uid = fields[0]
                texts = [f for f in reversed(fields[1:]) if f.strip()]
                wavs = [path / "wavs" / f"{uid}{suffix}" for suffix in self.suffixes]
                wav = next((w for w in wavs if w.is_file()), wavs[0])
                named.add(wav.name)
                at = f"line {number} of {table.name}"
                yield where, (uid, wav, texts[0] if texts else None, UNKNOWN_SPEAKER, at, False)
        for name, is_folder in _entries(path / "wavs") if (path / "wavs").is_dir() else ():
            if is_folder or name in named:
                continue
            extra = path / "wavs" / name
            if name.lower().endswith(self.suffixes):
                yield str(extra), LeftOut("recording without transcript", f"{table.name} has no line for it")
            else:
                yield from self._other(extra)

    def _tree(self, path: Path, folder: Path, table: _Table | None, listed: set[str]) -> Iterator[tuple[str, Any]]:
        """The sound files below a folder in order; one folder's names in memory at a time."""
        entries = _entries(folder)
        names = [name for name, is_folder in entries if not is_folder]
        rows = self._folder(path, folder, names, table, listed)
        for name, is_folder in entries:
            if is_folder:
                yield from self._tree(path, folder / name, table, listed)
            elif name in rows:
                yield str(folder / name), rows.pop(name)
        yield from rows.get("", ())

    def _folder(
        self, path: Path, folder: Path, names: list[str], table: _Table | None, listed: set[str]
    ) -> dict[str, Any]:
        """The sound files of one folder by name, and under "" what is left out of it."""
        wavs = [name for name in names if name.lower().endswith(self.suffixes)]
        lines: dict[str, str] = {}  # LibriSpeech: transcripts of this folder
        trans = [name for name in names if name.endswith(LIBRISPEECH)] if self.text_suffix == DEFAULT_TEXT else []
        for name in trans:
            for _, line in text_lines(folder / name, MEND):
                key, _, words = line.strip().partition(" ")
                lines[key] = words
        used = set(trans)
        rows: dict[str, Any] = {}  # name -> `Entry`
        for name in wavs:
            wav = folder / name
            stem = Path(name).stem
            uid = wav.relative_to(path).with_suffix("").as_posix()
            beside = next((s for s in self._text_suffixes(stem, names) if f"{stem}{s}" in names), None)
            text: str | Path | None = None
            level, at, unlisted = self.speaker_level, f"{stem}{self.text_suffix} is missing", False
            if beside is not None:
                text, at = folder / f"{stem}{beside}", f"{stem}{beside} is empty"
                level = level or (2 if beside == LIBRITTS and self.text_suffix == DEFAULT_TEXT else 0)
                used.add(f"{stem}{beside}")
            elif trans:
                text, at, unlisted, level = lines.pop(stem, ""), f"{trans[0]} has no line for it", True, level or 2
            elif table is not None:
                text, at, unlisted, level = (
                    table.texts.get(stem),
                    f"{table.path.name} has no line for it",
                    True,
                    level or 1,
                )
                listed.add(stem)
            speaker = _above(wav, path, level)
            rows[name] = (uid, wav, text, speaker, at, unlisted)
        rows[""] = [
            *self._rest(folder, names, used, wavs),
            *((str(folder / trans[0]), _without_recording(k)) for k in lines),
        ]
        return rows

    def _rest(self, folder: Path, names: list[str], used: set[str], wavs: list[str]) -> Iterator[tuple[str, LeftOut]]:
        """What a folder holds beside recordings and their transcripts."""
        stems = {Path(name).stem for name in wavs}
        for name in names:
            if name in used or name in wavs:
                continue
            text_of = name.removesuffix(self.text_suffix) if name.endswith(self.text_suffix) else ""
            if text_of and wavs and not any(text_of == s or text_of.startswith(f"{s}.") for s in stems):
                yield str(folder / name), _without_recording(text_of)
            else:
                yield from self._other(folder / name)

    def _text_suffixes(self, stem: str, names: list[str]) -> tuple[str, ...]:
        return (self.text_suffix, LIBRITTS) if self.text_suffix == DEFAULT_TEXT else (self.text_suffix,)

    def _other(self, path: Path) -> Iterator[tuple[str, LeftOut]]:
        """What is said of a file that is neither recording nor transcript."""
        ending = path.suffix.lower()
        if ending in SOUND:
            mend = "convert it, or name its ending in 'suffixes'"
            yield str(path), LeftOut(f"{ending} file", f"not among the endings {', '.join(self.suffixes)}; {mend}")
        elif ending in ARCHIVES:
            mend = "use --from tar" if ending == ".tar" else "unpack it first"
            yield str(path), LeftOut(f"{ending} file", f"an archive; {mend}")


@dataclass
class _Table:
    """The transcripts of a corpus in one file; ``elsewhere``: some belong to other parts of the corpus."""

    path: Path
    texts: dict[str, str]
    elsewhere: bool


def _aishell(path: Path) -> _Table | None:
    """The transcripts of AISHELL above or in ``path``, without the blanks between words; None for other corpora."""
    for folder in [path, *path.absolute().parents][: HIGHER + 1]:
        files = sorted((folder / "transcript").glob("aishell*transcript*.txt")) if (folder / "transcript").is_dir() else []
        if files:
            return _Table(files[0], dict(_lines(files[0])), folder != path)
        trans = folder / "trans.txt"
        if trans.is_file() and (folder / "wav").is_dir():
            return _Table(trans, dict(_lines(trans)), folder != path)
        content = folder / "content.txt"
        if content.is_file() and (folder / "wav").is_dir():
            pairs = ((name.removesuffix(".wav"), "".join(text.split()[::2])) for name, text in _lines(content))
            return _Table(content, dict(pairs), folder != path)
    return None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of lines: the name, a blank or tab, the text."""
    for _, line in text_lines(path, MEND):
        name, *rest = line.split(maxsplit=1)[:2] or [""]
        if name:
            yield (
                name,
                _BETWEEN.sub("", rest[0].strip()) if rest and path.name != "content.txt" else "".join(rest).strip(),
            )


def _without_recording(name: str) -> LeftOut:
    return LeftOut("transcript without recording", f"{name!r} has a transcript and no recording")


def _above(wav: Path, path: Path, level: int) -> str:
    """The name of the folder ``level`` above a file, the name of ``path`` itself included; 0: nobody knows."""
    inside = wav.relative_to(path).parts
    if not 0 < level <= len(inside):
        return UNKNOWN_SPEAKER
    return inside[-1 - level] if level < len(inside) else path.absolute().name or UNKNOWN_SPEAKER


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """(name, is it a folder?) of what is in a folder, in order."""
    try:
        with os.scandir(folder) as found:
            return sorted((e.name, e.is_dir()) for e in found)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read: {error.strerror}; make it readable, or name another folder"
        ) from error
