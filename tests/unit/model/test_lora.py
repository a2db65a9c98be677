"""Adapters: what moves and what does not, small checkpoints, exact resumes, merging."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from local_backbones import extended, make_backbone, section
from safetensors.torch import load_file

from tests.conftest import layout_of, random_streams
from ttt.config.schema import LoraSection, RunConfig, RunSection, TrainSection
from ttt.data.batches.loader import Loader
from ttt.errors import CheckpointError, ConfigError, MissingExtraError
from ttt.masks.library import Hybrid
from ttt.masks.materialize import materialize
from ttt.model.causal_lm import build_lm, load_lm
from ttt.model.lm import SpeechTextLM
from ttt.model.lora import AdaptedLM, load_merged
from ttt.model.merge import merge
from ttt.registry.families import OBJECTIVE
from ttt.train.checkpoint import latest_complete
from ttt.train.trainer import Trainer
from ttt.types import ModelInputs

pytest.importorskip("peft")
LORA = LoraSection(rank=4, alpha=8.0, dropout=0.1)
KINDS = ("qwen2", "qwen2-untied", "llama", "qwen3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: make_backbone(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def adapted(folder: Path, seed: int = 1, lora: LoraSection = LORA, **fields) -> AdaptedLM:
    model = build_lm(section(folder, lora, **fields), extended(folder), seed)
    assert isinstance(model, AdaptedLM)
    return model


def trained(model: SpeechTextLM, folder: Path, steps: int = 3) -> SpeechTextLM:
    streams = random_streams(1, 40)
    shift = model.tokenizer.vocab.size - 1 - max(int(s.ids.max()) for s in streams)
    streams = [dataclasses.replace(s, ids=(s.ids + shift).clip(min=0)) for s in streams]  # audio ids onto audio ids
    loader = Loader(streams, model.tokenizer.vocab, row_tokens=64, batch_tokens=128, seed=1, max_drop_share=1.0)
    train = TrainSection(steps=steps, lr=3e-2, tensorboard=False, save_every_steps=2)
    config = RunConfig(run=RunSection(dir=str(folder), device="cpu"), train=train)
    Trainer(config, model, OBJECTIVE.build("ttt", "objective"), loader).run()
    return model


def logits(model: SpeechTextLM) -> torch.Tensor:
    vocab = model.tokenizer.vocab
    ids = torch.tensor(
        [[vocab.im_start_id, 70, 71, vocab.soa_id, *range(vocab.code_start, vocab.code_start + 5), vocab.mask_id]]
    )
    layout = layout_of(ids[0].tolist(), vocab.audio_start)
    mask = materialize(Hybrid(), layout, model.attention, model.dtype)
    model.eval()
    with torch.no_grad():
        return model(ModelInputs(ids, torch.arange(ids.shape[1])[None], mask, torch.arange(ids.shape[1])))


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_adapters_change_nothing(kind, folders):
    plain = build_lm(section(folders[kind]), extended(folders[kind]), 1)
    assert torch.allclose(logits(adapted(folders[kind])), logits(plain), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_adapters_and_new_rows_and_nothing_else(kind, folders, tmp_path):
    model = adapted(folders[kind])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    moved = {n for n, p in trained(model, tmp_path).named_parameters() if not torch.equal(p, before[n])}
    tied = model.hf.get_output_embeddings().new is model.hf.get_input_embeddings().new
    rows = {n for n in before if ".new." in n}
    assert len(rows) == (1 if tied else 2) and tied == (kind in ("qwen2", "qwen3"))
    assert moved == rows | {n for n in before if ".lora_" in n}, "base weights are bit-equal"
    assert len([n for n in before if ".lora_" in n]) == 2 * 7 * 2, "two matrices on seven layers of two blocks"


@pytest.mark.parametrize("kind", KINDS)
def test_merged_logits_equal_the_adapted_ones_and_plain_transformers_reads_them(kind, folders, tmp_path):
    from transformers import AutoModelForCausalLM

    model = trained(adapted(folders[kind]), tmp_path / "run")
    expected = logits(model)
    checkpoint = latest_complete(tmp_path / "run/checkpoints") / "model"
    assert not torch.allclose(
        expected, logits(build_lm(section(folders[kind]), extended(folders[kind]), 1)), atol=0.1
    )
    merged = load_lm(checkpoint)
    assert torch.allclose(logits(merged), expected, atol=1e-5, rtol=1e-5)
    merged.save(tmp_path / "whole")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert not any("lora" in n or ".new." in n for n in plain.state_dict())
    assert torch.equal(logits(SpeechTextLM(plain, merged.tokenizer)), logits(merged))
    assert (plain.get_input_embeddings().weight is plain.get_output_embeddings().weight) == (kind in ("qwen2", "qwen3"))


def test_checkpoints_hold_adapters_and_new_rows_only(folders, tmp_path):
    model = trained(adapted(folders["qwen2"]), tmp_path, steps=2)
    folder = latest_complete(tmp_path / "checkpoints") / "model"
    stored = load_file(folder / "adapter.safetensors")
    assert set(stored) == set(model.state()) and all(torch.equal(stored[n], v) for n, v in model.state().items())
    assert sum(v.numel() for v in stored.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    record = json.loads((folder / "adapter.json").read_text())
    assert record["rank"] == 4 and record["base"] == str(folders["qwen2"].resolve())
    (folder.parent / "config.yaml").write_text("objective: {name: nar, mask: {name: full}}\n")
    merge(folder, tmp_path / "whole")
    config = json.loads((tmp_path / "whole/config.json").read_text())
    assert config["is_causal"] is False and config["ttt_reading"]["mask"] == "full"
    assert "is_causal" in (tmp_path / "whole/README.md").read_text()


def test_a_resumed_run_equals_one_that_was_not_interrupted(folders, tmp_path):
    trained(adapted(folders["qwen2-untied"]), tmp_path / "whole", steps=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    # Back to step 2; the weights below start elsewhere and must be read.
    shutil.rmtree(latest_complete(tmp_path / "halves/checkpoints"))
    trained(adapted(folders["qwen2-untied"], seed=9), tmp_path / "halves", steps=4)
    for part in ("model/adapter.safetensors", "engine/optimizer.safetensors"):
        one, other = (load_file(latest_complete(tmp_path / n / "checkpoints") / part) for n in ("whole", "halves"))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), part


def test_a_frozen_base_in_bfloat16_has_adapters_in_float32(folders, tmp_path):
    model = trained(adapted(folders["qwen2"], dtype="bfloat16", gradient_checkpointing=True), tmp_path, steps=1)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16} == {model.dtype}


def test_muon_takes_adapters_as_matrices_and_rows_as_tables(folders):
    from ttt.train.optimizers import build_optimizer

    model = adapted(folders["qwen2-untied"])
    groups = build_optimizer(model, TrainSection(steps=1, optimizer="muon")).param_groups
    tables = {id(p) for n, p in model.named_parameters() if ".new." in n}
    assert tables == {id(p) for g in groups if not g["matrix"] for p in g["params"]}


def test_other_base_weights_and_other_shapes_are_refused(folders, tmp_path):
    model = adapted(folders["qwen2"])
    model.save(folder := _folder(tmp_path / "saved"))
    other = make_backbone(tmp_path / "other", "qwen2", seed=5)
    with pytest.raises(CheckpointError, match=r"adapter\.json: the adapters belong to the weights .* holds others"):
        adapted(other).load_weights(folder)
    with pytest.raises(CheckpointError, match="adapters of another shape: .* use the settings model.lora"):
        adapted(folders["qwen2"], lora=dataclasses.replace(LORA, rank=2)).load_weights(folder)
    record = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps({**record, "base": str(tmp_path / "moved")}))
    with pytest.raises(CheckpointError, match=r"moved, which is not there; .*ttt model merge .* --base DIR"):
        load_lm(folder)
    assert torch.allclose(logits(load_merged(folder, base=folders["qwen2"])), logits(model), atol=1e-5)
    (folder / "adapter.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter\.json:1: not JSON"):
        load_lm(folder)


def test_an_adapter_folder_is_no_backbone(folders, tmp_path):
    adapted(folders["qwen2"]).save(folder := _folder(tmp_path / "saved"))
    with pytest.raises(CheckpointError, match="adapters without their base; .*ttt model merge"):
        build_lm(section(folder), extended(folders["qwen2"]), 1)


@pytest.mark.parametrize(
    "fields, pattern",
    [
        ({"rank": -1}, r"^rank: must be >= 0"),
        ({"alpha": 0.0}, r"^alpha: must be > 0"),
        ({"dropout": 1.0}, "^dropout: must be >= 0 and < 1, got 1"),
        ({"targets": []}, r"^model\.lora\.targets: empty"),
        (
            {"targets": ["q_pro"]},
            r"^model\.lora\.targets: Qwen2ForCausalLM has no linear layer 'q_pro'\. Did you mean 'q_proj'",
        ),
        ({"quantize": "int2"}, "^quantize: no 'int2'.*Choices: none, nf4, int8"),
    ],
)
def test_refusals(fields, pattern, folders):
    with pytest.raises(ConfigError, match=pattern):
        adapted(folders["qwen2"], lora=dataclasses.replace(LORA, **fields))


def test_random_weights_are_no_base(tokenizer):
    with pytest.raises(ConfigError, match=r"^model\.lora: needs model\.path"):
        build_lm(dataclasses.replace(section("", LORA), preset="toy"), tokenizer, 1)


@pytest.mark.parametrize(
    ("package", "lora"), [("peft", LORA), ("bitsandbytes", dataclasses.replace(LORA, quantize="nf4"))]
)
def test_a_missing_package_is_named_with_the_extra(package, lora, folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"package {package} .*pip install 'ttt-speech\[lora\]'"):
        adapted(folders["qwen2"], lora=lora)


def test_qlora_trains_on_four_bit_weights(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; tools/env.sh installs it")
    base = make_backbone(tmp_path / "base", "qwen2", width=64)  # blocks of 64 weights share a scale
    model = adapted(base, lora=dataclasses.replace(LORA, quantize="nf4"))
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    packed = [n for n, p in frozen.items() if p.dtype == torch.uint8]
    assert len(packed) == 2 * 7, "every linear layer of both blocks; tables and norms stay whole"
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained(model, tmp_path / "run", steps=2)  # in the first step only one half of an adapter has a gradient
    assert all(torch.equal(p, before[n]) for n, p in frozen.items())
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters() if p.requires_grad)
    merged = load_lm(latest_complete(tmp_path / "run/checkpoints") / "model")
    error = (logits(merged) - logits(model)).abs().mean() / logits(model).std()
    assert float(error) < 0.3, "the merged model is the unquantised base: off by the rounding to four bits"


def test_the_frozen_weights_can_be_eight_bit(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; tools/env.sh installs it")
    base = make_backbone(tmp_path / "base", "qwen2")
    model = adapted(base, lora=dataclasses.replace(LORA, quantize="int8"))
    packed = [n for n, p in model.named_parameters() if p.dtype == torch.int8]
    assert len(packed) == 2 * 7, "every linear layer of both blocks; tables and norms stay whole"
    whole = adapted(base, lora=LORA)
    error = (logits(whole) - logits(model)).abs().mean() / logits(whole).std()
    assert 0 < float(error) < 0.1, "off by the rounding to eight bits"


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
