"""Threads of this process on a machine that others use too.

OpenMP threads wait for each other by spinning.  Where another process takes a processor, the spinning ones keep those busy that
the late one needs, and two threads get less done than one.  So they sleep instead (`sleep_while_waiting`), and there are fewer
of them where others are at work (`choose_threads`).  The number of threads decides in which order sums are added, so losses may
differ in their last bits, as with ``run.threads``; how threads wait changes no number.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path

log = logging.getLogger(__name__)

# GNU's OpenMP (torch on Linux) and Intel's, which read them when they are loaded.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
LOOKS, PAUSE_S = 5, 0.01
_chosen_by_ttt = False  # neither run.threads nor OMP_NUM_THREADS says how many


def sleep_while_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP threads sleep while they wait; call before torch is imported.  What the user has set stays."""
    if not any(name in environment for name in PASSIVE):
        environment.update(PASSIVE)


def choose_threads(asked: int) -> None:
    """Threads of torch: ``asked`` (``run.threads``), else what ``OMP_NUM_THREADS`` says, else the processors that are free."""
    from ttt.io.provenance import usable_cpus

    global _chosen_by_ttt
    _chosen_by_ttt = not asked and (_chosen_by_ttt or "OMP_NUM_THREADS" not in os.environ)
    cpus = usable_cpus()
    if asked:
        import torch

        torch.set_num_threads(asked)
    elif "OMP_NUM_THREADS" not in os.environ and cpus > 1:
        others = busy_with_others(cpus)
        threads = max(1, cpus - others)
        if others:
            log.info(
                "threads: others are at work on %d of %d processors; %d threads here (run.threads=%d takes all)",
                min(others, cpus), cpus, threads, cpus,
            )  # fmt: skip
        if others or cpus < (os.cpu_count() or 1):  # torch knows nothing of a container's quota
            _limit(threads)


def keep_threads(before: int) -> None:
    """A resumed run goes on with the threads it had ``before``, so that its losses stay equal to the last bit.

    Nothing changes where the user said how many there are.
    """
    if _chosen_by_ttt and before > 0:
        import torch

        if torch.get_num_threads() != before:
            log.info("threads: %d, as before (run.threads chooses another number)", before)
            torch.set_num_threads(before)


def _limit(number: int) -> None:
    """Set torch's number of threads, without importing torch where nobody has yet."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)
    else:
        os.environ["OMP_NUM_THREADS"] = str(number)


def busy_with_others(cpus: int, source: Path = Path("/proc/loadavg")) -> int:
    """How many of this process's ``cpus`` other processes want now; 0 where it cannot be seen.

    Looks a few times at what is running: the load average still holds what this user's last command did.
    """
    looks = []
    for _ in range(LOOKS):
        try:
            running = int(source.read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return 0
        looks.append(max(0, running - 1))  # but this process
        time.sleep(PAUSE_S)
    of_the_machine = os.cpu_count() or cpus
    return round(statistics.median(looks) * cpus / max(cpus, of_the_machine))
