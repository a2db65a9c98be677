"""For every property there is one broken plug-in (``test_faults_*.py``), and exactly that property names it."""

from __future__ import annotations

from importlib import import_module

import pytest

from ttt.check.core import MODULES, family_key, properties
from ttt.errors import RegistryError

SUBJECTS = ("archs", "masks", "noise", "training", "decoding", "data", "tasks")


def test_there_is_a_fault_for_every_property():
    files = [import_module(f"tests.unit.check.test_faults_{subject}") for subject in SUBJECTS]
    planted = {(p.values[0], p.values[1]) for file in files for p in file.FAULTS}
    assert planted == {(family, p.name) for family in MODULES for p in properties(family)}


def test_the_world_has_what_faults_need():
    from ttt.check import world

    layout = world.batch().layout()
    assert not layout.visible.all() and int(layout.doc.max()) == 4, "padding and several documents"
    streams = world.streams(3, 15, most=25)
    assert any(s.target.all() for s in streams) and any(s.style == "last" for x in streams for s in x.segments)


def test_families():
    assert family_key("schedule") == "noise"
    with pytest.raises(RegistryError, match="family 'judge' has no checks"):
        family_key("judge")
    with pytest.raises(RegistryError, match="no plug-in family named 'maks'. Did you mean 'mask'"):
        family_key("maks")
