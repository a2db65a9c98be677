"""Recordings, with transcripts where there are any: Kaldi folders, lhotse cuts (folders of files: `sound_folder`)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.data.convert.chats import write_json
from ttt.data.convert.core import UNKNOWN_SPEAKER, LeftOut, Speech, check_duration, check_limits, mapping
from ttt.data.read.records import RecordError, raw_records
from ttt.errors import DataError
from ttt.interfaces import Converter
from ttt.io.text_input import text_lines
from ttt.registry import NonNegativeFloat
from ttt.registry.families import CONVERTER

_END = "\U0010ffff"  # after every key
TOLERANCE_S = 0.05  # tables round times
HARMLESS_TRANSFORMS = ("Resample",)  # of lhotse: the sound stays the same
# Programs that write one sound file as it is, and the options that change nothing about that.
UNPACKERS = {
    "flac": (
        "-c", "-d", "-s", "-cd", "-dc", "-cds", "-dcs", "-csd", "-scd", "-sdc", "-dsc", "--stdout", "--decode", "--silent",
        "--totally-silent",
    ),
    "cat": (), "sph2pipe": ("-p",),
}  # fmt: skip


@dataclass(frozen=True)
class Corpus(Converter):
    """Shared fields of converters that make utterances."""

    makes = "utterances"

    min_duration_s: NonNegativeFloat = 0.0  # shorter recordings are left out, and counted
    max_duration_s: NonNegativeFloat = 0.0  # longer ones likewise; 0: no limit

    def __post_init__(self) -> None:
        check_limits(self.min_duration_s, self.max_duration_s)


def sound_file(path: Path, where: str, mend: str = "set 'root' to the folder paths count from, or drop the row") -> Path:
    """The absolute path of a sound file.  Raises `RecordError` when there is none."""
    if not path.is_file():
        raise RecordError(where, "sound file missing", f"{path}: no such sound file; {mend}")
    return path.absolute()


@CONVERTER.register("kaldi")
@dataclass(frozen=True)
class Kaldi(Corpus):
    """A Kaldi data folder: ``wav.scp``, with ``text``, ``segments``, ``utt2spk`` and ``utt2dur`` where they exist.

    All files must be sorted by key, as Kaldi itself demands (``LC_ALL=C``): they are read side by side.  Durations and
    segments are checked against the sound files; transcripts without recording are counted.
    """

    root: str = ""  # folder that relative paths of wav.scp count from; empty: the working folder

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row an utterance: (place, (id, wav entry, text, speaker, start, end or duration))."""
        if not (path / "wav.scp").is_file():
            raise DataError(f"{path / 'wav.scp'}: missing; a Kaldi data folder holds wav.scp, and text if there is any")
        side = {n: _Sorted(path / n) for n in ("text", "utt2spk", "utt2dur")}
        if (path / "segments").is_file():
            declared = {key: value for _, key, value in _entries(path / "reco2dur")} if (path / "reco2dur").is_file() else {}
            # Recordings are far fewer than segments, and segments may come in another order than they.
            recordings = {key: value for _, key, value in _entries(path / "wav.scp")}
            for where, utterance, value in _entries(path / "segments"):
                parts = value.split()
                wav = recordings.get(parts[0], "") if parts else ""
                file_s = declared.get(parts[0]) if parts else None
                yield where, (utterance, wav, *(side[n].get(utterance) for n in side), parts[1:], file_s)
                yield from side["text"].passed()
        else:
            for where, utterance, wav in _entries(path / "wav.scp"):
                yield where, (utterance, wav, *(side[n].get(utterance) for n in side), None, None)
                yield from side["text"].passed()
        yield from side["text"].rest()

    def convert(self, where: str, row: Any) -> Speech:
        """Nothing from a data file is executed: of commands in wav.scp, those that only unpack one file name it.

        ``flac -c -d -s a.flac |`` is ``a.flac``; others ("sox ... |") are refused.
        """
        if not isinstance(row, tuple) or len(row) != 7:
            raise RecordError(where, "not a row", f"expected an utterance's entries, got {type(row).__name__}")
        utterance, wav, text, speaker, duration, segment, file_s = row
        named = _file_of(wav) if wav else ""
        if not named:
            reason = "wav.scp entry is a command" if wav else "no wav.scp entry"
            mend = "write the sound to a file and name that" if wav else "add one or drop the row"
            raise RecordError(where, reason, f"utterance {utterance!r}: {reason}; {mend}")
        start_s, length_s = 0.0, seconds(duration, where) if duration and segment is None else None
        if segment is not None:
            if len(segment) < 2:
                raise RecordError(where, "not a segment", "a line of 'segments' is: utterance recording start end")
            start_s = seconds(segment[0], where)
            length_s = seconds(segment[1], where) - start_s
            if duration and abs(seconds(duration, where) - length_s) > TOLERANCE_S:
                raise RecordError(
                    where, "declared duration is not the segment's",
                    f"{utterance!r}: utt2dur says {duration} s, segments {length_s:g} s; mend one of them, or drop the row",
                )  # fmt: skip
            if length_s <= 0:
                raise RecordError(
                    where, "not a segment", f"segment ends before it starts: {segment[0]} to {segment[1]}"
                )
        return Speech(
            utterance, sound_file(Path(self.root) / named, where), (text or "").strip(), speaker or UNKNOWN_SPEAKER, start_s,
            length_s, whole=segment is None, text_at="file 'text', sorted",
            file_s=seconds(file_s, where) if file_s else None,
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
class Lhotse(Corpus):
    """lhotse cuts (``.jsonl``, ``.jsonl.gz``), read as plain JSON.  Texts of several supervisions are joined in time order."""

    root: str = ""  # folder that relative paths count from; empty: the working folder
    custom_text: str = ""  # field of a supervision's 'custom' to use as its text; empty: 'text'

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a cut."""
        return raw_records(path)

    def convert(self, where: str, row: Any) -> Speech:
        """Cuts of one file and one channel.

        Mixed and padding cuts, commands, URLs, and recordings that lhotse changes when it reads them (speed, tempo,
        volume, ...) are refused.
        """
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
        changes = [str(t.get("name", t)) if isinstance(t, dict) else str(t) for t in recording.get("transforms") or []]
        changes = [name for name in changes if name not in HARMLESS_TRANSFORMS]
        if changes:
            message = f"cut {uid!r}: lhotse changes its recording when it reads it ({', '.join(changes)})"
            raise RecordError(where, "recording with transforms", f"{message}; save such cuts as files first (save_audios)")
        said = sorted(
            (s for s in cut.get("supervisions") or [] if isinstance(s, dict)), key=lambda s: s.get("start") or 0.0
        )
        texts = [
            ((s.get("custom") or {}).get(self.custom_text) if self.custom_text else s.get("text")) or "" for s in said
        ]
        text = " ".join(t.strip() for t in texts if t.strip())
        start_s, duration_s = seconds(cut.get("start", 0.0), where), seconds(cut.get("duration"), where)
        check_duration(duration_s, self.min_duration_s, self.max_duration_s, uid, where)
        all_s = seconds(recording.get("duration") or 0.0, where)
        speaker = next((s["speaker"] for s in said if s.get("speaker")), UNKNOWN_SPEAKER)
        return Speech(
            uid, sound_file(Path(self.root) / source["source"], where), text, speaker, start_s, duration_s,
            whole=start_s == 0 and all_s > 0 and abs(duration_s - all_s) <= 0.5 / (recording.get("sampling_rate") or 16000),
            file_s=all_s or None,
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


class _Sorted:
    """A sorted Kaldi table read beside another: `get` moves forward only; keys that nobody asked for are kept until told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = _entries(path) if path.is_file() else iter(())
        self.where, self.key, self.value = "", "", ""
        self.asked = True
        self._passed: list[tuple[str, str]] = []

    def get(self, key: str) -> str | None:
        """Value of ``key``; keys must be asked for in order."""
        while self.key < key:
            self._next()
        self.asked = self.asked or self.key == key
        return self.value if self.key == key else None

    def passed(self) -> Iterator[tuple[str, LeftOut]]:
        """The entries that were passed over since the last call."""
        for where, key in self._passed:
            yield where, LeftOut("transcript without recording", f"utterance {key!r} has a transcript and no recording")
        self._passed = []

    def rest(self) -> Iterator[tuple[str, LeftOut]]:
        """All entries that are left."""
        while self.key != _END:
            self._next()
            yield from self.passed()

    def _next(self) -> None:
        if not self.asked:
            self._passed.append((self.where, self.key))
        self.where, self.key, self.value = next(self.entries, ("", _END, ""))
        self.asked = self.key == _END


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, key, rest of the line).  Raises `DataError` where keys are not sorted or come twice."""
    before = ""
    for number, line in text_lines(path, "convert the file to UTF-8"):
        key, _, value = line.strip().partition(" ")
        if "\t" in key:
            key, _, value = line.strip().partition("\t")
        if not key:
            continue
        if key <= before:
            raise DataError(f"{path}:{number}: key {key!r} after {before!r}: sort the file (LC_ALL=C sort -u)")
        before = key
        yield f"{path}:{number}", key, value.strip()


def _file_of(entry: str) -> str:
    """The one sound file that an entry of wav.scp names; "" for any other command.

    >>> _file_of("a b.wav"), _file_of("flac -c -d -s '/x/a b.flac' |"), _file_of("sox a.wav -t wav - speed 1.1 |")
    ('a b.wav', '/x/a b.flac', '')
    """
    command = entry.strip()
    if not command.endswith("|"):
        return command
    try:
        program, *words = shlex.split(command[:-1])
    except ValueError:  # no program, or a quote that is not closed
        return ""
    if "-f" in words and words[words.index("-f") + 1 :][:1] == ["wav"]:
        del words[words.index("-f") : words.index("-f") + 2]
    options = UNPACKERS.get(program.rpartition("/")[2])
    files = [w for w in words if not w.startswith("-")]
    if options is None or len(files) != 1 or any(w not in options for w in words if w not in files):
        return ""
    special = set("|&;<>$`*?~#(){}!\n")
    return "" if special & set(command[:-1]) else files[0]


def seconds(value: Any, where: str) -> float:
    """A time of a table.  Raises `RecordError` unless it is a number >= 0."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found < float("inf"):
        raise RecordError(where, "not a time", f"expected seconds >= 0, got {value!r}; mend the line")
    return found


def silence(path: Path, duration_s: float) -> Path:
    """A mono wav of silence at 16 kHz, for samples."""
    import wave

    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(bytes(2 * round(16000 * duration_s)))
    return path
