"""Documentation that cannot drift: generated pages are compared, marked commands are run, shown plug-ins are used."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(language: str, mark: str = "") -> list:
    found = []
    for page in PAGES:
        for match in FENCE.finditer(page.read_text()):
            if match[1] == language and mark in match[2]:
                line = page.read_text()[: match.start()].count("\n") + 1
                found.append(pytest.param(match[2], id=f"{page.name}:{line}"))
    return found


@pytest.mark.parametrize("script", blocks("bash", "# runs"))
def test_marked_commands_run(script, tmp_path):
    path = f"{commands()}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PATH": path, "OUT": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


SCHEDULES = [b for b in blocks("python") if "NOISE.register" in b.values[0]]


@pytest.mark.parametrize("source", SCHEDULES)
def test_documented_schedules_keep_the_contract(source, tmp_path):
    (tmp_path / "my_noise.py").write_text(source)
    done = subprocess.run(
        [commands() / "ttt", "check", "noise", "square", "--plugins", str(tmp_path / "my_noise.py")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all 4 properties hold" in done.stdout


def test_documented_table_is_one(tmp_path):
    from ttt.lab.table_file import read_table

    (table,) = blocks("yaml", "# my_table.yaml")
    (tmp_path / "my_table.yaml").write_text(table.values[0])
    rows = read_table(tmp_path / "my_table.yaml").rows
    assert list(rows) == ["linear", "mine"] and rows["mine"].settings == ("objective.noise=square",)


def test_plugin_page_is_current():
    done = subprocess.run([commands() / "ttt", "list", "--markdown"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (ROOT / "docs/plugins.md").read_text(), "run 'make docs'"


def test_page_of_configuration_keys_is_current():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (ROOT / "docs/configuration.md").read_text() == tool.configuration_page(), "run 'make docs'"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
