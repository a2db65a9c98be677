"""Recordings, with transcripts where there are any: Kaldi folders, lhotse cuts, folders of wavs and texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.data.convert.chats import write_json
from ttt.data.convert.core import UNKNOWN_SPEAKER, Speech, check_duration, check_limits, mapping
from ttt.data.read.records import RecordError, raw_records
from ttt.errors import DataError
from ttt.interfaces import Converter
from ttt.registry import NonNegativeFloat, NonNegativeInt
from ttt.registry.families import CONVERTER


@dataclass(frozen=True)
class _Corpus(Converter):
    makes = "utterances"

    min_duration_s: NonNegativeFloat = 0.0  # shorter recordings are left out, and counted
    max_duration_s: NonNegativeFloat = 0.0  # longer ones likewise; 0: no limit

    def __post_init__(self) -> None:
        check_limits(self.min_duration_s, self.max_duration_s)


def _sound(path: Path, where: str) -> Path:
    if not path.is_file():
        raise RecordError(
            where,
            "sound file missing",
            f"{path}: no such sound file; set 'root' to the folder paths count from, or drop the row",
        )
    return path.absolute()


@CONVERTER.register("kaldi")
@dataclass(frozen=True)
class Kaldi(_Corpus):
    """A Kaldi data folder: ``wav.scp``, with ``text``, ``segments``, ``utt2spk`` and ``utt2dur`` where they exist.

    All files must be sorted by key, as Kaldi itself demands (``LC_ALL=C``): they are read side by side.
    """

    root: str = ""  # folder that relative paths of wav.scp count from; empty: the working folder

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row an utterance: (place, (id, wav entry, text, speaker, start, end or duration))."""
        if not (path / "wav.scp").is_file():
            raise DataError(f"{path / 'wav.scp'}: missing; a Kaldi data folder holds wav.scp, and text if there is any")
        side = {n: _Sorted(path / n) for n in ("text", "utt2spk", "utt2dur")}
        if (path / "segments").is_file():
            # Recordings are far fewer than segments, and segments may come in another order than they.
            recordings = {key: value for _, key, value in _entries(path / "wav.scp")}
            for where, utterance, value in _entries(path / "segments"):
                parts = value.split()
                wav = recordings.get(parts[0], "") if parts else ""
                yield where, (utterance, wav, *(side[n].get(utterance) for n in ("text", "utt2spk")), None, parts[1:])
        else:
            for where, utterance, wav in _entries(path / "wav.scp"):
                yield where, (utterance, wav, *(side[n].get(utterance) for n in side), None)

    def convert(self, where: str, row: Any) -> Speech:
        """Commands in wav.scp ("sox ... |") are refused: nothing from a data file is executed."""
        if not isinstance(row, tuple) or len(row) != 6:
            raise RecordError(where, "not a row", f"expected an utterance's entries, got {type(row).__name__}")
        utterance, wav, text, speaker, duration, segment = row
        if not wav or wav.rstrip().endswith("|"):
            reason = "wav.scp entry is a command" if wav else "no wav.scp entry"
            mend = "write the sound to a file and name that" if wav else "add one or drop the row"
            raise RecordError(where, reason, f"utterance {utterance!r}: {reason}; {mend}")
        start_s, length_s = 0.0, _seconds(duration, where) if duration else None
        if segment is not None:
            if len(segment) < 2:
                raise RecordError(where, "not a segment", "a line of 'segments' is: utterance recording start end")
            start_s = _seconds(segment[0], where)
            length_s = _seconds(segment[1], where) - start_s
            if length_s <= 0:
                raise RecordError(
                    where, "not a segment", f"segment ends before it starts: {segment[0]} to {segment[1]}"
                )
        return Speech(
            utterance, _sound(Path(self.root) / wav.strip(), where), (text or "").strip(), speaker or UNKNOWN_SPEAKER, start_s,
            length_s, whole=segment is None, text_at="file 'text', sorted",
        )  # fmt: skip

    def sample(self, folder: Path) -> Path:
        """Two utterances of one recording."""
        wav = silence(folder / "r.wav", 1.0)
        for name, lines in (
            ("wav.scp", [f"r {wav}"]), ("text", ["a yes", "b no no"]), ("utt2spk", ["a ann", "b ann"]),
            ("segments", ["a r 0.0 0.4", "b r 0.5 0.9"]),
        ):  # fmt: skip
            (folder / name).write_text("\n".join(lines) + "\n")
        return folder


@CONVERTER.register("lhotse")
@dataclass(frozen=True)
class Lhotse(_Corpus):
    """lhotse cuts (``.jsonl``, ``.jsonl.gz``), read as plain JSON.  Texts of several supervisions are joined in time order."""

    root: str = ""  # folder that relative paths count from; empty: the working folder
    custom_text: str = ""  # field of a supervision's 'custom' to use as its text; empty: 'text'

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a cut."""
        return raw_records(path)

    def convert(self, where: str, row: Any) -> Speech:
        """Cuts of one file and one channel; mixed and padding cuts, commands and URLs are refused."""
        cut = mapping(where, row)
        uid = str(cut.get("id", ""))
        if cut.get("type", "MonoCut") != "MonoCut" or "recording" not in cut or not uid:
            found = f"cut {uid!r}: expected a MonoCut with a recording, got {cut.get('type')!r}"
            raise RecordError(where, "not a mono cut", f"{found}; save such cuts as files first")
        recording = cut["recording"] if isinstance(cut["recording"], dict) else {}
        sources = recording.get("sources")
        source = sources[0] if isinstance(sources, list) and len(sources) == 1 else {}
        if source.get("type") != "file" or len(source.get("channels") or [0]) != 1:
            message = f"cut {uid!r}: its recording is not one sound file of one channel; convert it first"
            raise RecordError(where, "not one mono file", message)
        said = sorted(
            (s for s in cut.get("supervisions") or [] if isinstance(s, dict)), key=lambda s: s.get("start") or 0.0
        )
        texts = [
            ((s.get("custom") or {}).get(self.custom_text) if self.custom_text else s.get("text")) or "" for s in said
        ]
        text = " ".join(t.strip() for t in texts if t.strip())
        start_s, duration_s = _seconds(cut.get("start", 0.0), where), _seconds(cut.get("duration"), where)
        check_duration(duration_s, self.min_duration_s, self.max_duration_s, uid, where)
        all_s = float(recording.get("duration") or 0.0)
        speaker = next((s["speaker"] for s in said if s.get("speaker")), UNKNOWN_SPEAKER)
        return Speech(
            uid, _sound(Path(self.root) / source["source"], where), text, speaker, start_s, duration_s,
            whole=start_s == 0 and duration_s >= all_s - 0.5 / (recording.get("sampling_rate") or 16000),
            meta={"language": said[0]["language"]} if said and said[0].get("language") else {},
            text_at="a supervision with text",
        )  # fmt: skip

    def sample(self, folder: Path) -> Path:
        """One cut of half a recording."""
        wav = silence(folder / "r.wav", 1.0)
        recording = {"id": "r", "sources": [{"type": "file", "channels": [0], "source": str(wav)}], "sampling_rate": 16000,
                     "num_samples": 16000, "duration": 1.0}  # fmt: skip
        cut = {"id": "r-0", "start": 0.5, "duration": 0.5, "channel": 0, "type": "MonoCut", "recording": recording,
               "supervisions": [{"id": "s", "start": 0.0, "duration": 0.5, "text": "yes", "speaker": "ann"}]}  # fmt: skip
        return write_json(folder, "cuts.jsonl", [cut])


@CONVERTER.register("folder")
@dataclass(frozen=True)
class Folder(_Corpus):
    """A folder tree of sound files, with text files of the same names beside them if any; or LJSpeech's metadata.csv."""

    suffixes: tuple[str, ...] = (".wav", ".flac")  # endings of sound files
    text_suffix: str = ".txt"  # ending of the text file (LibriTTS: .normalized.txt)
    speaker_level: NonNegativeInt = 0  # which folder above the file names the speaker: 1 its own, 2 the one above; 0: none

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a sound file: (place, (id, wav, text or None, speaker)).  metadata.csv lines are ``id|text|normalized``."""
        if not path.is_dir():
            raise DataError(f"{path}: no such folder")
        table = path / "metadata.csv"
        if table.is_file():
            with table.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    fields = line.rstrip("\n").split("|")
                    text = fields[-1] if len(fields) > 1 else None
                    wav = path / "wavs" / f"{fields[0]}.wav"
                    yield f"{table}:{number}", (fields[0], wav, text, UNKNOWN_SPEAKER)
            return
        for wav in _walk(path, self.suffixes):
            beside = wav.with_name(wav.stem + self.text_suffix)
            inside = wav.relative_to(path)
            level = self.speaker_level
            speaker = inside.parts[-1 - level] if 0 < level < len(inside.parts) else UNKNOWN_SPEAKER
            uid = inside.with_suffix("").as_posix()
            yield str(wav), (uid, wav, beside.read_text(encoding="utf-8") if beside.is_file() else None, speaker)

    def convert(self, where: str, row: Any) -> Speech:
        """A whole sound file."""
        if not isinstance(row, tuple) or len(row) != 4:
            raise RecordError(where, "not a row", f"expected a sound file's entries, got {type(row).__name__}")
        uid, wav, text, speaker = row
        name = Path(wav).stem + self.text_suffix
        looked = f"{name} is missing" if text is None else f"{name} is empty"
        return Speech(uid, _sound(Path(wav), where), " ".join((text or "").split()), speaker, text_at=looked)

    def sample(self, folder: Path) -> Path:
        """One speaker, one file."""
        (folder / "ann").mkdir()
        silence(folder / "ann" / "one.wav", 0.5)
        (folder / "ann" / "one.txt").write_text("yes\n")
        return folder


class _Sorted:
    """A sorted Kaldi table read beside another: `get` moves forward only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = _entries(path) if path.is_file() else iter(())
        self.key, self.value = "", ""

    def get(self, key: str) -> str | None:
        """Value of ``key``; keys must be asked for in order."""
        while self.key < key:
            _, self.key, self.value = next(self.entries, ("", "\U0010ffff", ""))
        return self.value if self.key == key else None


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, key, rest of the line).  Raises `DataError` where keys are not sorted or come twice."""
    before = ""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            key, _, value = line.strip().partition(" ")
            if "\t" in key:
                key, _, value = line.strip().partition("\t")
            if not key:
                continue
            if key <= before:
                raise DataError(f"{path}:{number}: key {key!r} after {before!r}: sort the file (LC_ALL=C sort -u)")
            before = key
            yield f"{path}:{number}", key, value.strip()


def _walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Sound files below a folder, in order; one folder's names in memory at a time."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), suffixes)
        elif entry.name.lower().endswith(tuple(suffixes)):
            yield Path(entry.path)


def _seconds(value: Any, where: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise RecordError(where, "not a time", f"expected seconds >= 0, got {value!r}; mend the line")
    return seconds


def silence(path: Path, duration_s: float) -> Path:
    """A mono wav of silence at 16 kHz, for samples."""
    import wave

    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(bytes(2 * round(16000 * duration_s)))
    return path
