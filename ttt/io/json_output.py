"""Values as JSON: what NumPy holds, tuples, and numbers that are not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Mappings, sequences and numbers as JSON has them; NaN and infinity become None.

    >>> plain({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any) -> str:
    """`plain` of a value as indented JSON text with a line's end; what JSON has no word for becomes its `str`."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
