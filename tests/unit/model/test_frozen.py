"""Frozen rows and bodies: what moves and what does not, plain checkpoints, exact resumes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from local_backbones import extended, make_backbone, section

from tests.conftest import random_streams
from ttt.config.schema import LoraSection, ModelSection, RunConfig, RunSection, TrainSection
from ttt.data.batches.loader import Loader
from ttt.errors import ConfigError
from ttt.model.causal_lm import load_lm, start_lm
from ttt.model.frozen import first_added
from ttt.model.lm import SpeechTextLM
from ttt.registry.families import OBJECTIVE
from ttt.train.checkpoint import latest_complete
from ttt.train.trainer import Trainer

KINDS = ("qwen3", "qwen2-untied")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: make_backbone(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def trained(model: SpeechTextLM, folder: Path, steps: int = 3, **more) -> SpeechTextLM:
    streams = random_streams(1, 40)
    shift = model.tokenizer.vocab.size - 1 - max(int(s.ids.max()) for s in streams)
    streams = [dataclasses.replace(s, ids=(s.ids + shift).clip(min=0)) for s in streams]  # audio ids onto audio ids
    loader = Loader(
        streams, model.tokenizer.vocab, row_tokens=64, batch_tokens=128, seed=1, max_drop_share=1.0, accumulate=2
    )
    train = TrainSection(
        steps=steps, accumulate=2, lr=3e-2, weight_decay=0.5, tensorboard=False, save_every_steps=2, **more
    )
    config = RunConfig(run=RunSection(dir=str(folder), device="cpu"), train=train)
    Trainer(config, model, OBJECTIVE.build("ar", "objective"), loader).run()
    return model


def whole(model: SpeechTextLM, folder: Path) -> dict[str, torch.Tensor]:
    """The weights as a file holds them: by the names of a plain model."""
    model.save(folder)
    return dict(load_lm(folder).hf.state_dict())


@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
@pytest.mark.parametrize("freeze", ("text_rows", "body", "text_model"))
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stays_bit_equal_under_weight_decay_and_all_else_moves(
    kind, freeze, optimizer, folders, tmp_path
):
    made = start_lm(section(folders[kind], freeze=freeze), extended(folders[kind]), 1)
    before = whole(made, tmp_path / "before")
    after = whole(trained(made, tmp_path / "run", optimizer=optimizer), tmp_path / "after")
    first = first_added(made.tokenizer)
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, value in after.items():
        if name in tables:
            assert torch.equal(value[:first], before[name][:first]) == (freeze != "body"), name
            codes = slice(made.tokenizer.vocab.code_start, made.tokenizer.vocab.code_stop)
            assert bool((value[codes] != before[name][codes]).any(1).all()), name
        else:
            assert torch.equal(value, before[name]) == (freeze != "text_rows"), name


def test_before_training_nothing_has_changed_and_gradients_of_the_rest_are_those_of_full_training(folders):
    from tests.conftest import layout_of
    from ttt.masks.library import Causal
    from ttt.masks.materialize import materialize
    from ttt.types import ModelInputs

    def gradients(freeze: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = start_lm(section(folders["qwen3"], freeze=freeze), extended(folders["qwen3"]), 1)
        v = model.tokenizer.vocab
        ids = torch.tensor([[v.im_start_id, 70, 71, v.soa_id, *range(v.code_start, v.code_start + 5), v.im_end_id]])
        mask = materialize(Causal(), layout_of(ids[0].tolist(), v.audio_start), model.attention, model.dtype)
        n = ids.shape[1]
        nll = model(ModelInputs(ids, torch.arange(n)[None], mask, torch.arange(n - 1), ids[0, 1:]))
        nll.sum().backward()
        return nll, {k: p.grad for k, p in model.hf.named_parameters() if p.grad is not None}

    plain, split = gradients("none"), gradients("text_rows")
    assert torch.allclose(plain[0], split[0], atol=1e-6)
    table = plain[1].pop("model.embed_tokens.weight")
    rows = split[1].pop("model.embed_tokens.new.weight")
    assert torch.allclose(table[-len(rows) :], rows, atol=1e-5)
    assert plain[1].keys() == split[1].keys()
    for name, grad in plain[1].items():
        assert torch.allclose(grad, split[1][name], atol=1e-4), name


def test_an_interrupted_run_goes_on_exactly_and_may_go_on_from_its_weights(folders, tmp_path):
    def fresh() -> SpeechTextLM:
        return start_lm(section(folders["qwen3"], freeze="text_rows"), extended(folders["qwen3"]), 1)

    straight = trained(fresh(), tmp_path / "whole", steps=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-00000004")
    resumed = trained(fresh(), tmp_path / "resumed", steps=4)
    for (name, one), (_, other) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    folder = latest_complete(tmp_path / "whole/checkpoints")
    assert folder is not None
    more = start_lm(ModelSection(freeze="text_model"), straight.tokenizer, 1, start=folder / "model")
    assert [n for n, p in more.hf.named_parameters() if p.requires_grad] == ["model.embed_tokens.new.weight"]


def test_refusals_name_the_key(folders):
    with pytest.raises(ValueError, match="freeze: no 'all'. Choices: none, text_rows, body, text_model"):
        ModelSection(freeze="all")
    pytest.importorskip("peft")
    lora = LoraSection(rank=2)
    with pytest.raises(ConfigError, match=r"^model\.freeze: 'body' contradicts model\.lora"):
        start_lm(section(folders["qwen3"], lora, freeze="body"), extended(folders["qwen3"]), 1)
    model = start_lm(section(folders["qwen3"], lora, freeze="text_rows"), extended(folders["qwen3"]), 1)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".old." in n)
