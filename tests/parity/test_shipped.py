"""The small set of reference numbers in ``data``: small, a part of the whole set, and enough for the tests here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.parity.conftest import folder

DATA = Path(__file__).parent / "data"
whole = pytest.mark.skipif(
    folder() == DATA or not (folder() / "model_trained.safetensors").is_file(), reason="needs the whole set"
)


def test_it_is_small():
    assert sum(f.stat().st_size for f in DATA.rglob("*") if f.is_file()) <= 500_000


@whole
@pytest.mark.parametrize("path", sorted(p.relative_to(DATA).as_posix() for p in DATA.rglob("*.json")))
def test_cases_are_those_of_the_whole_set(path):
    small, full = (json.loads((root / path).read_text()) for root in (DATA, folder()))
    if "cases" not in small:  # sizes, chats; of the tokenizer only the added tokens differ
        assert all(full[key] == small[key] for key in small if key not in ("added_tokens", "model"))
        return
    by_name = {case.get("name", case.get("id")): case for case in full["cases"]}
    assert small["cases"]
    for case in small["cases"]:
        original = by_name[case.get("name", case.get("id"))]
        assert case == {key: original[key] for key in case}


@whole
@pytest.mark.parametrize("path", sorted(p.relative_to(DATA).as_posix() for p in DATA.rglob("*.safetensors")))
def test_tensors_are_those_of_the_whole_set(path):
    small, full = load_file(DATA / path), load_file(folder() / path)
    for name, value in small.items():
        original = full[name]
        assert torch.equal(value, original.half() if original.is_floating_point() and value.dtype == torch.half
                           else original.to(value.dtype)), name  # fmt: skip
        assert value.is_floating_point() or torch.equal(value.to(original.dtype), original), name


@pytest.mark.slow
def test_the_tests_pass_with_it():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not long", str(DATA.parent)]
    env = {**os.environ, "TTT_PARITY_DIR": str(DATA)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=DATA.parents[2])
    assert done.returncode == 0, done.stdout[-3000:]
