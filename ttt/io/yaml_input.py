"""YAML that was written elsewhere.  Every fault is one line: file, line, what is wrong, how to mend it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ttt.errors import DataError, TttError
from ttt.io.json_input import NAMES
from ttt.io.text_input import EncodingFault, decode_text, why_unreadable


def parse_yaml(
    text: str, where: str, mend: str, kind: type | None = None, error: type[TttError] = DataError, *, tags_as_data: bool = False
) -> Any:  # fmt: skip
    """The value of a YAML text, of type ``kind`` (None: any).  Raises ``error`` saying "``where``: reason; ``mend``".

    Tags (``!new:some.Class``) are refused; with ``tags_as_data`` they are passed over and what they stand before is data.
    """
    import yaml

    try:
        value = yaml.load(text, _tags_passed_over() if tags_as_data else yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as fault:
        raise error(f"{where}{_line(fault)}: {_reason(fault)}; {mend}") from fault
    if kind is not None and not isinstance(value, kind):
        raise error(f"{where}: expected {NAMES[kind]}, got {type(value).__name__}; {mend}")
    return value


def read_yaml(
    path: str | Path, mend: str, kind: type | None = dict, error: type[TttError] = DataError, *, tags_as_data: bool = False
) -> Any:  # fmt: skip
    """The value in a YAML file, of type ``kind`` (None: any).  Raises ``error`` saying file, line, reason and ``mend``."""
    path = Path(path)
    try:
        text = decode_text(path.read_bytes())
    except EncodingFault as fault:
        raise error(f"{path}: {fault}; {mend}") from fault
    except OSError as fault:
        raise error(f"{path}: {why_unreadable(fault)}; {mend}") from fault
    return parse_yaml(text, str(path), mend, kind, error, tags_as_data=tags_as_data)


@functools.cache
def _tags_passed_over() -> Any:
    """A safe loader that makes plain mappings, lists and texts of what bears a ``!tag`` of the file's own."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def untagged(loader: Any, tag: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)

    Loader.add_multi_constructor("!", untagged)
    return Loader


def _line(fault: Exception) -> str:
    mark = getattr(fault, "problem_mark", None)
    return "" if mark is None else f":{mark.line + 1}"


def _reason(fault: Exception) -> str:
    if isinstance(fault, RecursionError):
        return "nested too deeply"
    words = getattr(fault, "problem", None) or getattr(fault, "reason", None) or str(fault).partition(";")[0]
    return f"not YAML: {' '.join(str(words).split())}"
