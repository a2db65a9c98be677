"""Every ``>>>`` under ttt/ is run."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "ttt").rglob("*.py")
    if ">>> " in p.read_text(encoding="utf-8")
)


def test_there_are_some():
    assert len(MODULES) > 10


@pytest.mark.parametrize("name", MODULES)
def test_doctest(name):
    from ttt.registry.core import FAMILIES

    before = dict(FAMILIES)
    try:
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    finally:
        FAMILIES.clear()
        FAMILIES.update(before)
    assert result.attempted > 0 and result.failed == 0
