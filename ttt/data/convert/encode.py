"""Sound files in example records -> codes: ``{"wav": path}`` spans become ``{"audio": [...]}`` spans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttt.audio.signal import resample
from ttt.audio.wav import read
from ttt.data.convert.core import Report, audio, check_record, mapping
from ttt.data.read.records import RecordError, raw_records
from ttt.errors import DataError
from ttt.interfaces import Codec
from ttt.types import Waveform

Waiting = list[tuple[dict[str, Any], list[tuple[dict[str, Any], Waveform]]]]  # records, and their (span, sound) pairs


def encode_records(
    path: Path, codec: Codec, report: Report, *, batch: int = 32, skip_bad: bool = False
) -> Iterator[dict[str, Any]]:
    """Records of ``path`` with every sound file replaced by the codes of a loaded ``codec``, in order.

    Sound is averaged to one channel and resampled to the codec's rate.  ``batch``: sound files encoded together.
    Raises the first `RecordError` unless ``skip_bad``; then such records are left out and counted.
    """
    waiting: Waiting = []
    held = 0
    for where, raw in raw_records(path):
        report.rows += 1
        try:
            record = dict(mapping(where, raw))
            check_record(record, where)
            if not isinstance(record.get("uid"), str):
                raise RecordError(where, "no uid", f"no text 'uid'; keys: {sorted(record)}; run 'ttt data convert' first")
            waves = [(span, _wave(span["wav"], codec, where)) for span in _spans(record) if "wav" in span]
        except RecordError as error:
            if not skip_bad:
                raise
            report.skipped[error.reason] += 1
            report.first_skipped.setdefault(error.reason, str(error))
            continue
        waiting.append((record, waves))
        held += len(waves)
        if held >= batch or len(waiting) >= 8 * batch:
            yield from _encoded(waiting, codec, report)
            waiting, held = [], 0
    yield from _encoded(waiting, codec, report)


def _encoded(waiting: Waiting, codec: Codec, report: Report) -> Iterator[dict[str, Any]]:
    spans = [pair for _, waves in waiting for pair in waves]
    codes = codec.encode([wave for _, wave in spans]) if spans else []
    for (span, _), found in zip(spans, codes, strict=True):
        del span["wav"]
        span.update(audio(found.ids, span.get("style", "span")))
    for record, _ in waiting:
        report.written += 1
        yield record


def _spans(record: dict[str, Any]) -> list[dict[str, Any]]:
    answers = [record[key] for key in ("chosen", "rejected") if "turns" in record and key in record]
    return [span for spans in (*(turn["spans"] for turn in record.get("turns", ())), *answers) for span in spans]


def _wave(path: str, codec: Codec, where: str) -> Waveform:
    try:
        return resample(read(path, mono=True), codec.encode_rate_hz)
    except DataError as error:
        raise RecordError(where, "not a usable sound file", str(error)) from error
