"""Runs that cannot be: refused before long work, in one line, and nothing is changed."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from ttt.config.load import build_config
from ttt.errors import ConfigError
from ttt.train.engines import pick_device

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

OVERRIDES = [
    ("{hidden_size: 7, num_attention_heads: 2}", "model.overrides.hidden_size: 7 must be a multiple of 2 x num_attention_heads"),
    ("{hidden_size: 0}", "model.overrides.hidden_size: must be a whole number >= 1, got 0"),
    ("{num_hidden_layers: -1}", "model.overrides.num_hidden_layers: must be a whole number >= 1, got -1"),
    ("{num_hidden_layers: 1.5}", "model.overrides.num_hidden_layers: must be a whole number >= 1, got 1.5"),
    ("{num_hidden_layers: two}", "model.overrides.num_hidden_layers: must be a whole number >= 1, got 'two'"),
    ("{num_attention_heads: 4, num_key_value_heads: 3}", "4 must be a multiple of num_key_value_heads = 3"),
    ("{hiden_size: 8}", "model.overrides.hiden_size: qwen2 has no such field. Did you mean 'hidden_size'?"),
    ("{model_type: qwenn}", "model.overrides.model_type: no 'qwenn' in transformers"),
    ("{model_type: 5}", "model.overrides.model_type: no 5 in transformers"),
    ("{rms_norm_eps: nan}", "model.overrides.rms_norm_eps: must be a finite number"),
    ("{tie_word_embeddings: 3}", "model.overrides.tie_word_embeddings: must be like"),
    ("{hidden_act: nothing}", "model.overrides: "),
    ("{initializer_range: -1}", "model.overrides"),
]  # fmt: skip


@pytest.mark.parametrize("overrides, words", OVERRIDES)
def test_networks_that_cannot_be(overrides, words, world, run, tree):
    before = tree()
    line = run("train", "--config", world.recipe, "run.dir=other", f"model.overrides={overrides}").complaint()
    assert words in line
    assert tree() == before, "nothing was begun"


def test_estimate_refuses_them_too(world, run):
    line = run("estimate", world.recipe, "model.overrides={hidden_size: 7, num_attention_heads: 2}").complaint()
    assert "model.overrides.hidden_size: 7" in line


TRAIN = [
    (["model.attention=flex_attention"], "model.attention: flex_attention trains on a GPU only"),
    (["run.device=cuda:7"], "run.device: cuda:7 asked for, but torch sees no GPU; use run.device=cpu"),
    (["run.device=cuda"], "run.device: cuda asked for"),
    (["run.dir="], "run.dir: must not be empty"),
    (["train.steps=0"], "train.steps: missing mandatory value; give train.steps=... or train.epochs=..."),
]


@NO_GPU
@pytest.mark.parametrize("settings, words", TRAIN)
def test_trainings_that_cannot_be(settings, words, world, run, tree):
    before = tree()
    assert words in run("train", "--config", world.recipe, "run.dir=other", *settings).complaint()
    assert not {path for path in tree() if path not in before and not path.startswith("other/.lock") and path != "other"}


@NO_GPU
def test_a_gpu_by_number_needs_that_gpu(world, run):
    assert "run.device: cuda:1 asked for, but torch sees no GPU" in run(
        "generate", "--config", world.recipe, "run.device=cuda:1", "--overwrite"
    ).complaint()


def test_gpus_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert str(pick_device("cuda:1")) == "cuda:1" and str(pick_device("auto")) == str(pick_device("cuda")) == "cuda:0"
    assert str(pick_device("cpu")) == "cpu"
    with pytest.raises(ConfigError, match="run.device: cuda:2 is GPU 2 here, but torch sees 2, counted from 0"):
        pick_device("cuda:2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(pick_device("cuda")) == "cuda:1"
    with pytest.raises(ConfigError, match="cuda:0 is one GPU, and this run has 2 ranks"):
        pick_device("cuda:0")
    assert build_config({"run": {"device": "cuda:0"}}).run.device == "cuda:0"


REFUSED_RESUMES = [
    ("train.accumulate=3", "an update there has 1 micro-batches, this run has 1 ranks x 3"),
    ("train.lr=0.5", "run.dir: run holds another run; different: train.lr"),
    ("train.resume=false", "train.resume: false, but run holds a run"),
]


@pytest.mark.parametrize("setting, words", REFUSED_RESUMES)
def test_a_refused_resume_changes_nothing(setting, words, world, run, tree):
    before = tree()
    assert words in run("train", "--config", world.recipe, "train.steps=6", setting).complaint()
    assert tree() == before


def test_a_resume_that_is_not_refused_writes_its_settings(world, run, caplog):
    caplog.set_level(logging.INFO)
    outcome = run("train", "--config", world.recipe, "train.steps=5")
    assert outcome.code == 0 and "train.steps: 4 -> 5" in outcome.log
    assert "steps: 5" in Path(world.run, "config.yaml").read_text()


def test_epochs_over_a_recipe_of_steps(world, run, caplog):
    caplog.set_level(logging.INFO)
    outcome = run("train", "--config", world.recipe, "run.dir=other", "train.epochs=0.5", "train.warmup_steps=0")
    assert outcome.code == 0, outcome.err
    assert "config: train.epochs=0.5 (the command line) replaces train.steps=4" in outcome.log
    assert "train: 0.5 epochs are" in outcome.log


@pytest.mark.parametrize("verb", ["generate", "score"])
def test_example_files_of_one_name_are_refused(verb, world, run, tree):
    Path("other").mkdir()
    shutil.copy(world.examples, "other/TEST.jsonl")
    before = tree()
    for other in ("other/TEST.jsonl", world.examples):
        line = run(verb, "--config", world.recipe, f"eval.examples=[{world.examples}, {other}]", "--overwrite").complaint()
        assert f"eval.examples: the answers of {world.examples} and {other} would be one file" in line
    assert tree() == before


@pytest.mark.parametrize("verb", ["generate", "score"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_test_file_is_not_done(verb, content, world, run, tree):
    Path("nothing.jsonl").write_text(content)
    if verb == "score":
        Path("run/eval/nothing.generations.jsonl").write_text("")
    before = tree()
    settings = ("--config", world.recipe, "eval.examples=[nothing.jsonl]", "--overwrite")
    assert "nothing.jsonl: no examples" in run(verb, *settings).complaint()
    assert tree() == before


@pytest.mark.parametrize("limit", ["-1", "-5", "nan", "1.5"])
def test_limits_that_cannot_be(limit, world, run, tree):
    before = tree()
    assert "eval.limit: must be" in run("generate", "--config", world.recipe, f"eval.limit={limit}", "--overwrite").complaint()
    assert tree() == before


def test_answers_of_two_files_are_both_there(world, run):
    shutil.copy(world.examples, "other.jsonl")
    outcome = run("generate", "--config", world.recipe, f"eval.examples=[{world.examples}, other.jsonl]", "--overwrite")
    assert outcome.code == 0
    answers = [Path(f"run/eval/{name}.generations.jsonl").read_text() for name in ("test", "other")]
    assert answers[0] and answers[1]
