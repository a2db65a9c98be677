"""Commands that start in milliseconds: a process that has imported the large libraries forks one for each of them.

`commands` returns a folder with two programs, ``ttt`` and ``python``.  Put it at the front of PATH, or name its programs, and
each call runs in a process of its own with the caller's arguments, folder, environment, input and output, as a process started
from nothing would.  Only libraries are imported before the fork: ``ttt`` is imported by each command.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What most commands import, some with their first use only.
LIBRARIES = (
    "torch", "torch._dynamo", "torch.utils.tensorboard", "transformers", "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.auto.modeling_auto", "omegaconf", "tokenizers", "safetensors.torch", "jiwer", "sacrebleu.metrics",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "tqdm", "yaml",
)  # fmt: skip
CLIENT = """\
import json, os, socket, sys
server, *words = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as s:
    s.connect(server)
    request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(s, [len(request).to_bytes(4, "big")], [0, 1, 2])
    s.sendall(request)
    answer = s.recv(4)
sys.exit(int(answer or b"1"))
"""


@functools.cache
def commands() -> Path:
    """The folder of the programs.  The server starts with the first call; the workers of a parallel test run share one."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    # A short path: the name of a socket has 107 characters at most.
    folder = Path(tempfile.gettempdir(), f"ttt-warm-{run or os.getpid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        assert run, f"{folder} is left from an earlier run: remove it"
    else:
        (folder / "client.py").write_text(CLIENT)
        for name in ("ttt", "python"):
            program = folder / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {folder}/client.py {folder}/socket {name} "$@"\n')
            program.chmod(0o700)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
        tests = os.getppid() if run else os.getpid()
        log = (folder / "log").open("w")
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(tests)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
            env=environment, start_new_session=True,
        )  # fmt: skip
    for _ in range(1200):
        if (folder / "socket").exists():
            return folder
        time.sleep(0.1)
    raise RuntimeError(f"the server of warm processes did not start:\n{(folder / 'log').read_text()}")


def programs() -> dict[str, str]:
    """Variables with which ``run.sh`` scripts call these commands."""
    return {"TTT": str(commands() / "ttt"), "PYTHON": str(commands() / "python")}


def serve(folder: Path, tests: int) -> None:
    """Accept commands until the process ``tests`` has ended."""
    for name in LIBRARIES:
        __import__(name)
    if importlib.util.find_spec("deepspeed"):
        __import__("deepspeed")  # transformers does, whenever it saves a model
    gc.freeze()
    end = os.pidfd_open(tests)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "starting"))
        server.listen()
        (folder / "starting").rename(folder / "socket")
        while end not in (ready := select.select([server, end], [], [], 1)[0]):
            if server in ready:
                connection, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    answer(connection)
                connection.close()
            while reap():
                pass
    shutil.rmtree(folder, ignore_errors=True)


def reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def answer(connection: socket.socket) -> None:
    """Run one command in a child, and kill it when the caller is gone."""
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    length, request = int.from_bytes(size, "big"), b""
    while len(request) < length:
        request += connection.recv(length - len(request))
    words, cwd, environment = json.loads(request)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(cwd)
        os._exit(run(words, environment))
    for file in files:
        os.close(file)
    ready, _, _ = select.select([os.pidfd_open(child), connection], [], [])
    if connection in ready:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
    except OSError:
        pass
    os._exit(0)


def run(words: list[str], environment: dict[str, str]) -> int:
    """What ``python ARGUMENTS`` or ``ttt ARGUMENTS`` does; returns the exit code."""
    import runpy

    os.environ.clear()
    os.environ.update(environment)
    paths = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[0:2] = [*paths, str(ROOT)]  # in place of this file's folder and the root
    unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) or unbuffered else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    name, *arguments = words
    code: object = None
    try:
        if name == "ttt":
            sys.argv = words
            from ttt.cli.main import main

            code = main()
        elif arguments[:1] == ["-m"]:
            sys.argv = arguments[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[:1] in (["-c"], ["-"]):
            source = arguments[1] if arguments[0] == "-c" else sys.stdin.read()
            sys.argv = [arguments[0], *arguments[2 if arguments[0] == "-c" else 1 :]]
            sys.path.insert(0, "")
            exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code or 0)  # type: ignore[call-overload]


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
