"""Folders that are whole or do not exist."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_training import VOCAB, TinyLM, Toy, batch

from ttt.config.schema import TrainSection
from ttt.errors import CheckpointError
from ttt.train.checkpoint import (
    TrainState,
    check_model_folder,
    complete_checkpoints,
    latest_complete,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
    verify,
)
from ttt.train.engines import LocalEngine, load_weights
from ttt.train.step import train_step


def trained(seed: int = 0, updates: int = 2) -> LocalEngine:
    engine = LocalEngine(TinyLM(seed), TrainSection(steps=10), "cpu")
    for update in range(updates):
        train_step(engine, Toy(), [batch(update)], update=update, seed=1, lr=0.1)
    return engine


def save(root, step, keep=2, engine=None):
    return save_checkpoint(root, TrainState(step=step, tokens=7), engine or trained(), {"config.yaml": "a: 1\n"}, keep)


def test_round_trip_is_exact(tmp_path):
    engine = trained()
    folder = save(tmp_path, 2, engine=engine)
    other = trained(seed=5, updates=0)
    state = load_checkpoint(folder, other, VOCAB)
    assert (state.step, state.tokens) == (2, 7)
    for update in (2, 3):
        for each in (engine, other):
            train_step(each, Toy(), [batch(update)], update=update, seed=1, lr=0.1)
    for (name, one), (_, two) in zip(engine.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    assert other.model.head.weight is other.model.embed.weight


def test_only_complete_folders_exist_and_old_ones_go(tmp_path):
    assert latest_complete(tmp_path) is None
    for step in (5, 10, 100):
        save(tmp_path, step, keep=2)
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    assert not (tmp_path / "step-00000005").exists()
    (tmp_path / "step-00000100/COMPLETE").unlink()
    assert latest_complete(tmp_path).name == "step-00000010"
    with pytest.raises(CheckpointError, match="no COMPLETE file: it was not written to the end; delete the folder"):
        verify(tmp_path / "step-00000100")
    save(tmp_path, 100)  # takes the place of the folder that does not exist
    verify(tmp_path / "step-00000100")


def test_leftovers_of_a_kill_go_and_nothing_else(tmp_path):
    for step in (5, 10, 20):
        save(tmp_path, step, keep=9)
    (tmp_path / "step-00000005/COMPLETE").unlink()  # killed while it was being removed
    (tmp_path / ".step-00000030.partial").mkdir()
    (tmp_path / "step-00000030").mkdir()  # newer than anything complete: not ours to judge
    (tmp_path / "notes").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "step-00000010", "step-00000020", "step-00000030"]
    remove_leftovers(tmp_path / "absent")


def test_damage_is_named_with_a_way_out(tmp_path):
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    verify(folder)
    path = folder / "engine/optimizer.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(
        CheckpointError,
        match=rf"file engine/optimizer.safetensors is {len(whole) - 3} bytes, COMPLETE says {len(whole)}; "
        r"delete the folder, the previous complete one is step-00000001",
    ):
        verify(folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="other contents than when it was written"):
        verify(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="optimizer.safetensors is missing"):
        verify(folder)
    (folder / "COMPLETE").write_text('{"files"')
    with pytest.raises(CheckpointError, match="COMPLETE:1: not JSON"):
        verify(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "x.pkl"])
def test_pickles_are_refused(tmp_path, name):
    folder = save(tmp_path, 1)
    (folder / "model" / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name} is a pickle, which can run code"):
        load_checkpoint(folder, trained(), VOCAB)


def test_nothing_written_is_a_pickle(tmp_path):
    folder = save(tmp_path, 1)
    for path in folder.rglob("*"):
        assert path.is_dir() or path.name == "COMPLETE" or path.suffix in (".safetensors", ".json", ".yaml")


def test_another_vocabulary_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"trained with vocabulary vocab-a, this run has vocab-b"):
        load_checkpoint(folder, trained(), "vocab-b")
    (folder / "model/vocab.json").unlink()
    check_model_folder(folder / "model")
    with pytest.raises(CheckpointError, match="vocab.json: no such file; is this a model folder"):
        check_model_folder(folder / "model", "vocab-b")


def test_other_weights_and_parameters_are_refused(tmp_path):
    folder = save(tmp_path, 1)
    model = TinyLM()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"weights of another model: 2 missing \(first 'extra.weight'\)"):
        load_weights(model, folder / "model")
    engine = LocalEngine(model, TrainSection(steps=10), "cpu")
    with pytest.raises(CheckpointError, match=r"of other parameters \(2 differ"):
        engine.load(folder / "engine")
    shutil.rmtree(folder / "model")
    (folder / "model").mkdir()
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_weights(model, folder / "model")


def test_a_failed_save_leaves_nothing(tmp_path):
    engine = trained()
    engine.model.save = lambda folder: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 1, engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_marker_lists_every_file(tmp_path):
    folder = save(tmp_path, 1)
    listed = json.loads((folder / "COMPLETE").read_text())["files"]
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"COMPLETE"}
    assert set(listed) == found
