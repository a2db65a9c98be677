"""Tags of YAML files: refused, or passed over; never followed."""

from __future__ import annotations

import pytest

from ttt.errors import CheckpointError, DataError
from ttt.io.yaml_input import parse_yaml, read_yaml

TAGGED = "a: !new:some.Class\n  b: !ref <c>\n  d: !apply:os.getcwd [1, !new:x {e: 2}]\nc: !name:f\n"


def test_tags_are_refused():
    with pytest.raises(DataError, match="here:1: not YAML: .*!new:some.Class.*; mend it") as error:
        parse_yaml(TAGGED, "here", "mend it")
    assert "\n" not in str(error.value)


def test_tags_are_passed_over(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(TAGGED)
    assert read_yaml(path, "mend it", tags_as_data=True) == {"a": {"b": "<c>", "d": [1, {"e": 2}]}, "c": ""}


def test_tags_of_python_are_refused_all_the_same():
    with pytest.raises(CheckpointError, match="here:1: not YAML"):
        parse_yaml("a: !!python/name:os.getcwd\n", "here", "mend it", error=CheckpointError, tags_as_data=True)
