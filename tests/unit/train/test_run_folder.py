"""Run folders: locks, and whether a folder belongs to the run that is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttt.config.load import load_config, resolved_yaml
from ttt.errors import ConfigError
from ttt.train.run_folder import RunFolderError, check_same_run, hold

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, pathlib
from ttt.train.run_folder import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    """A process that holds ``folder`` until its input ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_refuse_each_other_and_a_dead_one_is_no_obstacle(tmp_path):
    other = holder(tmp_path)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match=rf"process {other.pid} on .* is running in this folder; .*run.dir"):
        with hold(tmp_path):
            pass
    other.kill()
    other.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == other.pid  # it did not release it
    with hold(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


def test_the_same_process_refuses_itself_and_lets_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        with pytest.raises(RunFolderError):
            with hold(tmp_path):
                pass
        raise ZeroDivisionError
    with hold(tmp_path):
        pass


def test_a_lock_of_another_machine_is_respected(tmp_path):
    (tmp_path / ".lock").write_text('{"pid": 12, "host": "elsewhere"}')
    with pytest.raises(RunFolderError, match=r"process 12 on elsewhere was running .* delete .*\.lock"):
        with hold(tmp_path):
            pass


def test_what_may_differ_is_returned_and_the_rest_refused(tmp_path):
    old = "{train: {lr: 1.0, steps: 5}, eval: {files: [a]}, objective: {name: ttt}}"
    (tmp_path / "config.yaml").write_text(old)
    changes = check_same_run(tmp_path, old.replace("[a]", "[a, b]").replace("steps: 5", "steps: 6"), {})
    assert [str(c) for c in changes] == ["eval.files[1]: (absent) -> 'b'", "train.steps: 5 -> 6"]
    with pytest.raises(ConfigError, match=r"different: objective.name: 'ttt' -> 'ar'\. Choose"):
        check_same_run(tmp_path, old.replace("name: ttt", "name: ar").replace("steps: 5", "steps: 6"), {})
    (tmp_path / "data.json").write_text('{"data_digest": "a"}')
    with pytest.raises(ConfigError, match="different: data_digest: a -> b"):
        check_same_run(tmp_path, old, {"data_digest": "b"})


def test_a_run_from_before_a_field_existed_goes_on(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("run: {dir: x}\ntrain: {steps: 5}\ndata: {train: x, tokenizer: x}\nmodel: {preset: mini}\n")
    now = resolved_yaml(load_config([recipe]))
    stored = tmp_path / "config.yaml"
    older = now.replace("  optimizer:\n    name: adamw\n", "").replace("    length: null\n", "")
    assert older != now
    stored.write_text(older)
    assert check_same_run(tmp_path, now, {}) == []
    with pytest.raises(ConfigError, match=r"train.optimizer.momentum: .*; train.optimizer.name: 'adamw' -> 'muon'"):
        check_same_run(tmp_path, resolved_yaml(load_config([recipe], ["train.optimizer=muon"])), {})
    stored.write_text(now.replace("  optimizer:\n    name: adamw\n", "  optimizer: adamw\n"))  # before it was a block
    assert check_same_run(tmp_path, now, {}) == []
    with pytest.raises(ConfigError, match="train.optimizer.name: 'adamw' -> 'adam'"):
        check_same_run(tmp_path, resolved_yaml(load_config([recipe], ["train.optimizer=adam"])), {})
    stored.write_text(now + "gone: {key: 1}\n")  # unreadable today: compared as it stands
    with pytest.raises(ConfigError, match=r"gone.key: 1 -> \(absent\)"):
        check_same_run(tmp_path, now, {})
