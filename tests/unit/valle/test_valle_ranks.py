"""Two real processes (gloo): codebooks that only one rank has drawn, or none, train as in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ttt.config.schema import RunSection
from ttt.rng import generator

pytest.importorskip("deepspeed")
HERE = Path(__file__).parent
CASES = ("books", "scaled_adam", "nar alone", "masked")
STEPS = 4
REFUSED = {
    "zero2": "train.zero_stage: stage 2 exchanges gradients while they arise",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE.parent / "train")])
    made = subprocess.run(
        [sys.executable, str(HERE / "valle_ranks.py"), str(root)], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(made.stdout)
    for name, ended in found.items():
        text = "\n".join(ended["text"])
        if name in REFUSED:
            assert set(ended["status"]) == {2} and REFUSED[name] in text, f"{name}\n{text}"
        else:
            assert ended["status"] == [0] * len(ended["status"]), f"{name}\n{text}"
    assert [len(found[f"books {size}"]["status"]) for size in (1, 2)] == [1, 2]
    return root


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:08d}/model/model.safetensors")


def lines(run: Path) -> list[dict]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("train/tokens_per_s", "train/seconds")} for r in records]


def moved(run: Path, step: int) -> set[str]:
    """Heads of codebooks that an update has changed."""
    before, after = weights(run, step - 1), weights(run, step)
    return {n for n in before if "nar_predict" in n and not torch.equal(before[n], after[n])}


def test_the_updates_leave_books_out(runs):
    """What these runs are about: some codebooks are drawn by one rank, some by none, and the latter do not move."""
    seed = RunSection().seed
    for update in range(1, STEPS):
        numbers = [0] if update == 1 else [0, 1]  # one of that update's micro-batches has nothing to predict
        draws = (torch.randint(1, 4, (1,), generator=generator(seed, "noise", update, 0, n)) for n in numbers)
        codebooks = {int(d) for d in draws}
        assert moved(runs / "books 2", update + 1) == {f"nar_predict_layers.{b - 1}.weight" for b in codebooks}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(runs, case):
    for step in range(1, STEPS + 1):
        one, two = (weights(runs / f"{case} {size}", step) for size in (1, 2))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-4, msg=f"step {step}: {name}")
    for a, b in zip(lines(runs / f"{case} 1"), lines(runs / f"{case} 2"), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
        if case == "nar alone":
            assert "train/loss/ar" not in a


@pytest.mark.parametrize("case", ["books", "scaled_adam"])
def test_a_resume_knows_which_parameters_have_no_state_yet(runs, case):
    whole, same, other = runs / f"{case} 2", runs / f"{case} again 2", runs / f"{case} again 1"
    state = load_file(whole / "checkpoints/step-00000001/engine/optimizer.safetensors")
    names = {k.partition("/")[2] for k in state if k.startswith("exp_avg_sq/")}
    assert names < weights(whole, 1).keys()  # some have none
    assert lines(same) == lines(whole)  # bit for bit
    a, b, c = (weights(r, STEPS) for r in (whole, same, other))
    for name in a:
        assert torch.equal(a[name], b[name]), name
        torch.testing.assert_close(c[name], a[name], atol=2e-5, rtol=1e-4, msg=name)


def test_a_stage_leaves_the_other_decoder_alone_under_weight_decay(runs):
    first, last = weights(runs / "nar alone 2", 1), weights(runs / "nar alone 2", STEPS)
    assert {n.partition("_")[0] for n in first if not torch.equal(first[n], last[n])} == {"nar"}


@pytest.mark.parametrize(("name", "wanted"), [
    ("zero1", "filled"), ("zero1 to zero1", "zero1"), ("zero1 to local", "filled"),
])  # fmt: skip
def test_zero_gives_books_that_are_left_out_a_gradient_of_0(runs, name, wanted):
    for a, b in zip(lines(runs / wanted), lines(runs / name), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    one, two = weights(runs / wanted, STEPS), weights(runs / name, STEPS)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=2e-5, rtol=1e-4, msg=key)


def test_a_gradient_of_0_is_another_update_than_none(runs):
    one, two = weights(runs / "books 2", STEPS), weights(runs / "filled", STEPS)
    assert max(float((one[n] - two[n]).abs().max()) for n in one) > 1e-3
