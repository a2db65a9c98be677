"""egs/mini_talk/ablations.sh with a recorder in place of `ttt`: what a table needs is made first, then its cells."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ttt.errors import DataError
from ttt.lab.plan import plan
from ttt.lab.table_file import read_table

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "egs/mini_talk/ablations"


@pytest.fixture
def run(tmp_path):
    recorder = tmp_path / "ttt"
    recorder.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls.txt\n')
    recorder.chmod(0o755)

    def script(*arguments, tables=None):
        env = {**os.environ, "TTT": str(recorder)}
        if tables is not None:
            env["TABLES"] = str(tables)
        command = ["bash", str(ROOT / "egs/mini_talk/ablations.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    return script


def test_options_go_to_the_verb(run, tmp_path):
    done = run("--table", "samplers", "--stage", "2", "--seeds", "1", "--only", "steps_1 factor", "--dry-run", "train.steps=9")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls.txt").read_text() == (
        "ablate egs/mini_talk/ablations/samplers.yaml train.steps=9 --seeds 1 --only steps_1 factor --dry-run\n"
    )


def test_an_unknown_table_is_refused_with_the_known_ones(run):
    done = run("--table", "paper")
    assert done.returncode == 2 and "no table egs/mini_talk/ablations/paper.yaml; there are: ./audiolm.yaml" in done.stderr


def test_what_a_table_needs_is_made_before_it_and_a_failure_ends_the_script(run, tmp_path):
    made = tmp_path / "calls.txt"
    (tmp_path / "one.yaml").write_text(f"title: One\nneeds:\n  - echo first a=b >> {made}\n  - echo second >> {made}\nseeds: 1\n")
    done = run("--table", "one", tables=tmp_path)
    assert done.returncode == 0, done.stderr
    assert made.read_text() == f"first a=b\nsecond\nablate {tmp_path}/one.yaml\n"
    made.unlink()
    assert run("--table", "one", "--dry-run", tables=tmp_path).returncode == 0
    assert made.read_text() == f"ablate {tmp_path}/one.yaml --dry-run\n"
    (tmp_path / "one.yaml").write_text("needs:\n  - exit 3\n  - echo not reached\n")
    done = run("--table", "one", tables=tmp_path)
    assert done.returncode == 3 and "not reached" not in done.stdout


def test_the_script_reads_needs_as_the_program_does(run):
    """Every shipped table says what it needs, in scripts and options that exist."""
    for path in sorted(TABLES.glob("*.yaml")):
        needs = read_table(path).needs
        printed = run("--table", path.stem, "--stop-stage", "1", "--dry-run").stdout.splitlines()[1:]
        assert needs and list(needs) == printed
        for command in needs:
            script, *options = command.split()
            assert (ROOT / script).is_file() and all(re.fullmatch(r"--[a-z-]+|\d|interleaved|data\.dir=.*", o) for o in options)


def test_missing_data_names_the_commands_that_make_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    table = read_table(TABLES / "parallel.yaml")
    with pytest.raises(DataError, match=r"nowhere is missing.* \(made by: \./egs/mini_talk/run\.sh --stop-stage 3\)$"):
        plan(table, Path("out"), ["eval.examples=[nowhere]"])
