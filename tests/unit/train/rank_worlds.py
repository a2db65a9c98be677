"""Several ranks without a launcher's start-up time: heavy packages are imported once, each world forks its ranks.

``python rank_worlds.py`` reads lines ``[scenario, folder, arguments...]`` and answers each with what that function of
`rank_scenarios` returns; both as JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port that nobody listens on, below those that systems hand out by themselves: no connection made meanwhile takes it."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@dataclass
class Ended:
    """How a rank ended: exit status (negative: the signal that killed it), what it wrote, when it was seen to end."""

    status: int
    text: str
    seconds: float


class World:
    """``size`` forked ranks that run ``work()``; use `wait`, or `kill` one and `wait`."""

    def __init__(self, size: int, work: Callable[[], Any], folder: Path) -> None:
        port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.files = [folder / f"rank-{rank}.log" for rank in range(size)]
        self.pids = [self._fork(rank, size, port, work) for rank in range(size)]

    def _fork(self, rank: int, size: int, port: int, work: Callable[[], Any]) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            with self.files[rank].open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                if size > 1:
                    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
                    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                status = as_command(work)
        finally:
            os._exit(status)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.pids[rank], number)

    def wait(self, timeout_s: float = 60.0) -> list[Ended]:
        """Every rank's end; one that outlives ``timeout_s`` is killed and shows -9."""
        ended: dict[int, tuple[int, float]] = {}
        while len(ended) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank in ended:
                    continue
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[rank] = (os.waitstatus_to_exitcode(status), time.monotonic() - self.started)
                elif time.monotonic() - self.started > timeout_s:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        return [Ended(*_swap(ended[rank], self.files[rank])) for rank in range(len(self.pids))]


def _swap(ended: tuple[int, float], file: Path) -> tuple[int, str, float]:
    return ended[0], file.read_text() if file.exists() else "", ended[1]


def as_command(work: Callable[[], Any]) -> int:
    """Run ``work`` as ``ttt train`` runs a trainer: one line for a user's error, a trace for a fault."""
    from ttt.errors import TttError

    try:
        code = work()
        return code if isinstance(code, int) else 0
    except TttError as error:
        if not getattr(error, "quiet", False):
            print(f"ttt train: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1


def prepare() -> None:
    """Import once what every rank would import, and let DeepSpeed ask once what it can compile here."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    torch.set_num_threads(1)
    for name in (
        "torch._dynamo", "omegaconf", "yaml", "deepspeed.runtime.zero.muon.muon_optimizer",
        "deepspeed.runtime.superoffload.superoffload_stage3", "deepspeed.module_inject.auto_ep_layer",
        "ttt.train.engines.deepspeed", "ttt.train.schedules",
    ):  # fmt: skip
        importlib.import_module(name)
    from deepspeed import ops

    from ttt.config.load import resolved_yaml
    from ttt.config.schema import RunConfig

    assert ops.__compatible_ops__
    resolved_yaml(RunConfig())
    gc.freeze()


if __name__ == "__main__":
    prepare()
    import rank_scenarios

    for line in sys.stdin:
        scenario, folder, *arguments = json.loads(line)
        print(json.dumps(getattr(rank_scenarios, scenario)(Path(folder), *arguments)), flush=True)
    os._exit(0)  # the orderly end of so many imports takes seconds
