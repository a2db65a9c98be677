"""recipes/ttt at size: dry runs name every command and refuse what would only fail hours later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_python import programs
from ttt.registry import name_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/model"))
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "NNODES", "NODE_RANK", "TTT"))}


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "recipes/ttt/run.sh"), *arguments],
        capture_output=True,
        text=True,
        env={**CLEAN, **programs(), **env},
        timeout=120,
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    """--model, --train and --exp of a tiny backbone."""
    from local_backbones import make_backbone

    folder = tmp_path_factory.mktemp("given")
    make_backbone(folder / "model", "qwen2")
    (folder / "train.jsonl").write_text('{"messages": []}\n')
    return [
        "--model", str(folder / "model"), "--train", str(folder / "train.jsonl"), "--exp", str(folder / "exp"), "--conf",
        "qwen2.5_1.5b", "--gpus", "8", "--stage", "1", "--stop-stage", "2", "--dry-run", "data.num_codes=32",
    ]  # fmt: skip


def test_one_node_needs_four_times_the_accumulation(given):
    short = run(*given)
    assert short.returncode == 2
    assert short.stderr.strip().endswith(
        "global batch: 8 GPUs x 4 samples x train.accumulate 16 = 512 samples an update, not 2048: give train.accumulate=64"
    )
    done = run(*given, "train.accumulate=64")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("commands (on each of 1 node(s)):")[2].splitlines()
    commands = [line.strip() for line in listed if line.strip() and not line.startswith("#")]
    (train,) = [c for c in commands if c.startswith("torchrun")]
    assert train.startswith(
        "torchrun --standalone --nproc-per-node 8 --no-python ttt train --config recipes/ttt/conf/qwen2.5_1.5b.yaml"
    )
    assert train.endswith("data.num_codes=32 train.accumulate=64")
    assert [c.split(" --config")[0] for c in commands[:2]] == ["ttt tokenizer", "ttt show"]
    assert "2,048 samples, 4,194,304 positions (8 GPUs)" in done.stdout
    assert not Path(given[5]).exists(), "nothing was written"


def test_four_nodes_are_the_papers_thirty_two_gpus(given):
    done = run(*given, NNODES="4", NODE_RANK="3", MASTER_ADDR="head")
    assert done.returncode == 0, done.stderr
    assert (
        "torchrun --nnodes 4 --node-rank 3 --nproc-per-node 8 --master-addr head --master-port 29500 --no-python ttt train"
        in done.stdout
    )
    assert (
        "2,048 samples, 4,194,304 positions (32 GPUs)" in done.stdout and "commands (on each of 4 node(s))" in done.stdout
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--train", "/no/such.jsonl"], "no such file: /no/such.jsonl"),
        (["--model", "/no/model"], "--model /no/model: config.json is missing"),
        (["--gpus", "eight"], "--gpus, --global-batch and NNODES take numbers"),
        (["--conf", "qwen2.5_2b"], "no recipes/ttt/conf/qwen2.5_2b.yaml"),
        (["train.zero_stgae=3"], "train.zero_stgae: no such key"),
    ],
)
def test_faults_are_found_before_any_work(change, message, given):
    done = run(*given, *change)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not Path(given[5]).exists()


@pytest.mark.parametrize(("name", "millions"), [("1.5b", 1568.5), ("3b", 3119.0)])
def test_recipes_hold_the_papers_settings(name, millions):
    from ttt.config.load import load_config
    from ttt.train.estimate import check_global_batch, estimate

    config = load_config([ROOT / f"recipes/ttt/conf/qwen2.5_{name}.yaml"], [f"model.preset=qwen2.5-{name}"])
    train = config.train
    assert (train.lr, tuple(train.betas), train.weight_decay, name_of(train.schedule)) == (
        2e-5, (0.9, 0.95), 0.01, "cosine",
    )  # fmt: skip
    assert (train.engine, train.zero_stage, train.autocast) == ("deepspeed", 3, "bfloat16")
    assert (train.epochs, train.warmup_epochs) == (10, 0.01 * 10) and config.data.long_rows == "truncate"
    assert [(name_of(s), s.p) for s in config.objective.strategies] == [
        ("banom", 0.3),
        ("ppm", 0.3),
        ("sst", 0.5),
    ]
    check_global_batch(config, 32, 2048)
    found = estimate(config, gpus=32, gpu="a100-80gb", mfu=0.4)
    assert found["parameters"]["all"] / 1e6 == pytest.approx(millions, abs=0.1)
    assert found["vocabulary"]["ids"] == 168_072
    assert found["memory"]["zero-3"]["total"] < 80e9
