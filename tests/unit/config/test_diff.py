"""Differences of configurations."""

import dataclasses

import pytest

from ttt.config.diff import MAY_CHANGE, NOT_IDENTITY, differences, flatten, is_under
from ttt.config.schema import RunConfig

CASES = [
    ({}, {}, []),
    ({"a": 1}, {"a": 1.0}, []),
    ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b: 1 -> 2"]),
    ({"a": 1}, {"b": 1}, ["a: 1 -> (absent)", "b: (absent) -> 1"]),
    ({"a": "adamw"}, {"a": {"name": "adamw"}}, ["a: 'adamw' -> {'name': 'adamw'}"]),
    ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ["a[1].b: 2 -> 3"]),
    ({"a": [1, 2]}, {"a": [1]}, ["a[1]: 2 -> (absent)"]),
    ({"a": None}, {"a": {}}, ["a: None -> {}"]),
]


@pytest.mark.parametrize(("old", "new", "lines"), CASES)
def test_every_leaf_that_differs(old, new, lines):
    assert [str(c) for c in differences(old, new)] == lines


PREFIXES = [
    ("eval", True), ("eval.sampler.steps", True), ("data.train[0].path", True), ("evaluation", False), ("train.lr", False),
]  # fmt: skip


@pytest.mark.parametrize(("key", "may"), PREFIXES)
def test_prefixes(key, may):
    assert is_under(key, MAY_CHANGE) == may


@pytest.mark.parametrize("key", [*MAY_CHANGE, *NOT_IDENTITY])
def test_the_lists_hold_keys_that_exist(key):
    section, _, name = key.partition(".")
    known = {f.name: f for f in dataclasses.fields(RunConfig)}
    assert section in known
    if name:
        value = getattr(RunConfig(), section)
        assert name in {f.name for f in dataclasses.fields(value)}


def test_flatten():
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": {}, "e": []}) == {"a.b[0]": 1, "a.b[1].c": 2, "d": {}, "e": []}
