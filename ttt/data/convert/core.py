"""What converters share: pieces of records, checks, and the loop that writes their output.

An example record is plain JSON (`ttt.data.read.examples.example_to_json`).  An audio span is codes, ``{"audio":
[...]}``, or still a sound file, ``{"wav": "/abs/path.wav"}``: `ttt data encode` turns those into codes.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttt.audio.sound import Sound
from ttt.data.read.examples import codes_array, example_from_json, interleave, words_of
from ttt.data.read.records import RecordError, decode
from ttt.data.read.token_ids import is_ids
from ttt.errors import DataError, suggest
from ttt.interfaces import Converter
from ttt.io.arrow import parquet
from ttt.io.atomic import temporary_name
from ttt.io.digests import hash64
from ttt.text.special_tokens import TAGS
from ttt.text.template import IM_END, IM_START

log = logging.getLogger(__name__)
UNKNOWN_SPEAKER = "unknown"
MARKS = (IM_START, IM_END, "<|endoftext|>", *TAGS)


class LeftOutError(RecordError):
    """A valid record that the converter's settings leave out; it is counted, and the conversion goes on."""


@dataclass(frozen=True)
class LeftOut:
    """What `Converter.rows` may yield for something beside the rows that is not read: it is counted, and the log says so."""

    reason: str
    message: str


@dataclass(frozen=True)
class Speech:
    """A sound file, another sound (`ttt.audio.sound`), or a part of one, and its transcript.

    ``text`` may be empty, where tasks read none (`ttt.interfaces.Task.reads_text`); ``text_at`` says where it was
    looked for. ``duration_s`` None: up to the end of the file.  ``whole``: known to be the whole file.  ``file_s``: what
    was said of the file's duration, to be checked.  ``unlisted``: the corpus leaves this recording out of its
    transcripts, so it is left out where a task needs one.
    """

    id: str
    wav: Path | Sound
    text: str = ""
    speaker: str = UNKNOWN_SPEAKER
    start_s: float = 0.0
    duration_s: float | None = None
    whole: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)
    text_at: str = ""
    file_s: float | None = None
    unlisted: bool = False


@dataclass
class Report:
    """What a conversion did."""

    rows: int = 0
    written: int = 0
    cut: int = 0  # records that end early (``max_tokens``)
    without_text: int = 0  # utterances of a corpus
    files: int = 0  # that hold the utterances of a corpus
    sound_s: float = 0.0  # of these utterances
    rates: Counter[int] = field(default_factory=Counter)  # rate in Hz -> utterances
    mixed: int = 0  # utterances of several channels, which are averaged to one when they are read
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)  # reason -> first message
    seconds: float = 0.0

    def summary(self) -> str:
        """One line for the log."""
        lost = "".join(f"; {n} skipped: {reason}" for reason, n in self.skipped.most_common())
        lost = (f"; {self.cut} cut at max_tokens" if self.cut else "") + lost
        lost = (f"; {self.mixed} of several channels, mixed down when read" if self.mixed else "") + lost
        if self.rates:
            rates = ", ".join(f"{n} at {rate} Hz" for rate, n in sorted(self.rates.items()))
            lost = f"; {self.sound_s / 3600:.3f} hours in {self.files} files ({rates})" + lost
        lost = (f"; {self.without_text} without text" if self.without_text else "") + lost
        speed = f" in {self.seconds:.1f} s ({self.rows / self.seconds:.0f} rows/s)" if self.seconds else ""
        return f"{self.rows} rows, {self.written} written{speed}{lost}"


def inputs_of(pattern: str | Path) -> list[Path]:
    """The files that a path or a glob names, sorted.  Raises `DataError` for a glob that fits nothing."""
    path = Path(pattern)
    if path.exists() or not any(c in path.name for c in "*?["):
        return [path]
    files = sorted(path.parent.glob(path.name))
    if not files:
        raise DataError(f"{pattern}: no file fits; mend the pattern (its folder is taken as it is)")
    return files


def results(
    converter: Converter, path: Path | Sequence[Path], report: Report, *, skip_bad: bool, limit: int = 0,
    finish: Callable[[Any, str], Any] | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Converted rows of one or several files, one at a time; bad ones are counted, or raised unless ``skip_bad``.

    ``limit``: rows read at most, of all files together (0: all).  ``finish`` makes the final form of (result, place),
    and may refuse it like the converter itself.
    """
    paths = [path] if isinstance(path, Path) else path
    for where, row in (found for one in paths for found in converter.rows(one)):
        if limit and report.rows >= limit:
            return
        if isinstance(row, LeftOut):
            report.skipped[row.reason] += 1
            report.first_skipped.setdefault(row.reason, f"{where}: {row.message}")
            continue
        report.rows += 1
        try:
            result = convert_row(converter, where, row)
            if finish is not None:
                result = finish(result, where)
        except RecordError as error:
            if not (skip_bad or isinstance(error, LeftOutError)):
                raise RecordError(
                    error.where, error.reason, f"{error.message} (--skip-bad leaves such rows out and counts them)"
                ) from error
            report.skipped[error.reason] += 1
            report.first_skipped.setdefault(error.reason, str(error))
            continue
        report.written += 1
        report.cut += isinstance(result, Mapping) and bool(result.get("cut"))
        yield result


def convert_row(converter: Converter, where: str, row: Any) -> Any:
    """The result of one row, checked.  What a converter stumbles over becomes a `RecordError` that names the row."""
    try:
        result = converter.convert(where, row)
        if converter.makes == "examples":
            check_record(result, where)
        return result
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        message = f"a field is of another form than expected ({type(error).__name__}: {error}); mend or drop the row"
        raise RecordError(where, "unexpected form", message) from error


def write_records(records: Iterator[Mapping[str, Any]], out: Path, shard: int = 0) -> None:
    """JSONL, complete or not at all.  Raises `DataError` when nothing was usable or a uid comes twice.

    ``shard``: records of a file (0: all in ``out``): NAME.0000.jsonl and so on beside ``out``, then NAME.json, the mix
    of them.
    """
    work = temporary_name(out)
    keys = array("Q")
    work.mkdir(parents=True)
    try:
        with ExitStack() as files:
            for number, record in enumerate(records):
                if number == 0 or (shard and number % shard == 0):
                    files.close()
                    name = f"{out.stem}.{number // shard:04d}.jsonl" if shard else out.name
                    lines = files.enter_context((work / name).open("w", encoding="utf-8"))
                keys.append(hash64(str(record["uid"]).encode()))
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        made = sorted(work.iterdir())
        if not keys:
            raise DataError(f"{out}: no usable row; nothing was written")
        double = twice(keys)
        if double is not None:
            at, line = divmod(double[0], shard or len(keys))
            with made[at].open(encoding="utf-8") as lines:
                uid = json.loads(next(itertools.islice(lines, line, None)))["uid"]
            raise DataError(
                f"{out}: records {double[0] + 1} and {double[1] + 1} are both called {uid!r}; give every row its own id"
            )
        if shard:
            mix = work / f"{out.stem}.json"
            mix.write_text(json.dumps([{"path": path.name, "sample_ratio": 1} for path in made], indent=1) + "\n")
            made.append(mix)
        for path in made:  # the mix last: it stands for all
            os.replace(path, out.with_name(path.name))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def twice(keys: array[int]) -> tuple[int, int] | None:
    """Numbers of the first two equal keys, if any.

    >>> twice(array("Q", [5, 7, 5]))
    (0, 2)
    """
    values = np.frombuffer(keys, dtype="u8") if len(keys) else np.zeros(0, dtype="u8")
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1])
    return (int(order[same[0]]), int(order[same[0] + 1])) if len(same) else None


def check_record(record: Any, where: str) -> None:
    """Raise `RecordError` unless ``record`` reads as an example (sound files counted as empty spans)."""

    def span(raw: Any) -> Any:
        if not isinstance(raw, Mapping) or "wav" not in raw:
            return raw
        if not isinstance(raw["wav"], str) or not raw["wav"]:
            raise RecordError(where, "no sound file", f"expected the path of a sound file, got {raw['wav']!r}; mend the record")
        return {"audio": [], "style": raw.get("style", "span")}

    def turn(raw: Any) -> Any:
        whole = isinstance(raw, Mapping) and isinstance(raw.get("spans"), list | tuple)
        return {**raw, "spans": [span(s) for s in raw["spans"]]} if whole else raw

    if is_ids(record):  # needs a tokenizer to be checked any further
        return
    if isinstance(record, Mapping) and isinstance(record.get("turns"), Sequence):
        pair = {k: [span(s) for s in record[k]] for k in ("chosen", "rejected") if isinstance(record.get(k), list | tuple)}
        record = {**record, "turns": [turn(t) for t in record["turns"]], **pair}
    example_from_json(record, where)


# ---- pieces of a record ----------------------------------------------------------------------------------


def record(
    uid: str, turns: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], task: str = "chat", **meta: Any
) -> dict[str, Any]:
    """An example record of (role, spans) turns; empty text spans are left out."""
    kept = [{"role": role, "spans": [s for s in spans if s.get("text") != ""]} for role, spans in turns]
    return {"uid": uid, "task": task, "turns": kept, "meta": {k: v for k, v in meta.items() if v is not None}}


def spoken_answer(
    text: str, codes: np.ndarray, text_chunk: int = 0, chunk: int = 26, pieces: Callable[[str], Sequence[str]] = words_of
) -> list[dict[str, Any]]:
    """Spans of an answer: all text, then its codes; with ``text_chunk`` > 0 in turns of so many ``pieces`` and ``chunk`` codes."""
    spans = interleave(pieces(text) if text_chunk else [text], codes, text_chunk, chunk)
    return [{"text": s.text} if s.codes is None else audio(s.codes, s.style) for s in spans]


def audio(codes: np.ndarray, style: str) -> dict[str, Any]:
    """A span of codes i32 [F, Q]."""
    return {"audio": codes[:, 0].tolist() if codes.shape[1] == 1 else codes.tolist(), "style": style}


def wav(path: Any, base: Path, style: str, where: str) -> dict[str, Any]:
    """A span that is still a sound file; relative paths count from ``base``."""
    if not isinstance(path, str) or not path:
        raise RecordError(
            where, "no sound file", f"expected the path of a sound file, got {path!r}; mend or drop the row"
        )
    found = (base / path).absolute()
    if not found.is_file():
        raise RecordError(
            where, "sound file missing", f"{found}: no such sound file; set 'root' to the folder paths count from"
        )
    return {"wav": str(found), "style": style}


def units(value: Any, num_codes: int, where: str) -> np.ndarray:
    """Codes i32 [F, 1] of a list of numbers, of numbers in strings, or of one string of numbers.

    >>> units("<12> <7>", 100, "x:1")[:, 0].tolist(), units(["3", "4"], 0, "x:1")[:, 0].tolist()
    ([12, 7], [3, 4])
    """
    if isinstance(value, str):
        value = value.replace("<", " ").replace(">", " ").replace(",", " ").split()
    if isinstance(value, list | tuple) and any(isinstance(v, str) for v in value):
        try:
            value = [int(v) for v in value]
        except (TypeError, ValueError):
            raise RecordError(
                where, "not codes", f"units are no whole numbers: {str(value)[:40]}; mend or drop the row"
            ) from None
    if not isinstance(value, list | tuple | np.ndarray) or not len(value):
        raise RecordError(where, "no codes", "the answer has no speech units; drop the row")
    codes = codes_array(value, where)
    if codes.shape[1] != 1:
        raise RecordError(where, "not codes", f"expected one code a frame, got {codes.shape[1]}; choose one codebook")
    largest = int(codes.max())
    if num_codes and largest >= num_codes:
        message = f"unit {largest} is outside the codebook of {num_codes}; set num_codes or drop the row"
        raise RecordError(where, "code out of range", message)
    return codes


def mapping(where: str, row: Any) -> Mapping[str, Any]:
    """The JSON object of a raw row."""
    found = decode(where, row)
    if not isinstance(found, Mapping):
        raise RecordError(
            where, "not an object", f"expected an object, got {type(found).__name__}; mend or drop the row"
        )
    return found


def check_limits(least_s: float, most_s: float) -> None:
    """Raise `ValueError` for limits that let nothing through."""
    if least_s < 0 or most_s < 0 or 0 < most_s < least_s:
        raise ValueError(f"need 0 <= min_duration_s <= max_duration_s (0: no limit), got {least_s} and {most_s}")


def check_duration(duration_s: float, least_s: float, most_s: float, uid: str, where: str) -> None:
    """Raise `LeftOutError` unless ``least_s`` <= ``duration_s`` <= ``most_s`` (0: no limit)."""
    if duration_s < least_s:
        raise LeftOutError(where, f"shorter than {least_s:g} s", f"{uid!r} lasts {duration_s:g} s; see min_duration_s")
    if most_s and duration_s > most_s:
        raise LeftOutError(where, f"longer than {most_s:g} s", f"{uid!r} lasts {duration_s:g} s; see max_duration_s")


def folder_of(where: str) -> Path:
    """Folder of the file that a place ("file:line" or "file[number]") lies in."""
    return Path(where.rpartition("[" if where.endswith("]") else ":")[0]).parent


def text_of(row: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    """A text field.  Raises `RecordError` when it is missing (without ``default``), empty or no text."""
    value = row.get(key, default)
    if value is None and default is not None:
        value = default
    if not isinstance(value, str) or (not value.strip() and default is None):
        what = f"{type(value).__name__}" if value is not None else "nothing"
        raise RecordError(
            where, f"no {key}", f"field {key!r} must be text that is not empty, got {what}; mend or drop the row"
        )
    return value


def unmarked(text: str, key: str, where: str) -> str:
    """``text``, unless it spells a mark of a chat template: that would act as one, whichever template comes."""
    mark = next((m for m in MARKS if m in text), None) if "<" in text else None
    if mark is not None:
        raise RecordError(
            where, "special token in text", f"field {key!r} spells {mark!r} literally; mend or drop the row"
        )
    return text


def need_columns(path: Path, columns: Sequence[str]) -> None:
    """Raise `DataError` when a parquet file lacks one of ``columns``; other files are checked row by row."""
    if path.suffix != ".parquet" or not path.is_file():
        return
    module = parquet()
    try:
        with module.ParquetFile(path) as file:
            known = file.schema_arrow.names
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as parquet: {str(error).splitlines()[0]}") from error
    for column in columns:
        if column not in known:
            raise DataError(f"{path}: no column {column!r}.{suggest(column, known)} Columns: {', '.join(known)}")


def uid_of(row: Mapping[str, Any], where: str, *keys: str) -> str:
    """The row's own id, else its place with folders left out."""
    for key in (*keys, "id", "uid"):
        if isinstance(row.get(key), str | int) and row[key] != "":
            return str(row[key])
    return where.rpartition("/")[2]
