"""Real processes with gloo: every engine trains alike, and ends well when a rank dies, is told to stop or fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")
HERE = Path(__file__).parent
ENGINES = ("local", "zero1", "zero2", "zero3")


def scenario(name: str, folder: Path, *arguments: str, timeout: int = 250) -> dict:
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "rank_worlds.py"), name, str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> dict:
    return scenario("engines", tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict:
    return scenario("failures", tmp_path_factory.mktemp("failures"))


def ended(run: dict, *status: int) -> str:
    """Check how the ranks ended; everything they wrote."""
    assert run["status"] == list(status), "\n".join(run["text"])
    return "\n".join(run["text"])


def same(one: list[dict], other: list[dict], rel: float) -> None:
    assert [r["step"] for r in one] == [r["step"] for r in other] and len(one) > 1
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=rel, abs=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_equal_one_process_that_accumulates(engines, engine):
    ended(engines[engine], 0, 0)
    ended(engines["one"], 0)
    assert engines["one"]["lines"][0]["train/grad_norm"] > 0.1  # clipping had something to do
    same(engines[engine]["lines"], engines["one"]["lines"], 2e-5)


def test_zero3_resumes_bit_for_bit(engines):
    ended(engines["zero3 again"], 0, 0)
    assert engines["zero3 again"]["lines"] == engines["zero3"]["lines"]


@pytest.mark.parametrize("name", ["zero3 to zero2 on one", "zero2 to local", "local to zero3"])
def test_a_checkpoint_belongs_to_no_engine_and_no_number_of_ranks(engines, name):
    ended(engines[name], *[0] * len(engines[name]["status"]))
    same(engines[name]["lines"], engines["one"]["lines"], 2e-5)


@pytest.mark.parametrize("engine", ["local", "zero2", "zero3"])
def test_a_killed_rank_ends_the_others_with_a_word(failures, engine):
    run = failures[f"lost {engine}"]
    text = ended(run, 2, -9)
    assert "ttt train: step 5: another process of this run is gone" in text
    assert "the same command goes on from step-00000003" in text
    assert max(run["seconds"]) < 30


def test_a_second_run_in_the_folder_is_refused_once(failures):
    text = ended(failures["second"], 2, 2)
    assert text.count("is running in this folder; wait for it, or choose another run.dir") == 1


def test_a_signal_to_one_rank_saves_and_ends_all_with_zero(failures, engines):
    run = failures["signal"]
    text = ended(run, 0, 0)
    assert "SIGTERM: saving after this update" in text
    resumed = ended(run["resumed"], 0, 0)
    assert "going on from step-00000005" in resumed
    assert [r["step"] for r in run["lines"]] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_the_update(failures):
    text = ended(failures["nan"], 2, 2)
    assert "step 4: loss term 'ar' is not finite in examples 55-0, 55-1" in text
    assert failures["nan"]["files"] == ["rank-0.json", "rank-0.safetensors", "rank-1.json", "rank-1.safetensors"]


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_a_gradient_that_is_not_finite_stops_before_the_update(failures, engine):
    text = ended(failures[f"gradient {engine}"], 2)
    assert "step 1: the gradient's norm is inf (the losses are finite)" in text


def test_a_parameter_without_a_gradient_is_refused_by_zero(failures):
    text = ended(failures["unused"], 2)
    assert "2 trainable parameters got no gradient in a micro-batch (first 'spare.weight')" in text


def judge_endurance(found: dict, kills: int) -> None:
    ended(found["whole"], *[0] * len(found["whole"]["status"]))
    ended(found["end"], *[0] * len(found["end"]["status"]))
    whole, killed = found["lines"]
    assert len(found["moments"]) == kills, found["moments"]
    assert [r["step"] for r in killed] == [r["step"] for r in whole]
    assert killed == whole  # bit for bit
    assert not found["left"]


@pytest.mark.parametrize(("engine", "size", "kills"), [("local", 1, 5), ("zero2", 2, 3)])
def test_killed_at_random_moments_equals_uninterrupted(tmp_path, engine, size, kills):
    judge_endurance(scenario("endurance", tmp_path, engine, str(size), str(kills), "7", "30"), kills)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "size"), [("local", 1), ("zero2", 2)])
def test_killed_twenty_times_equals_uninterrupted(tmp_path, engine, size):
    found = scenario("endurance", tmp_path, engine, str(size), "20", "11", "200", timeout=1500)
    print("\n".join(found["moments"]))
    judge_endurance(found, 20)
