"""Planting faults: a broken plug-in, and which property of its family has to name it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ttt.check.core import check
from ttt.registry.core import build_dataclass

FIELDS = {
    "sampler": {"block_length": 4, "gen_length": 16, "diffusion_steps": 16}, "arch": {"dim": 16, "heads": 2, "layers": 1},
}  # fmt: skip


def planted() -> tuple[list, Callable]:
    """(the faults of a file, the decorator ``fault(family, breaks)`` that adds one)."""
    faults: list = []

    def fault(family: str, breaks: str):
        def add(cls):
            faults.append(pytest.param(family, breaks, cls, id=f"{family}-{breaks}-{cls.__name__}"))
            return cls

        return add

    return faults, fault


def exactly(family: str, breaks: str, cls: type) -> None:
    """The property ``breaks`` fails on ``cls`` with a counter-example of one line, and no other does."""
    torch.manual_seed(1)  # some faults draw from the global generator
    results = check(family, build_dataclass(cls, FIELDS.get(family, {}), family))
    failed = {r.name: r.counter for r in results if r.failed}
    assert list(failed) == [breaks], failed
    assert failed[breaks] and "\n" not in failed[breaks]
