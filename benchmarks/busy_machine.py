"""How much of its speed a training-like job keeps beside a process that takes a processor, with and without spinning threads.

    python benchmarks/busy_machine.py [--busy N] [--threads N] [--repeats N] [--seconds S]

Rounds of small matrix products, forward and backward, in a child process: alone and beside ``--busy`` loops, with OpenMP's own
way of waiting ("spin") and with what `ttt.io.threads` sets ("sleep").  The four take turns; medians are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from ttt.io.threads import PASSIVE

JOB = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
layers = torch.nn.Sequential(*[torch.nn.Linear(128, 128) for _ in range(8)])
x = torch.randn(256, 128)
for _ in range(5):
    layers(x).sum().backward()
until, rounds, begun = time.perf_counter() + float(sys.argv[2]), 0, time.perf_counter()
while time.perf_counter() < until:
    layers(x).sum().backward()
    rounds += 1
print(rounds / (time.perf_counter() - begun))
"""


LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with the benchmark


def rounds_per_second(threads: int, seconds: float, variables: dict[str, str]) -> float:
    """Of one child process with these variables of the environment."""
    clean = {k: v for k, v in os.environ.items() if k not in PASSIVE and k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", JOB, str(threads), str(seconds)]
    return float(subprocess.run(command, env={**clean, **variables}, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=1, help="loops beside the job (default 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the job (default: all processors)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    kinds = {"spin": (options.threads, {}), "sleep": (options.threads, PASSIVE), "one thread": (1, PASSIVE)}
    measured: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.repeats):
        for busy in (0, options.busy):
            loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(busy)]
            try:
                for kind, (threads, variables) in kinds.items():
                    speed = rounds_per_second(threads, options.seconds, variables)
                    measured.setdefault((kind, busy), []).append(speed)
            finally:
                for loop in loops:
                    loop.kill()
                    loop.wait()
    print(f"{options.threads} threads, median of {options.repeats} x {options.seconds:g} s; load {os.getloadavg()[0]:.1f}")
    print(f"{'':12}{'alone':>12}{f'beside {options.busy}':>12}   rounds/s")
    for kind in kinds:
        alone, beside = (statistics.median(measured[kind, busy]) for busy in (0, options.busy))
        print(f"{kind:12}{alone:12.1f}{beside:12.1f}   keeps {beside / alone:.0%}")


if __name__ == "__main__":
    main()
