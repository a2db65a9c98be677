"""Which checkpoints stay: the latest, the best, those of epochs; and the links that name them."""

from __future__ import annotations

import os

import pytest
from tiny_training import ToyLoader, lines, trainer

from ttt.errors import ConfigError
from ttt.train.checkpoint import complete_checkpoints, read_state, verify
from ttt.train.trainer import clear

pytestmark = pytest.mark.usefixtures("one_thread")


def found(folder):
    root = folder / "checkpoints"
    links = {p.name: os.readlink(p)[-2:] for p in root.iterdir() if p.is_symlink()}
    assert all((root / name).exists() for name in links), links  # none leads nowhere
    return [p.name[-2:] for p in complete_checkpoints(root)], links


def scores(values):
    """A callback that gives one value after the other, by step."""
    return lambda trainer, step: {"gen/qa/accuracy": values[step]} if step in values else None


def test_the_best_stays_beside_the_latest(tmp_path):
    values = {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.9, 10: 0.2, 12: 0.3}
    best = {"keep_best": "gen/qa/accuracy", "keep_best_mode": "max", "eval_every_steps": 2, "keep_checkpoints": 1}
    trainer(tmp_path / "max", callbacks=[scores(values)], **best).run()
    assert found(tmp_path / "max") == (["04", "12"], {"best": "04"})  # step 8 only equals it
    verify(tmp_path / "max/checkpoints/best")
    assert read_state(tmp_path / "max/checkpoints/best").best["value"] == 0.9
    best["keep_best_mode"] = "min"
    trainer(tmp_path / "min", callbacks=[scores(values)], save_every_steps=0, **best).run()
    assert found(tmp_path / "min") == (["02", "12"], {"best": "02"})


def test_the_best_is_remembered_by_a_run_that_goes_on(tmp_path):
    best = {"keep_best": "dev/loss", "eval_every_steps": 1, "save_every_steps": 0, "keep_checkpoints": 1}
    trainer(tmp_path / "whole", steps=9, **best).run()
    trainer(tmp_path / "cut", steps=9, max_tokens=50, **best).run()
    link = tmp_path / "cut/checkpoints/best"
    link.unlink()  # as a kill between a checkpoint and its link leaves it
    trainer(tmp_path / "cut", steps=9, **best).run()
    assert found(tmp_path / "cut") == found(tmp_path / "whole")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    losses = {line["step"]: line["dev/loss"] for line in lines(tmp_path / "whole")}
    assert int(found(tmp_path / "whole")[1]["best"]) == min(losses, key=losses.get)


def test_an_unknown_metric_is_named_and_nothing_is_lost(tmp_path):
    with pytest.raises(ConfigError, match=r"no 'dev/los' in a validation. Did you mean 'dev/loss'.* goes on from step-00000006"):
        trainer(tmp_path, keep_best="dev/los").run()
    assert trainer(tmp_path, keep_best="dev/loss").run().step == 12
    assert found(tmp_path)[1] == {"best": "12"}
    with pytest.raises(ConfigError, match="keep_best: there is one validation"):
        trainer(tmp_path, keep_best="dev/loss", eval_every_steps=0)


def test_checkpoints_by_epochs_have_names(tmp_path):
    # An epoch of the toy data has four updates.
    trainer(tmp_path, save_every_steps=0, save_every_epochs=0.5, keep_checkpoints=3).run()
    assert found(tmp_path) == (["08", "10", "12"], {"epoch-2": "08", "epoch-2.5": "10", "epoch-3": "12"})
    trainer(tmp_path, steps=16, save_every_steps=3, save_every_epochs=1, keep_checkpoints=2).run()
    assert found(tmp_path) == (["15", "16"], {"epoch-4": "16"})


def test_names_that_are_no_links_are_left_alone(tmp_path, caplog):
    (tmp_path / "checkpoints/best").mkdir(parents=True)
    trainer(tmp_path / "other", steps=4).run()
    os.rename(tmp_path / "other/data.json", tmp_path / "data.json")  # made by ttt
    trainer(tmp_path, keep_best="dev/loss", save_every_epochs=1, loader=ToyLoader()).run()
    assert "checkpoints/best: not a link" in caplog.text
    clear(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["best"]
