"""Rows of tables: parquet files, and folders that Hugging Face `datasets` wrote (`save_to_disk`).

Both are read through pyarrow alone.  A saved dataset is a folder with ``state.json`` (which names its Arrow files, in
order) and ``dataset_info.json``; a saved dictionary of splits is a folder with ``dataset_dict.json`` and a dataset per
split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import DataError
from ttt.io.arrow import open_parquet, parquet
from ttt.io.json_input import read_json

ROWS = 256  # that are turned into Python values at a time


def is_saved(path: str | Path) -> bool:
    """Is this folder what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote?"""
    path = Path(path)
    return (path / "dataset_dict.json").is_file() or all(
        (path / n).is_file() for n in ("state.json", "dataset_info.json")
    )


def saved_rows(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a saved dataset, in order; of a dictionary of splits, those of ``train``.  ``columns``: read these only.

    A field that a row has no value in is left out.  Raises `DataError` naming what cannot be read.
    """
    for file in saved_files(path):
        yield from arrow_rows(file, columns)


def arrow_rows(file: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Rows of one Arrow file of a saved dataset, like `saved_rows`."""
    with _arrow_batches(file) as batches:
        known = batches.schema.names
        wanted = known if columns is None else [c for c in columns if c in known]
        for batch in batches:
            for at in range(0, batch.num_rows, ROWS):
                yield from _rows(batch.slice(at, ROWS).select(wanted))


def schema_of(file: Path) -> Any:
    """The ``pyarrow.Schema`` of a parquet file, or of an Arrow file of a saved dataset."""
    if file.suffix == ".arrow":
        with _arrow_batches(file) as batches:
            return batches.schema
    try:
        with open_parquet(file) as table:
            return table.schema_arrow
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as parquet: {str(error).splitlines()[0]}") from error


def rows_of(file: Path) -> int:
    """How many rows a parquet file has, or an Arrow file of a saved dataset."""
    if file.suffix == ".arrow":
        with _arrow_batches(file) as batches:
            return sum(batch.num_rows for batch in batches)
    with open_parquet(file) as table:
        return int(table.metadata.num_rows)


@contextmanager
def _arrow_batches(file: Path) -> Iterator[Any]:
    parquet()
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
            yield batches
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not readable as Arrow: {str(error).splitlines()[0]}; save the dataset again") from error


def parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, like `saved_rows`."""
    try:
        file = open_parquet(path)
        known = file.schema_arrow.names
        wanted = None if columns is None else [c for c in columns if c in known]
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(batch_size=ROWS, row_groups=[group], columns=wanted):
                yield from _rows(batch)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(f"{path}: not readable as parquet: {str(error).splitlines()[0]}") from error


def _split(path: Path) -> Path:
    """The folder of the one dataset that is meant."""
    if not (path / "dataset_dict.json").is_file():
        return path
    splits = _json(path / "dataset_dict.json").get("splits", [])
    if "train" not in splits:
        raise DataError(
            f"{path}: a dataset without the split 'train'; name one of {', '.join(f'{path}/{s}' for s in splits)}"
        )
    return path / "train"


def saved_files(path: str | Path) -> list[Path]:
    """The Arrow files of a saved dataset (of a dictionary of splits: of ``train``), in order."""
    folder = _split(Path(path))
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: holds a choice of rows (indices); save dataset.flatten_indices() instead")
    try:
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(f"{folder / 'state.json'}: names no data files; save the dataset again") from None
    gone = next((f for f in files if not f.is_file()), None)
    if gone is not None:
        raise DataError(f"{gone}: missing, but {folder / 'state.json'} names it; copy the whole folder")
    return files


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "save the dataset again")


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    for values in zip(*(_column(c) for c in batch.columns), strict=True):
        # A column that a row has no value in is a field that the record does not have.
        yield without_nulls(dict(zip(names, values, strict=True)))


def without_nulls(value: Any) -> Any:
    """The value without the fields of objects that are null, at any depth; nulls in lists stay."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list) and value and (value[0] is None or isinstance(value[0], dict | list)):
        return [without_nulls(inner) for inner in value]
    return value


def _column(column: Any) -> Iterable[Any]:
    """Values of a column; lists of numbers come as arrays, which is some ten times faster than as lists."""
    import pyarrow as pa
    import pyarrow.compute

    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_integer(kind.value_type) or column.flatten().null_count:
        return column.to_pylist()
    flat = column.flatten().to_numpy()
    offsets = np.cumsum([0, *(n or 0 for n in pyarrow.compute.list_value_length(column).to_pylist())])
    rows = zip(column.is_valid().to_pylist(), offsets[:-1], offsets[1:], strict=True)
    return [flat[a:b] if valid else None for valid, a, b in rows]
