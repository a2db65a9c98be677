"""Where a sound lies, and the one place that opens it.  Nothing is unpacked to disk.

A manifest and an example name a sound in one string:

================================== ================================================================================
``FILE``                           a sound file
``FILE.tar#at=OFFSET,SIZE``        ``SIZE`` bytes of a tar (not compressed), from byte ``OFFSET`` on: one member
``FILE.parquet#row=ROW,COLUMN``    the sound in a row (from 0) of a parquet file
``FILE.arrow#row=ROW,COLUMN``      the same in an Arrow file of a dataset that Hugging Face `datasets` saved
any of them, then ``#t=START,END`` that stretch of it, in seconds; without ``END`` up to its end
================================== ================================================================================

A cell of a table holds the bytes of a sound file, or the pair ``bytes``, ``path`` that Hugging Face `datasets` stores for
the feature ``Audio``; a path without bytes counts from the table's folder.  Or it holds the samples themselves, ``array`` and
``sampling_rate`` (SLAM-Omni's tables).  Only what is asked for is read: a member by one
seek, a row by its row group in small batches (rows asked for in order are read once), a stretch by a seek in the sound.
"""

from __future__ import annotations

import bisect
import functools
import io
import itertools
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttt.errors import DataError
from ttt.io.arrow import open_parquet, parquet

_FORM = re.compile(r"(?s)(.+?)(?:#at=(\d+),(\d+)|#row=(\d+),([^#]+))?(?:#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)?)?")
_HEADER = 512  # bytes of a tar's header, right before the member's content
_ROWS = 16  # of a table that are in memory at a time


@dataclass(frozen=True)
class Sound:
    """A file, or ``member`` (offset, size) of a tar, or ``cell`` (row, column) of a table; from ``start_s`` to ``stop_s``.

    ``stop_s`` None: up to the end.

    >>> sound = Sound.of("/data/a.tar#at=1536,20480#t=0.5,1.25")
    >>> sound.file.name, sound.member, sound.start_s, sound.stop_s
    ('a.tar', (1536, 20480), 0.5, 1.25)
    >>> str(sound), str(Sound.of("a.parquet#row=7,audio")), str(Sound.of("a#1.wav"))
    ('/data/a.tar#at=1536,20480#t=0.5,1.25', 'a.parquet#row=7,audio', 'a#1.wav')
    """

    file: Path
    member: tuple[int, int] | None = None
    cell: tuple[int, str] | None = None
    start_s: float = 0.0
    stop_s: float | None = None

    @classmethod
    def of(cls, name: str | Path | Sound) -> Sound:
        """The sound that a string (or a path made of one) names."""
        if isinstance(name, Sound):
            return name
        parts = _FORM.fullmatch(str(name))
        assert parts is not None, "the form takes every name"
        file, offset, size, row, column, start, stop = parts.groups()
        return cls(
            Path(file), (int(offset), int(size)) if offset else None, (int(row), column) if row else None,
            float(start or 0.0), float(stop) if stop else None,
        )  # fmt: skip

    @property
    def is_stretch(self) -> bool:
        """Is it a part of a longer sound?"""
        return self.start_s > 0 or self.stop_s is not None

    @property
    def whole(self) -> Sound:
        """The sound that it is a stretch of."""
        return replace(self, start_s=0.0, stop_s=None)

    def __str__(self) -> str:
        inside = f"#at={self.member[0]},{self.member[1]}" if self.member else ""
        inside = f"#row={self.cell[0]},{self.cell[1]}" if self.cell else inside
        end = "" if self.stop_s is None else _number(self.stop_s)
        return f"{self.file}{inside}" + (f"#t={_number(self.start_s)},{end}" if self.is_stretch else "")


def _number(seconds: float) -> str:
    """Seconds to a millionth, which is less than half a sample at every rate in use."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


@contextmanager
def opened(name: str | Path | Sound) -> Iterator[Any]:
    """The whole sound as an open `soundfile.SoundFile`.  Raises `DataError` naming the sound, what is wrong, and the mend."""
    import soundfile

    sound = Sound.of(name).whole
    if not sound.file.is_file():
        raise DataError(f"{sound.file}: no such wav file: check the path, or make the file again")
    source = str(sound.file)
    if sound.member:
        source = io.BytesIO(_member(sound))  # type: ignore[assignment]
    elif sound.cell:
        source = _cell(sound)
    try:
        with soundfile.SoundFile(source) as file:
            yield file
    except (soundfile.LibsndfileError, RuntimeError) as error:
        # the library names the object that it was given: an address in memory, where that is no file
        reason = re.sub(r"Error opening .*?: ", "", str(error).strip(), flags=re.S)
        if not reason or "does not exist" in reason:  # what libsndfile says of mp3 that it cannot decode
            reason = "nothing in it can be decoded"
        raise DataError(f"{sound}: not a readable sound file ({reason}): make or convert it again") from error


def _member(sound: Sound) -> bytes:
    """The content of a tar's member, whose header must lie right before it."""
    assert sound.member is not None
    offset, size = sound.member
    with sound.file.open("rb") as tar:
        tar.seek(max(0, offset - _HEADER))
        header, content = tar.read(_HEADER), tar.read(size)
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        found = None
    if found is None or found.size != size:
        raise DataError(f"{sound}: no member of {size} bytes begins there: the tar has changed, convert the corpus again")
    if len(content) < size:
        raise DataError(f"{sound}: the tar ends within its member {found.name!r}: copy it again")
    return content


def _cell(sound: Sound) -> Any:
    """What `soundfile` opens of a table's cell: its bytes as a file, or the path that it names."""
    assert sound.cell is not None
    row, column = sound.cell
    open_table = _ArrowCells if sound.file.suffix == ".arrow" else _ParquetCells
    value = _cells(open_table, str(sound.file), sound.file.stat().st_mtime_ns, column).value(row)
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
    if isinstance(value, Mapping) and value.get("array") and value.get("sampling_rate"):
        content = _wav_of(value["array"], int(value["sampling_rate"]))
    if isinstance(content, bytes) and content:
        return io.BytesIO(content)
    path = content if isinstance(content, str) else path
    if not isinstance(path, str) or not path:
        kind = "nothing" if value is None or isinstance(value, Mapping) else type(value).__name__
        raise DataError(
            f"{sound}: expected the bytes of a sound file (or 'bytes' and 'path'), got {kind}: name the column of the sound, or "
            "drop the row"
        )
    if not (sound.file.parent / path).is_file():
        raise DataError(f"{sound}: no bytes, and its path {path} is no file here: save the dataset with its sound")
    return str(sound.file.parent / path)


def _wav_of(samples: Any, rate_hz: int) -> bytes:
    """Numbers f32 [n] as the bytes of a sound file."""
    import numpy as np
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.asarray(samples, dtype=np.float32), rate_hz, format="WAV", subtype="FLOAT")
    return out.getvalue()


@functools.lru_cache(maxsize=2)
def _cells(open_table: Any, path: str, changed: int, column: str) -> Any:
    """The column of a table, opened once while its rows are read; ``changed``: a file that was written anew is opened anew."""
    return open_table(path, column)


class _ArrowCells:
    """A column of an Arrow stream, mapped into memory: every row costs the same."""

    def __init__(self, path: str, column: str) -> None:
        parquet()
        import pyarrow as pa

        self.place = f"{path}#row"
        try:
            table = pa.ipc.open_stream(pa.memory_map(path)).read_all()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: not readable as Arrow: {str(error).splitlines()[0]}: save the dataset again") from error
        _check_column(path, column, table.schema.names)
        self.column = table.column(column)

    def value(self, row: int) -> Any:
        """What a row holds, as Python values."""
        _check_row(self.place, row, len(self.column))
        return self.column[row].as_py()


class _ParquetCells:
    """A column of a parquet file: the row group of the row that is asked for, some rows at a time, going forward."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column = path, column
        try:
            self.file = open_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise DataError(f"{path}: not readable as parquet: {str(error).splitlines()[0]}: copy it again") from error
        _check_column(path, column, self.file.schema_arrow.names)
        groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self.starts = [0, *itertools.accumulate(groups)]
        self.group, self.at, self.batch = -1, 0, None  # the batch at hand begins with row `at`
        self.batches: Iterator[Any] = iter(())

    def value(self, row: int) -> Any:
        """What a row holds, as Python values."""
        _check_row(f"{self.path}#row", row, self.starts[-1])
        group = bisect.bisect_right(self.starts, row) - 1
        try:
            if group != self.group or row < self.at:
                self.batches = self.file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[self.column])
                self.group, self.at, self.batch = group, self.starts[group], None
            while self.batch is None or row >= self.at + self.batch.num_rows:
                self.at += 0 if self.batch is None else self.batch.num_rows
                self.batch = next(self.batches)
        except (OSError, ValueError, StopIteration) as error:
            self.group = -1
            raise DataError(f"{self.path}#row={row}: the table is damaged there ({error}): copy it again") from error
        return self.batch.column(0)[row - self.at].as_py()


def _check_column(path: str, column: str, known: list[str]) -> None:
    if column not in known:
        raise DataError(f"{path}: no column {column!r}; columns: {', '.join(known)}")


def _check_row(place: str, row: int, rows: int) -> None:
    if row >= rows:
        raise DataError(f"{place}={row}: the table has {rows} rows: it has changed, convert the corpus again")
