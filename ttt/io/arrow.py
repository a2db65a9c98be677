"""pyarrow, imported when a table is read: an extra of the package."""

from __future__ import annotations

from typing import Any

from ttt.errors import MissingExtraError

BUFFER = 1 << 20


def parquet() -> Any:
    """The module ``pyarrow.parquet``.  Raises `MissingExtraError` naming the extra."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "reading .parquet and saved datasets needs pyarrow: pip install 'ttt-speech[parquet]'"
        ) from error
    return pyarrow.parquet


def open_parquet(path: Any) -> Any:
    """A ``ParquetFile`` whose row groups are read piece by piece: otherwise what was read of it stays in memory."""
    return parquet().ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
