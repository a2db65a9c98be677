"""Two ranks of ZeRO-2, started by torchrun and by DeepSpeed's own launcher: the same run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rank_worlds import free_port
from tiny_training import lines

pytest.importorskip("deepspeed")
HERE = Path(__file__).parent
# `long`: at the very end, when all is saved, torch sometimes aborts a rank ("terminate called without an active exception")
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def start(folder: Path, *launcher: str) -> list[dict]:
    """Train 6 updates on two ranks; the run's lines."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": f"{HERE.parents[2]}{os.pathsep}{HERE}",
    }  # fmt: skip
    script = (str(HERE / "tiny_training.py"), str(folder), "6", "zero2")
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *script], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = [json.loads(found) for found in re.findall(r'\{"rank".*?\}', done.stdout)]
    assert sorted((r["rank"], r["step"]) for r in told) == [(0, 6), (1, 6)], done.stdout
    return lines(folder)


def test_torchrun_and_the_launcher_of_deepspeed_start_the_same_run(tmp_path):
    torchrun = start(tmp_path / "torchrun", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    own = start(
        tmp_path / "deepspeed", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port()),
        "--hostfile", "none",
    )  # fmt: skip
    assert [r["step"] for r in torchrun] == [3, 6] and own == torchrun
