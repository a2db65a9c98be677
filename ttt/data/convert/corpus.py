"""Utterances of a converter -> a corpus folder: ``SPLIT.jsonl`` (manifest), ``SPLIT.items.jsonl``, ``wav/SPLIT`` (cuts).

The folder is what `ttt tokenize` and `ttt examples` read.  Whole sound files stay where they are; stretches of longer
ones are cut out.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ttt.audio.wav import MIN_DURATION_S, write
from ttt.data.convert.core import LeftOutError, Report, Speech, check_duration, results, twice
from ttt.data.manifest import Utterance
from ttt.data.read.records import RecordError
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Converter
from ttt.io.atomic import temporary_name
from ttt.io.digests import hash64
from ttt.io.outputs import holds_only
from ttt.io.text_input import BOM
from ttt.types import Waveform

TOLERANCE_S = 0.05  # tables round times


def write_corpus(
    converter: Converter,
    path: Path,
    out: Path,
    split: str,
    tasks: Sequence[str],
    *,
    reads_text: Collection[str] | None = None,
    skip_bad: bool = False,
    limit: int = 0,
    replaces_cuts: bool = True,
) -> Report:
    """Convert ``path``; one item per utterance and task (``asr``: write what is heard; ``tts``: read it aloud).

    ``reads_text``: the tasks for which an utterance without text is a bad row (None: all of them).
    ``replaces_cuts``: cuts of an earlier call may be in the way, in ``wav/SPLIT``.

    Complete or not at all.  Raises the first `RecordError` unless ``skip_bad``.
    """
    reading = [t for t in tasks if reads_text is None or t in reads_text]
    least_s, most_s = (float(getattr(converter, f"{name}_duration_s", 0.0)) for name in ("min", "max"))
    out.mkdir(parents=True, exist_ok=True)
    work = temporary_name(out / split)
    (work / "wav").mkdir(parents=True)
    report, keys = Report(), array("Q")
    cuts: list[str] = []  # the first one

    def finish(speech: Speech, where: str) -> Utterance:
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
        made = _utterance(speech, split, where, work / "wav", f"wav/{split}", len(keys), report)
        if made.wav == f"wav/{split}/{len(keys):08d}.wav" and not cuts:
            cuts.append(made.wav)
            _check_cuts(out / "wav" / split, replaces_cuts)
        check_duration(made.duration_s, least_s, most_s, made.id, where)
        return made

    try:
        with (work / "m").open("w", encoding="utf-8") as manifest, (work / "i").open("w", encoding="utf-8") as items:
            for utterance in results(converter, path, report, skip_bad=skip_bad, limit=limit, finish=finish):
                keys.append(hash64(utterance.id.encode()))
                report.without_text += not utterance.text
                manifest.write(json.dumps(asdict(utterance), ensure_ascii=False) + "\n")
                for task in tasks:
                    item = {
                        "id": f"{utterance.id}-{task}", "task": task, "split": split, "input": utterance.id,
                        "output": utterance.id, "text_in": utterance.text, "text_out": utterance.text,
                    }  # fmt: skip
                    items.write(json.dumps(item, ensure_ascii=False) + "\n")
        if not keys:
            raise DataError(f"{path}: no usable row; nothing was written ({report.summary()})")
        double = twice(keys)
        if double is not None:
            with (work / "m").open(encoding="utf-8") as lines:
                name = next(json.loads(line)["id"] for number, line in enumerate(lines) if number == double[0])
            raise DataError(
                f"{path}: utterances {double[0] + 1} and {double[1] + 1} are both called {name!r}; ids must differ"
            )
        if any((work / "wav").iterdir()):
            shutil.rmtree(out / "wav" / split, ignore_errors=True)
            (out / "wav").mkdir(exist_ok=True)
            (work / "wav").rename(out / "wav" / split)
        os.replace(work / "m", out / f"{split}.jsonl")
        os.replace(work / "i", out / f"{split}.items.jsonl")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def _check_cuts(folder: Path, may_replace: bool) -> None:
    """Raise `ConfigError` when the folder for cuts holds anything but the cuts of an earlier call."""
    if folder.is_dir() and any(folder.iterdir()) and not (may_replace and holds_only(folder, [r"[0-9]{8}\.wav"])):
        raise ConfigError(f"{folder}: holds files that were not cut by 'ttt data convert'; name another folder or --split")


def _utterance(
    speech: Speech, split: str, where: str, folder: Path, shown: str, number: int, report: Report
) -> Utterance:  # fmt: skip
    """The manifest's line; a stretch of a recording is cut out into ``folder``, known as ``shown`` later.

    What was declared of times is checked against the file.
    """
    import soundfile

    wav = str(speech.wav)
    try:
        with soundfile.SoundFile(wav) as sound:
            rate, file_s = sound.samplerate, sound.frames / sound.samplerate
            _check_times(speech, file_s, where)
            start, stop = round(speech.start_s * rate), sound.frames
            if speech.duration_s is not None and not speech.whole:
                stop = min(stop, start + round(speech.duration_s * rate))
            if stop - start < MIN_DURATION_S * rate:
                message = f"{speech.id!r}: {1000 * (stop - start) / rate:.0f} ms of sound; drop the row"
                raise RecordError(where, "too short", message)
            if not speech.whole:
                sound.seek(start)
                samples = sound.read(stop - start, dtype="float32", always_2d=True)  # [S, C]
                report.mixed += sound.channels > 1
                name = f"{number:08d}.wav"  # ids may hold any character
                write(folder / name, Waveform(samples[:, 0] if sound.channels == 1 else samples.mean(axis=1), rate))
                wav = f"{shown}/{name}"
            return Utterance(speech.id, wav, speech.text, (stop - start) / rate, speech.speaker, split, speech.meta)
    except soundfile.LibsndfileError as error:
        raise RecordError(
            where, "not a sound file", f"{speech.wav}: not a readable sound file ({error}); make it again"
        ) from error
    except RecordError:
        raise
    except DataError as error:
        raise RecordError(where, "not an utterance", f"{speech.id!r}: {error}") from error


def _check_times(speech: Speech, file_s: float, where: str) -> None:
    """Raise `RecordError` where declared times are not those of a file of ``file_s`` seconds."""
    declared = speech.duration_s if speech.whole else speech.file_s
    if declared is not None and abs(declared - file_s) > TOLERANCE_S:
        raise RecordError(
            where, "declared duration is not the file's",
            f"{speech.id!r}: {declared:g} s are declared, {speech.wav} lasts {file_s:g} s; mend the table, or drop the row",
        )  # fmt: skip
    end_s = speech.start_s + (speech.duration_s or 0.0)
    if not speech.whole and end_s > file_s + TOLERANCE_S:
        raise RecordError(
            where, "beyond the recording",
            f"{speech.id!r}: ends at {end_s:g} s, {speech.wav} lasts {file_s:g} s; mend the table, or drop the row",
        )  # fmt: skip
