"""The running average of the weights: its arithmetic, its folder in a checkpoint, exact resumes, and who decodes with it."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import ToyLoader, lines, trainer

from ttt.api import model_folder
from ttt.config.schema import TrainSection
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.train.average import WeightAverage
from ttt.train.checkpoint import latest_complete
from ttt.train.engines import check_engine

pytestmark = pytest.mark.usefixtures("one_thread")
PARTS = ("model/model.safetensors", "model_ema/model.safetensors", "engine/optimizer.safetensors")


def stored(folder, part):
    return load_file(latest_complete(folder / "checkpoints") / part)


def test_the_average_is_the_formula():
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    average = WeightAverage(layer, 0.5)
    expected = 1.0
    for update, value in enumerate((2.0, -4.0, 8.0, 0.5), start=1):
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update(update)
        decay = min(0.5, (1 + update) / (10 + update))  # early ones count little
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        assert layer.weight.dtype == torch.float32
        assert layer.weight.item() == pytest.approx(expected, rel=1e-6)
    assert (layer.weight.dtype, layer.weight.item()) == (torch.bfloat16, 0.5)


def test_weights_do_not_change_by_being_averaged_and_a_killed_run_goes_on_exactly(tmp_path):
    class Loader(ToyLoader):
        def micro_batch(self, update, index):
            if update == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().micro_batch(update, index)

    trainer(tmp_path / "plain").run()
    trainer(tmp_path / "whole", ema=0.9).run()
    assert trainer(tmp_path / "cut", Loader(), ema=0.9).run().step == 7
    trainer(tmp_path / "cut", ema=0.9).run()
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for part in PARTS:
        one, other = stored(tmp_path / "cut", part), stored(tmp_path / "whole", part)
        assert all(torch.equal(one[name], other[name]) for name in one), part
    plain, raw, averaged = (stored(tmp_path / f, p) for f, p in (("plain", PARTS[0]), ("whole", PARTS[0]), ("whole", PARTS[1])))
    assert all(torch.equal(plain[name], raw[name]) for name in plain)
    assert not torch.equal(raw["embed.weight"], averaged["embed.weight"])
    log = lines(tmp_path / "whole")[-1]
    assert log["dev/loss"] != log["dev_ema/loss"]
    assert {k: v for k, v in log.items() if not k.startswith("dev_ema/")} == lines(tmp_path / "plain")[-1]


def test_damage_to_the_average_is_seen(tmp_path):
    trainer(tmp_path, ema=0.9, steps=4).run()
    path = latest_complete(tmp_path / "checkpoints") / PARTS[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="model_ema/model.safetensors"):
        trainer(tmp_path, ema=0.9, steps=8).run()


def test_callbacks_see_the_average_where_it_decodes(tmp_path):
    import dataclasses

    seen = {}

    def look(run, step):
        seen[run.config.eval.weights] = run.model.embed.weight.detach().clone()

    for weights in ("raw", "ema"):
        made = trainer(tmp_path / weights, ema=0.9, steps=4, eval_every_steps=0, callbacks=[look])
        made.config = dataclasses.replace(made.config, eval=dataclasses.replace(made.config.eval, weights=weights))
        made.run()
    assert torch.equal(seen["raw"], stored(tmp_path / "raw", PARTS[0])["embed.weight"])
    assert torch.equal(seen["ema"], stored(tmp_path / "ema", PARTS[1])["embed.weight"])


def test_which_folder_decodes(tmp_path):
    checkpoint = tmp_path / "checkpoints/step-00000004"
    (checkpoint / "model").mkdir(parents=True)
    (checkpoint / "model/config.json").write_text("{}")
    (checkpoint / "COMPLETE").write_text("{}")
    assert model_folder(tmp_path) == model_folder(checkpoint) == checkpoint / "model"
    with pytest.raises(DataError, match="no averaged weights .* train.ema"):
        model_folder(tmp_path, "ema")
    (checkpoint / "model_ema").mkdir()
    assert model_folder(tmp_path, "ema") == model_folder(checkpoint, "ema") == checkpoint / "model_ema"


def test_what_cannot_be_averaged_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="train.ema: 0.9, but ZeRO"):
        check_engine(TrainSection(steps=1, engine="deepspeed", ema=0.9))
    with pytest.raises(ConfigError, match="ema: must be"):
        TrainSection(steps=1, ema=1.0)
