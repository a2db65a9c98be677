"""recipes/_shared/launch.sh: which launcher call each situation becomes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TRAIN = "ttt train a=b"


def launch(folder: Path, gpus: str, **variables: str) -> subprocess.CompletedProcess:
    for name, text in (("torchrun", 'echo "torchrun $*"'), ("ttt", 'echo "ttt $*"'), ("scontrol", "echo n1; echo n2")):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    script = f". {ROOT}/recipes/_shared/launch.sh; launch {gpus} {TRAIN}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "NNODES", "NODE_RANK", "MASTER"))}
    environment = {**kept, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("gpus", "variables", "call"),
    [
        ("1", {}, TRAIN),
        ("8", {}, f"torchrun --standalone --nproc-per-node 8 --no-python {TRAIN}"),
        (
            "8",
            {"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "first"},
            f"torchrun --nnodes 4 --node-rank 2 --nproc-per-node 8 --master-addr first --master-port 29500 --no-python {TRAIN}",
        ),
        (
            "8",
            {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "MASTER_PORT": "5"},
            f"torchrun --nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr n1 --master-port 5 --no-python {TRAIN}",
        ),
    ],
)
def test_calls(tmp_path, gpus, variables, call):
    done = launch(tmp_path, gpus, **variables)
    assert (done.returncode, done.stdout.strip()) == (0, call), done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"NNODES": "2"}, "NODE_RANK is not set"), ({"NNODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR is not set")],
)
def test_what_several_nodes_need_is_named(tmp_path, variables, message):
    done = launch(tmp_path, "8", **variables)
    assert done.returncode == 2 and message in done.stderr
