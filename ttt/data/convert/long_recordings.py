"""Corpora of long recordings with segments, in one large JSON file: GigaSpeech and WenetSpeech.

Both hold ``{"audios": [{"aid", "path", "duration", "segments": [{"sid", "begin_time", "end_time", "subsets", ...}]}]}``,
and recordings of hours as opus at 16 kHz under ``audio``.  The file is read one recording at a time; a segment is named as a
stretch of its recording.

=========== ==================== =========== ================= ========================================================
layout      file                 text        subsets           source
=========== ==================== =========== ================= ========================================================
gigaspeech  ``GigaSpeech.json``  ``text_tn`` ``{XL}``, ...     https://github.com/SpeechColab/GigaSpeech (README)
wenetspeech ``WenetSpeech.json`` ``text``    ``L``, ``DEV`` .. https://github.com/wenet-e2e/WenetSpeech (README)
=========== ==================== =========== ================= ========================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ttt.data.convert.core import UNKNOWN_SPEAKER, LeftOut, LeftOutError, Speech, mapping, text_of
from ttt.data.convert.corpora import Corpus, seconds, silence, sound_file
from ttt.data.read.records import RecordError, list_in_object
from ttt.registry.families import CONVERTER

PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_SPEECH = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")


@dataclass(frozen=True)
class _Segments(Corpus):
    part: str = ""  # a subset, as XL, S or DEV; empty: all

    table: ClassVar[str]
    text_key: ClassVar[str]
    language: ClassVar[str]

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """One row a segment, with what is said of its recording under ``audio``; those of other subsets are left out."""
        table = path / self.table if path.is_dir() else path
        for where, recording in list_in_object(table, "audios"):
            segments = recording.get("segments") if isinstance(recording, Mapping) else None
            if not isinstance(segments, list):
                yield where, recording
                continue
            about = {k: v for k, v in recording.items() if k != "segments"}
            for number, segment in enumerate(segments):
                at = f"{where} segment {number}"
                if self.part and isinstance(segment, Mapping) and self.part not in _subsets(segment):
                    yield at, LeftOut(f"not in the part {self.part!r}", f"subsets: {', '.join(_subsets(segment))}")
                else:
                    yield at, {**segment, "audio": about} if isinstance(segment, Mapping) else segment

    def convert(self, where: str, row: Any) -> Speech:
        """A stretch of a recording."""
        found = mapping(where, row)
        recording = found.get("audio")
        if not isinstance(recording, Mapping):
            raise RecordError(where, "no segments", "a recording without a list 'segments'; mend or drop it")
        uid, begin_s, end_s = text_of(found, "sid", where), *(seconds(found.get(k), where) for k in ("begin_time", "end_time"))
        if end_s <= begin_s:
            raise RecordError(where, "not a segment", f"{uid!r} ends before it starts: {begin_s:g} to {end_s:g}; drop it")
        folder = Path(where.rpartition("[")[0]).parent
        wav = sound_file(folder / text_of(recording, "path", where), where, "download that recording, or drop its segments")
        speaker = next((str(s) for s in (found.get("speaker"), recording.get("speaker")) if s and s != "N/A"), "")
        return Speech(
            uid, wav, self._text(text_of(found, self.text_key, where, ""), uid, where), speaker or UNKNOWN_SPEAKER,
            begin_s, end_s - begin_s, whole=False, meta={"language": self.language}, text_at=f"field {self.text_key!r}",
        )  # fmt: skip

    def _text(self, text: str, uid: str, where: str) -> str:
        return text.strip()

    def sample(self, folder: Path) -> Path:
        """Two segments of one recording; a wav, named as it is."""
        (folder / "audio").mkdir()
        silence(folder / "audio" / "r.wav", 1.0)
        segments = [
            {"sid": f"r_S{i}", "begin_time": 0.5 * i, "end_time": 0.5 * i + 0.4, "subsets": ["S"], self.text_key: "yes"}
            for i in range(2)
        ]
        recording = {"aid": "r", "path": "audio/r.wav", "duration": 1.0, "segments": segments}
        (folder / self.table).write_text(json.dumps({"dataset": "sample", "audios": [recording]}))
        return folder


@CONVERTER.register("gigaspeech")
@dataclass(frozen=True)
class GigaSpeech(_Segments):
    """GigaSpeech: ``GigaSpeech.json`` and ``audio/*/*/*.opus``.

    Tags of punctuation become signs; segments without speech (``<SIL>``, ``<MUSIC>``, ``<NOISE>``, ``<OTHER>``), which its
    authors recommend to discard, are left out and counted.
    """

    table: ClassVar[str] = "GigaSpeech.json"
    text_key: ClassVar[str] = "text_tn"
    language: ClassVar[str] = "en"

    def _text(self, text: str, uid: str, where: str) -> str:
        if tag := NO_SPEECH.search(text):
            raise LeftOutError(where, f"no speech ({tag[0]})", f"{uid!r} is said to hold no speech")
        for tag_name, sign in PUNCTUATION.items():
            text = re.sub(rf"\s*{tag_name}", sign, text)
        return text.strip()


@CONVERTER.register("wenetspeech")
@dataclass(frozen=True)
class WenetSpeech(_Segments):
    """WenetSpeech: ``WenetSpeech.json`` and ``audio/*/*/*/*.opus``."""

    table: ClassVar[str] = "WenetSpeech.json"
    text_key: ClassVar[str] = "text"
    language: ClassVar[str] = "zh"


def _subsets(segment: Mapping[str, Any]) -> list[str]:
    """Names of the subsets that a segment is in; GigaSpeech writes them in braces."""
    found = segment.get("subsets")
    return [str(name).strip("{}") for name in found] if isinstance(found, list) else []
