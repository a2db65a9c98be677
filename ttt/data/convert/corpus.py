"""Utterances of a converter -> a corpus folder: ``SPLIT.jsonl`` (manifest), ``SPLIT.items.jsonl``.

The folder is what `ttt tokenize` and `ttt examples` read.  All sound stays where it is; the manifest says where
(`ttt.audio.sound`).
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from array import array
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ttt.audio.sound import Sound, opened
from ttt.audio.wav import MIN_DURATION_S
from ttt.data.convert.core import UNKNOWN_SPEAKER, LeftOutError, Report, Speech, check_duration, results, twice
from ttt.data.manifest import Utterance
from ttt.data.read.records import RecordError
from ttt.errors import DataError
from ttt.interfaces import Converter
from ttt.io.atomic import temporary_name
from ttt.io.digests import hash64
from ttt.io.text_input import BOM

TOLERANCE_S = 0.05  # tables round times
MP3_TOLERANCE_S = 0.15  # encoders of mp3 add silence, and not all of them note how much


def write_corpus(
    converter: Converter,
    path: Path | Sequence[Path],
    out: Path,
    split: str,
    tasks: Sequence[str],
    *,
    reads_text: Collection[str] | None = None,
    reads_voice: Collection[str] = (),
    skip_bad: bool = False,
    limit: int = 0,
) -> Report:
    """Convert ``path``; one item per utterance and task (``asr``: write what is heard; ``tts``: read it aloud).

    ``reads_text``: the tasks for which an utterance without text is a bad row (None: all of them).  ``reads_voice``: those
    whose items name another utterance of the speaker (`ttt.interfaces.Task.reads_voice`): the one before, for the first the
    second.  Nothing is known of unknown speakers.

    Complete or not at all.  Raises the first `RecordError` unless ``skip_bad``.
    """
    reading = [t for t in tasks if reads_text is None or t in reads_text]
    least_s, most_s = (float(getattr(converter, f"{name}_duration_s", 0.0)) for name in ("min", "max"))
    out.mkdir(parents=True, exist_ok=True)
    work = temporary_name(out / split)
    work.mkdir(parents=True)
    report, keys, files = Report(), array("Q"), array("Q")
    facts = functools.lru_cache(maxsize=16)(_facts)  # many utterances may lie in one recording

    def finish(speech: Speech, where: str) -> tuple[Utterance, Sound, tuple[int, int]]:
        speech = replace(speech, text=speech.text.lstrip(BOM))
        if reading and not speech.text and speech.unlisted:
            message = f"recording {speech.id!r} is not among the transcripts of the corpus"
            raise LeftOutError(where, "recording without transcript", message)
        if reading and not speech.text:
            at = f" ({speech.text_at})" if speech.text_at else ""
            raise RecordError(
                where,
                "no text",
                f"utterance {speech.id!r} has no text{at}, which task {reading[0]!r} reads; write it, drop the row, or name "
                "tasks that read none (--tasks continuation)",
            )
        sound = Sound.of(speech.wav)
        try:
            rate, channels, frames, kind = facts(sound)
            _check_times(speech, frames / rate, MP3_TOLERANCE_S if kind == "MP3" else TOLERANCE_S, where)
            sound, duration_s = _stretch(speech, sound, rate, frames, where)
            made = Utterance(speech.id, str(sound), speech.text, duration_s, speech.speaker, split, speech.meta)
        except RecordError:
            raise
        except DataError as error:
            raise RecordError(where, "not usable sound", f"{speech.id!r}: {error}") from error
        check_duration(made.duration_s, least_s, most_s, made.id, where)
        return made, sound, (rate, channels)

    voices: dict[str, Utterance] = {}  # the latest of each speaker
    alone: dict[tuple[str, str], dict[str, str]] = {}  # items of speakers with one utterance so far

    def voice_of(utterance: Utterance) -> dict[str, str]:
        return {"voice": utterance.id, "voice_text": utterance.text}

    def write(item: dict[str, str]) -> None:
        items.write(json.dumps(item, ensure_ascii=False) + "\n")

    try:
        with (work / "m").open("w", encoding="utf-8") as manifest, (work / "i").open("w", encoding="utf-8") as items:
            for utterance, sound, (rate, channels) in results(
                converter, path, report, skip_bad=skip_bad, limit=limit, finish=finish
            ):
                keys.append(hash64(utterance.id.encode()))
                files.append(hash64(str(sound.file).encode()))
                report.without_text += not utterance.text
                report.sound_s += utterance.duration_s
                report.rates[rate] += 1
                report.mixed += channels > 1
                manifest.write(json.dumps(asdict(utterance), ensure_ascii=False) + "\n")
                before = voices.get(utterance.speaker)
                voices[utterance.speaker] = utterance
                for task in tasks:
                    item = {
                        "id": f"{utterance.id}-{task}", "task": task, "split": split, "input": utterance.id,
                        "output": utterance.id, "text_in": utterance.text, "text_out": utterance.text,
                    }  # fmt: skip
                    if task not in reads_voice or utterance.speaker in ("", UNKNOWN_SPEAKER):
                        write(item)
                    elif before is None:
                        alone[utterance.speaker, task] = item
                    else:
                        if (first := alone.pop((utterance.speaker, task), None)) is not None:
                            write({**first, **voice_of(utterance)})
                        write({**item, **voice_of(before)})
            for item in alone.values():
                write(item)
        shown = path if isinstance(path, Path) else path[0].parent
        if not keys:
            raise DataError(f"{shown}: no usable row; nothing was written ({report.summary()})")
        double = twice(keys)
        if double is not None:
            with (work / "m").open(encoding="utf-8") as lines:
                name = next(json.loads(line)["id"] for number, line in enumerate(lines) if number == double[0])
            raise DataError(
                f"{shown}: utterances {double[0] + 1} and {double[1] + 1} are both called {name!r}; ids must differ"
            )
        report.files = len(np.unique(np.frombuffer(files, dtype="u8")))
        os.replace(work / "m", out / f"{split}.jsonl")
        os.replace(work / "i", out / f"{split}.items.jsonl")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def _facts(sound: Sound) -> tuple[int, int, int, str]:
    """(rate in Hz, channels, samples per channel, format) of a sound."""
    with opened(sound) as file:
        return file.samplerate, file.channels, file.frames, file.format


def _stretch(speech: Speech, sound: Sound, rate: int, frames: int, where: str) -> tuple[Sound, float]:
    """The sound that ``speech`` means of a sound of ``frames`` samples, and how long it is in seconds."""
    start, stop = round(speech.start_s * rate), frames
    if speech.duration_s is not None and not speech.whole:
        stop = min(stop, start + round(speech.duration_s * rate))
    if stop - start < MIN_DURATION_S * rate:
        message = f"{speech.id!r}: {1000 * (stop - start) / rate:.0f} ms of sound; drop the row"
        raise RecordError(where, "too short", message)
    if start or stop < frames:
        sound = replace(sound, start_s=start / rate, stop_s=stop / rate)
    return sound, (stop - start) / rate


def _check_times(speech: Speech, file_s: float, tolerance_s: float, where: str) -> None:
    """Raise `RecordError` where declared times are not those of a file of ``file_s`` seconds."""
    declared = speech.duration_s if speech.whole else speech.file_s
    if declared is not None and abs(declared - file_s) > tolerance_s:
        raise RecordError(
            where, "declared duration is not the file's",
            f"{speech.id!r}: {declared:g} s are declared, {speech.wav} lasts {file_s:g} s; mend the table, or drop the row",
        )  # fmt: skip
    end_s = speech.start_s + (speech.duration_s or 0.0)
    if not speech.whole and end_s > file_s + tolerance_s:
        raise RecordError(
            where, "beyond the recording",
            f"{speech.id!r}: ends at {end_s:g} s, {speech.wav} lasts {file_s:g} s; mend the table, or drop the row",
        )  # fmt: skip
