"""The fixtures themselves: every verb of the finished experiment runs, and a crash is seen."""

from __future__ import annotations

from pathlib import Path

from broken_files import FAULTS, break_file, restore


def test_the_experiment_is_finished(world, run, tree):
    before = tree()
    for verb in ("tokenize", "train", "generate", "score", "floor"):
        code, _, err = run(verb, "--config", world.recipe)
        assert (code, err) == (0, ""), verb
    assert {path for path in before if before[path] != tree().get(path)} <= {
        "run/env.json",
        "run/.lock",
        "run/command.txt",
    }
    for path in vars(world).values():
        assert Path(path).exists(), path


def test_a_crash_is_returned_as_one(run, monkeypatch):
    import ttt.cli.list

    monkeypatch.setattr(ttt.cli.list, "run", lambda arguments: 1 / 0)
    outcome = run("list")
    assert outcome.crashed and outcome.code == 1 and "ZeroDivisionError" in outcome.err


def test_faults_are_undone(world, tree):
    path = Path(world.card)
    before, content = tree(), path.read_bytes()
    for how in FAULTS:
        break_file(path, how)
        assert tree() != before, how
        restore(path, content)
    assert tree() == before
