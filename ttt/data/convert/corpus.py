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
from dataclasses import asdict
from pathlib import Path

from ttt.audio.wav import MIN_DURATION_S, write
from ttt.data.convert.core import Report, Speech, check_duration, results, twice
from ttt.data.manifest import Utterance
from ttt.data.read.records import RecordError
from ttt.errors import DataError
from ttt.interfaces import Converter
from ttt.io.atomic import temporary_name
from ttt.io.digests import hash64
from ttt.types import Waveform


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
) -> Report:
    """Convert ``path``; one item per utterance and task (``asr``: write what is heard; ``tts``: read it aloud).

    ``reads_text``: the tasks for which an utterance without text is a bad row (None: all of them).
    Complete or not at all.  Raises the first `RecordError` unless ``skip_bad``.
    """
    reading = [t for t in tasks if reads_text is None or t in reads_text]
    least_s, most_s = (float(getattr(converter, f"{name}_duration_s", 0.0)) for name in ("min", "max"))
    out.mkdir(parents=True, exist_ok=True)
    work = temporary_name(out / split)
    (work / "wav").mkdir(parents=True)
    report, keys = Report(), array("Q")

    def finish(speech: Speech, where: str) -> Utterance:
        if reading and not speech.text:
            at = f" ({speech.text_at})" if speech.text_at else ""
            raise RecordError(
                where,
                "no text",
                f"utterance {speech.id!r} has no text{at}, which task {reading[0]!r} reads; write it, drop the row, or name "
                "tasks that read none (--tasks continuation)",
            )
        made = _utterance(speech, split, where, work / "wav", f"wav/{split}", len(keys))
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


def _utterance(speech: Speech, split: str, where: str, folder: Path, shown: str, number: int) -> Utterance:
    """The manifest's line; a stretch of a recording is cut out into ``folder``, known as ``shown`` later."""
    import soundfile

    duration_s, wav = speech.duration_s, str(speech.wav)
    try:
        if duration_s is None or not speech.whole:
            with soundfile.SoundFile(wav) as sound:
                rate = sound.samplerate
                start, stop = round(speech.start_s * rate), sound.frames
                if duration_s is not None:
                    stop = min(stop, start + round(duration_s * rate))
                if stop - start < MIN_DURATION_S * rate:
                    raise RecordError(
                        where,
                        "too short",
                        f"{speech.id!r}: {1000 * (stop - start) / rate:.0f} ms of sound; drop the row",
                    )
                if not speech.whole:
                    if sound.channels != 1:
                        raise RecordError(
                            where, "several channels", f"{wav}: {sound.channels} channels; convert the file to mono"
                        )
                    sound.seek(start)
                    name = f"{number:08d}.wav"  # ids may hold any character
                    write(folder / name, Waveform(sound.read(stop - start, dtype="float32"), rate))
                    wav = f"{shown}/{name}"
                duration_s = (stop - start) / rate
        return Utterance(speech.id, wav, speech.text, duration_s, speech.speaker, split, speech.meta)
    except soundfile.LibsndfileError as error:
        raise RecordError(
            where, "not a sound file", f"{speech.wav}: not a readable sound file ({error}); make it again"
        ) from error
    except RecordError:
        raise
    except DataError as error:
        raise RecordError(where, "not an utterance", f"{speech.id!r}: {error}") from error
