"""Versions, git state, machine."""

import json
import subprocess

import torch

from ttt.io import provenance


def test_versions():
    found = provenance.package_versions(["torch", "no-such-package"])
    assert found["no-such-package"] is None and (found["torch"] or "").split("+")[0] == torch.__version__.split("+")[0]


def test_git_state(tmp_path):
    assert provenance.git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    clean = provenance.git_state(tmp_path)
    assert clean is not None and len(clean.commit) == 40 and clean[1:] == ("main", 0)
    (tmp_path / "a").write_text("2")
    (tmp_path / "untracked").write_text("")
    assert provenance.git_state(tmp_path) == (clean.commit, "main", 1)


def test_the_environment_is_plain_json():
    found = json.loads(json.dumps(provenance.environment("ttt train")))
    assert found["packages"]["torch"] and "no-such-package" not in found["packages"] and found["command"] == "ttt train"
    assert found["python"] and found["memory_bytes"] > 0 and found["git"].keys() == {"commit", "branch", "dirty"}


def test_machine():
    assert provenance.cpu_model() and provenance.usable_cpus() >= 1 and (provenance.memory_bytes() or 0) > 1 << 20
