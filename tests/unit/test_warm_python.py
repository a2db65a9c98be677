"""The programs that tests call in place of `ttt` and `python` behave as those do."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.warm_python import commands


def call(script: str, **env: str) -> subprocess.CompletedProcess:
    path = f"{commands()}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path, **env}
    )


def test_a_command_has_the_callers_folder_environment_arguments_and_input(tmp_path):
    (tmp_path / "neighbour.py").write_text("value = 7")
    (tmp_path / "script.py").write_text(
        "import os, sys, neighbour\n"
        "print(neighbour.value, os.getcwd(), os.environ['COLOUR'], sys.argv[1:], sys.stdin.read(), __name__)\n"
    )
    done = call(f"cd /; echo words | python {tmp_path}/script.py a 'b c'", COLOUR="blue")
    assert done.stdout == "7 / blue ['a', 'b c'] words\n __main__\n" and done.stderr == ""


@pytest.mark.parametrize(
    ("script", "code", "output"),
    [
        ("ttt --version", 0, "ttt "),
        ("python -m ttt nothing", 2, "no verb 'nothing'"),
        ("python -c 'raise SystemExit(3)'", 3, ""),
        ("echo 'import sys; print(sys.argv)' | python - x", 0, "['-', 'x']"),
        ("python -c 'open(\"/no/file\")'", 1, "FileNotFoundError"),
        ("python -c 'import os; os.kill(os.getpid(), 15)'", 143, ""),
        ("python -c 'import sys; sys.exit(\"a message\")'", 1, "a message"),
    ],
)
def test_exit_codes_and_messages(script, code, output):
    done = call(script)
    assert done.returncode == code and output in done.stdout + done.stderr


def test_each_command_starts_without_ttt_and_leaves_nothing_behind():
    assert call("python -c 'import sys; print([m for m in sys.modules if m.startswith(\"ttt\")])'").stdout == "[]\n"
    assert call("python -c 'import json; json.mark = 1'").returncode == 0
    assert call("python -c 'import json; print(hasattr(json, \"mark\"))'").stdout == "False\n"


def test_a_command_ends_with_its_caller(tmp_path):
    program = f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    call(f'timeout 3 python -c "{program}"')
    pid = (tmp_path / "pid").read_text()
    assert call(f"for i in $(seq 50); do [ -e /proc/{pid} ] || exit 0; sleep 0.1; done; exit 1").returncode == 0
