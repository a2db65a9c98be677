"""Only the records of a file that a column chooses (``data.keep: {voice: [anna, ben]}``)."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ttt.data.read.records import Raw, decode
from ttt.errors import DataError, suggest

log = logging.getLogger(__name__)
Keep = Mapping[str, Any]  # column -> the value, or list of values, that is kept


def plain_keep(keep: Keep) -> dict[str, list[str]]:
    """Column -> its values as they are written, sorted.

    >>> plain_keep({"voice": "anna", "speed": [2, 1, None]})
    {'voice': ['anna'], 'speed': ['1', '2', 'null']}
    """
    lists = {name: some if isinstance(some, list) else [some] for name, some in keep.items()}
    return {name: sorted({_written(value) for value in some}) for name, some in lists.items()}


def kept_records(records: Iterable[Raw], keep: Keep, path: str | Path) -> Iterator[Raw]:
    """The ``records`` of ``path`` whose columns have one of the values that ``keep`` lists for each; how many is logged.

    A column is a field of the record or of its ``meta``; values are compared as they are written (1 is "1"), and a record
    that lacks the column has the value null.  Raises `DataError` when nothing is kept, naming the values there are.
    """
    wanted = plain_keep(keep)
    seen: dict[str, Counter[str]] = {name: Counter() for name in wanted}
    fields: dict[str, None] = {}
    total = kept = 0
    for where, raw in records:
        record = decode(where, raw)
        record = record if isinstance(record, Mapping) else {}
        meta = record.get("meta")
        columns = {**(meta if isinstance(meta, Mapping) else {}), **record}
        fields.update(dict.fromkeys(columns))
        values = {name: _written(columns.get(name)) for name in wanted}
        for name, value in values.items():
            seen[name][value] += 1
        total += 1
        if all(value in wanted[name] for name, value in values.items()):
            kept += 1
            yield where, raw
    for name, values_seen in seen.items():
        if total and name not in fields and "null" not in wanted[name]:
            raise DataError(
                f"data.keep: no record of {path} has {name!r}.{suggest(name, fields)} Fields: {', '.join(sorted(fields))}"
            )
        if total and not kept:
            shown = ", ".join(value for value, _ in values_seen.most_common(8))
            raise DataError(f"data.keep: nothing of {path} is kept; {name} is: {shown}; name some of these")
    said = "; ".join(f"{name} in {', '.join(values)}" for name, values in wanted.items())
    log.info("data.keep: %d of %d records of %s (%s)", kept, total, path, said)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
