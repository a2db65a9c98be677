"""Sound inside tars: shards of sound files beside their texts, as Emilia and WebDatasets have.

Emilia on the Hugging Face Hub (amphion/Emilia-Dataset): ``Emilia/EN/EN-B000000.tar`` with pairs of members
``EN_B00000_S00000_W000000.mp3`` and ``.json``, ``{"id", "wav", "text", "duration", "speaker", "language", "dnsmos"}``;
Emilia-YODAS writes ``_id``.  WebDataset (https://github.com/webdataset/webdataset, its README): members that share their
path up to the first point of the name belong together and follow each other; besides ``.json``, a text may be ``.txt``,
``.lab`` or ``.normalized.txt``.

Only headers and texts are read here: the sound of a member is named by its place in the tar.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.audio.sound import Sound
from ttt.data.convert.core import UNKNOWN_SPEAKER, LeftOut, LeftOutError, Speech, mapping
from ttt.data.convert.corpora import Corpus, silence
from ttt.data.convert.sound_folder import ARCHIVES
from ttt.data.convert.sound_tables import picked, roles_of, word
from ttt.data.read.records import RecordError, decode
from ttt.errors import DataError
from ttt.io.text_input import EncodingFault, decode_text
from ttt.registry.families import CONVERTER

SOUND_SUFFIXES = ("wav", "flac", "mp3", "opus", "ogg")
TEXT_SUFFIXES = ("normalized.txt", "txt", "lab")
_BLOCK = 512  # bytes


@CONVERTER.register("tar")
@dataclass(frozen=True)
class Tar(Corpus):
    """Tar shards, not compressed: a sound file and a ``.json`` or ``.txt`` of the same name, one after the other (Emilia).

    Fields of the JSON are found by the names in use unless they are given.
    """

    text: str = ""  # field of the transcript; empty: text, sentence, transcript, ...
    speaker: str = ""  # field of the speaker; empty: speaker, speaker_id, client_id
    language: str = ""  # field of the language; empty: language, lang, locale
    id: str = ""  # field of the name; empty: id, _id, ..., else tar and member

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a group of members: ``key``, ``sounds`` ([name, offset, size]), ``json``, ``text``."""
        tars = [path] if not path.is_dir() else sorted(path.rglob("*.tar"))
        if not tars:
            raise DataError(f"{path}: no tar in it; name the folder of the shards (.tar, not compressed)")
        for other in sorted(p for p in path.rglob("*") if p.suffix in ARCHIVES and p not in tars) if path.is_dir() else ():
            yield str(other), LeftOut(f"{other.suffix} file", "a compressed archive; unpack it, or gunzip it to a .tar")
        for tar in tars:
            yield from _groups(tar)

    def convert(self, where: str, row: Any) -> Speech:
        """The sound of a group, with the words that stand beside it."""
        if isinstance(row, DataError):
            raise RecordError(where, "tar is cut off", str(row)) from row
        found = mapping(where, row)
        sounds, key = found.get("sounds"), word(found, "key", where)
        if not isinstance(sounds, list) or not all(isinstance(s, list) and [*map(type, s)] == [str, int, int] for s in sounds):
            raise RecordError(where, "not a row", "expected the members of one name; mend the tar")
        if not sounds:
            raise LeftOutError(where, "transcript without recording", f"{key!r} has a text and no sound right beside it")
        if len(sounds) > 1:
            names = ", ".join(name for name, _, _ in sounds)
            raise RecordError(where, "several sounds", f"{key!r}: {names} share their name up to the first point; rename them")
        ((_, offset, size),) = sounds
        about = mapping(where, decode(where, found["json"])) if "json" in found else {}
        roles = picked(about, roles_of(self, about, where)) if about else {}
        try:
            beside = " ".join(decode_text(found["text"]).split()) if isinstance(found.get("text"), bytes) else ""
        except EncodingFault as fault:
            raise RecordError(where, "not UTF-8", f"the text of {key!r}: {fault}; convert it to UTF-8") from fault
        tar, language = Path(word(found, "tar", where)), word(roles, "language", where)
        return Speech(
            word(roles, "id", where) or f"{tar.stem}/{key}", Sound(tar, member=(offset, size)),
            beside or word(roles, "text", where),
            word(roles, "speaker", where) or UNKNOWN_SPEAKER, meta={"language": language} if language else {},
            text_at="neither a .json with a text nor a .txt stands beside it",
        )  # fmt: skip

    def sample(self, folder: Path) -> Path:
        """One pair, as Emilia's; a wav, named as it is."""
        wav = silence(folder / "EN_B0_S0_W0.wav", 0.5)
        about = folder / "EN_B0_S0_W0.json"
        about.write_text('{"id": "EN_B0_S0_W0", "text": " yes", "speaker": "EN_B0_S0", "language": "en"}')
        with tarfile.open(folder / "EN-B000000.tar", "w") as tar:
            for path in (about, wav):
                tar.add(path, path.name)
                path.unlink()
        return folder


def _groups(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, group) of the members that belong together; last, where the tar is cut off, the `DataError` that says so."""
    group: dict[str, Any] = {}
    cut_off = None
    with _opened(path) as tar:
        try:
            for member in _members(tar, path):
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = name.partition(".")
                key, suffix = f"{folder}/{stem}".lstrip("/"), suffix.lower()
                if group and key != group["key"]:
                    yield f"{path}:{group['key']}", group
                    group = {}
                is_text = suffix in TEXT_SUFFIXES
                if not is_text and suffix not in (*SOUND_SUFFIXES, "json"):
                    yield f"{path}:{member.name}", LeftOut(f".{suffix} member", "neither sound nor text")
                    continue
                group = group or {"tar": str(path.absolute()), "key": key, "sounds": []}
                if suffix in SOUND_SUFFIXES:
                    group["sounds"].append([member.name, member.offset_data, member.size])
                elif suffix == "json":
                    group["json"] = _content(tar, member)
                elif "text" not in group or suffix == TEXT_SUFFIXES[0]:
                    group["text"] = _content(tar, member)
        except (OSError, EOFError, tarfile.TarError) as error:
            cut_off = DataError(f"ends too early ({error}); copy it again, or leave out what it lacks")
    if cut_off is not None:  # before the last group, which may lack what was behind the cut
        yield str(path), cut_off
    if group:
        yield f"{path}:{group['key']}", group


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such tar") from error
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: not a plain tar ({error}); if it is compressed, gunzip it first") from error


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files in a tar.  Raises `tarfile.ReadError` when it is cut off."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # otherwise it remembers all of them
        if member.isfile():
            yield member
    if tar.offset + _BLOCK > path.stat().st_size:
        raise tarfile.ReadError("the mark of its end is missing")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "a file has content"
    return file.read()
