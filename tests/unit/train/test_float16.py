"""Training in float16: losses are scaled, updates that overflow are skipped and counted, and the scale is resumed."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TinyLM, ToyLoader, lines, trainer

from ttt.errors import CheckpointError, ConfigError
from ttt.train.checkpoint import latest_complete, read_state
from ttt.train.engines import check_trainable
from ttt.train.engines.deepspeed_config import deepspeed_config
from ttt.train.step import NonFiniteError

pytestmark = pytest.mark.usefixtures("one_thread")
FLOAT16 = {"autocast": "float16", "log_every_steps": 1}


class Quiet(TinyLM):
    """Gradients are small enough for the scale that training begins with."""

    def forward(self, x):
        return super().forward(x) / 8


class Overflowing(ToyLoader):
    """Gradients of the updates ``at`` are infinite; ``stop``: a SIGTERM in this one."""

    def __init__(self, model, at, stop=-1) -> None:
        super().__init__()
        self.at, self.stop, self.now = set(at), stop, -1
        model.norm.weight.register_hook(lambda grad: grad * float("inf") if self.now in self.at else grad)

    def micro_batch(self, update, index):
        self.now = update
        if update == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().micro_batch(update, index)


def run(folder, at=(), stop=-1, **train):
    model = Quiet()
    return trainer(folder, Overflowing(model, at, stop), model, **{**FLOAT16, **train}).run()


def test_losses_are_those_of_float32_but_for_rounding(tmp_path):
    run(tmp_path / "half")
    trainer(tmp_path / "full", model=Quiet(), log_every_steps=1).run()
    half, full = (lines(tmp_path / name) for name in ("half", "full"))
    assert [line["train/loss"] for line in half] == pytest.approx([line["train/loss"] for line in full], rel=5e-3)
    assert [line["train/grad_norm"] for line in half] == pytest.approx([line["train/grad_norm"] for line in full], rel=5e-2)
    assert half != full
    assert half[-1]["train/skipped"] == 0
    assert "train/skipped" not in full[-1]


def test_an_update_that_overflows_is_skipped_and_the_rest_resumes_exactly(tmp_path):
    at = (0, 1, 5)
    run(tmp_path / "whole", at)
    log = lines(tmp_path / "whole")
    first = log[0]["train/loss_scale"]
    assert [first / line["train/loss_scale"] for line in log[:7]] == [1, 2, 2, 2, 2, 4, 4]
    assert [line["train/skipped"] for line in log] == [1, 2, 2, 2, 2, *[3] * 7]
    assert [line["step"] for line in log if "train/grad_norm" not in line] == [1, 2, 6]
    for stop in (1, 6):  # before any update was made, and right after one was skipped
        cut = tmp_path / f"cut-{stop}"
        assert run(cut, at, stop).step == stop + 1
        run(cut, at)
        assert lines(cut) == log
        for part in ("model/model.safetensors", "engine/optimizer.safetensors"):
            one, other = (load_file(latest_complete(f / "checkpoints") / part) for f in (cut, tmp_path / "whole"))
            assert all(torch.equal(one[name], other[name]) for name in one)
    state = latest_complete(tmp_path / "whole/checkpoints")
    assert read_state(state).skipped == 3
    assert json.loads((state / "engine/scaler.json").read_text()) == {"scale": first / 4, "updates": 6}


def test_a_gradient_that_no_scale_mends_ends_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="step 17: the gradient's norm is"):
        run(tmp_path, range(40), steps=40)  # 2^16 is halved seventeen times before it is below 1


def test_a_lost_scale_is_named(tmp_path):
    run(tmp_path, steps=4)
    (latest_complete(tmp_path / "checkpoints") / "engine/scaler.json").unlink()
    with pytest.raises(CheckpointError, match="scaler.json"):
        run(tmp_path, steps=8)


def test_what_float16_cannot_train_is_refused():
    with pytest.raises(ConfigError, match="train.autocast: float16 needs weights in float32, model.dtype is bfloat16"):
        check_trainable("auto", "cpu", "bfloat16", "float16")


def test_deepspeed_gets_its_own_section(tmp_path):
    from ttt.config.schema import TrainSection

    own = tmp_path / "ds.json"
    own.write_text(json.dumps({"fp16": {"enabled": "auto", "initial_scale_power": 8, "hysteresis": 1}}))
    made = deepspeed_config(TrainSection(steps=1, engine="deepspeed", autocast="float16", deepspeed=str(own)), 1, None)
    assert made["fp16"] == {"enabled": True, "initial_scale_power": 8, "hysteresis": 1}
    assert made["bf16"] == {"enabled": False}
    made = deepspeed_config(TrainSection(steps=1, engine="deepspeed", deepspeed=str(own)), 1, None)
    assert "fp16" not in made
