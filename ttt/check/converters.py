"""What a converter owes: its own sample converts, every row names its place, and what it cannot read it refuses by name."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ttt.audio.sound import Sound
from ttt.check.core import need, prop
from ttt.data.convert.core import LeftOut, Speech, check_record
from ttt.data.read.records import RecordError
from ttt.interfaces import Converter


@contextmanager
def sample(converter: Converter) -> Iterator[Path]:
    """The converter's sample in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        yield converter.sample(Path(folder))


def converted(converter: Converter, path: Path) -> list[tuple[str, Any]]:
    """(place, result) of all rows."""
    return [(where, converter.convert(where, row)) for where, row in converter.rows(path) if not isinstance(row, LeftOut)]


@prop("converter", "sample", "its sample holds at least one row")
def _sample(converter: Converter) -> None:
    with sample(converter) as path:
        need(list(converter.rows(path)), f"no rows in its sample {path.name}")


@prop(
    "converter", "form", "all of its sample converts, to example records or to utterances with id, sound file, speaker"
)
def _form(converter: Converter) -> None:
    need(converter.makes in ("examples", "utterances"), f"makes is {converter.makes!r}")
    with sample(converter) as path:
        for where, result in converted(converter, path):
            if converter.makes == "examples":
                check_record(result, where)
                json.dumps(result)
            else:
                need(isinstance(result, Speech), f"{where}: makes {type(result).__name__}, expected Speech")
                need(result.id and result.speaker, f"{where}: an empty id or speaker: {result}")
                need(isinstance(result.text, str), f"{where}: text is no string: {result}")
                need(Sound.of(result.wav).file.is_absolute(), f"{where}: wav {result.wav} is not absolute")


@prop("converter", "places", "every row has a place of its own that names a file in what was given")
def _places(converter: Converter) -> None:
    with sample(converter) as path:
        places = [where for where, _ in converter.rows(path)]
        need(len(set(places)) == len(places), f"two rows share a place: {places}")
        wrong = [p for p in places if not p.startswith(str(path))]
        need(not wrong, f"place {wrong[0] if wrong else ''} does not begin with {path.name}'s path")


@prop("converter", "names", "ids differ, and two passes give the same results")
def _names(converter: Converter) -> None:
    with sample(converter) as path:
        first, again = converted(converter, path), converted(converter, path)
        need([_plain(r) for r in first] == [_plain(r) for r in again], "a second pass over the sample differs")
        names = [r["uid"] if isinstance(r, dict) else r.id for _, r in first]
        need(len(set(names)) == len(names), f"ids come twice: {names}")


@prop("converter", "refusals", "rows of another form are refused with a RecordError that names the place")
def _refusals(converter: Converter) -> None:
    others: tuple[Any, ...] = (b'{"half": ', b"\xff\xfe", {}, [], None, {"unheard_of": 1}, 7)
    for row in others:
        try:
            result = converter.convert("data/file.jsonl:7", row)
        except RecordError as error:
            need(str(error).startswith("data/file.jsonl:7"), f"row {row!r}: the error does not name its place: {error}")
            need(error.reason, f"row {row!r}: the error has no reason to count")
            continue
        raise AssertionError(f"row {row!r} was converted to {result!r}")


@prop("converter", "missing", "a file that is not there is a DataError, not a crash")
def _missing(converter: Converter) -> None:
    from ttt.errors import DataError

    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = list(converter.rows(Path(folder) / "gone.jsonl"))
        except DataError:
            return
        need(False, f"gave {len(rows)} rows of a file that is not there")


def _plain(result: tuple[str, Any]) -> Any:
    where, value = result
    return where, value if isinstance(value, dict) else asdict(value)
