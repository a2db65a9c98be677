"""Backbones from local folders: the added rows, and every verb on every class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from local_backbones import KINDS, PADDING, extended, make_backbone, section, text_tokenizer

from tests.conftest import NUM_CODES, tiny_tokenizer
from ttt.cli.main import main
from ttt.errors import CheckpointError, ConfigError
from ttt.model.backbone import _refuse_sliding, build_backbone, load_hf
from ttt.model.causal_lm import build_lm, load_lm

OWN = text_tokenizer().get_vocab_size(with_added_tokens=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: make_backbone(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def tables(hf):
    return hf.get_input_embeddings().weight.detach(), hf.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_follow_the_tokenizer_not_the_padded_table(kind, folders):
    tokenizer = extended(folders[kind])
    vocab = tokenizer.vocab
    assert vocab.audio_start == OWN + 19 and vocab.size == OWN + 20 + NUM_CODES + 3, (
        "the official order, from the first free id"
    )
    old, hf = load_hf(folders[kind]), build_backbone(section(folders[kind]), vocab, 1)
    assert len(tables(old)[0]) == OWN + PADDING
    for before, after in zip(tables(old), tables(hf), strict=True):
        assert torch.equal(after[:OWN], before[:OWN]), "rows of the backbone's own tokens stay"
        assert len(after) == vocab.size and not torch.equal(after[OWN : OWN + PADDING], before[OWN:]), (
            "rows that padded the table were never trained: they start like the others"
        )
    tied = KINDS[kind]["tie_word_embeddings"]
    assert (hf.get_input_embeddings().weight is hf.get_output_embeddings().weight) == tied


def test_rows_in_excess_of_the_vocabulary_stay(tmp_path):
    """A table with more padding than there are added tokens is not cut: Qwen's with a small codec."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = make_backbone(tmp_path / "small", "qwen2")
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = OWN + 20 + NUM_CODES + 3 + 11
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    hf = build_backbone(section(folder), extended(folder).vocab, 1)
    assert len(tables(hf)[0]) == config.vocab_size


def test_rope_scaling_survives_extension_and_saving(folders, tmp_path):
    tokenizer = extended(folders["llama"])
    model = build_lm(section(folders["llama"]), tokenizer, 1)
    model.save(tmp_path)
    for config in (model.hf.config, load_lm(tmp_path).hf.config):
        assert dict(config.rope_parameters) == KINDS["llama"]["rope_parameters"]


def test_bfloat16_weights(folders):
    model = build_lm(section(folders["qwen2"], dtype="bfloat16"), extended(folders["qwen2"]), 1)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_twist_copies_text_rows_the_same_in_both_tables(folders):
    folder = folders["qwen2-untied"]
    hf = build_backbone(section(folder, init={"name": "twist", "jitter": 0.0}), extended(folder).vocab, 1)
    chosen = [torch.cdist(t[OWN:], t[:OWN]).min(1) for t in tables(hf)]
    assert all(float(c.values.max()) < 1e-3 for c in chosen), "each new row is a text row"
    assert torch.equal(chosen[0].indices, chosen[1].indices), "of the same token"
    assert len(chosen[0].indices.unique()) == len(chosen[0].indices), "drawn without replacement"
    jittered = build_backbone(section(folder, init="twist"), extended(folder).vocab, 1)
    assert 0 < float((tables(jittered)[0] - tables(hf)[0])[OWN:].abs().max()) < 0.01


def test_a_tokenizer_of_another_model_is_refused(folders):
    with pytest.raises(CheckpointError, match=r"data\.tokenizer: id \d+ is .* there and .* in .*qwen2.*ttt tokenizer"):
        build_lm(section(folders["qwen2"]), tiny_tokenizer(), 1)


def test_windows_are_refused(tmp_path):
    folder = make_backbone(tmp_path, "qwen2")
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0, "layer_types": None}
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **window}))
    with pytest.raises(ConfigError, match="sliding_attention would ignore their window"):
        build_backbone(section(folder), extended(folder).vocab, 1)


def test_one_window_for_all_layers_is_refused():
    from types import SimpleNamespace

    with pytest.raises(ConfigError, match="sliding_attention would ignore their window"):
        _refuse_sliding(SimpleNamespace(sliding_window=4096))
    _refuse_sliding(SimpleNamespace(sliding_window=None))


def test_sharded_folders_load_alike(tmp_path):
    whole, parts = (
        make_backbone(tmp_path / n, "qwen2-untied", max_shard_size=size) for n, size in (("a", "1GB"), ("b", "30KB"))
    )
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    for one, other in zip(tables(load_hf(whole)), tables(load_hf(parts)), strict=True):
        assert torch.equal(one, other)


def examples(folder: Path) -> tuple[Path, Path]:
    """Training and test records of recognition and synthesis: audio in prompts and in answers."""

    def record(i: int, task: str) -> dict:
        codes = [(i * 5 + j) % NUM_CODES for j in range(6)]
        user = [{"audio": codes, "style": "user"}] if task == "asr" else [{"text": "a cat sat"}]
        answer = [{"text": "the mat"}] + ([] if task == "asr" else [{"audio": codes, "style": "last"}])
        return {
            "uid": f"{task}-{i}", "task": task, "meta": {"text_ref": "the mat", "speech_ref": "the mat"},
            "turns": [{"role": "system", "spans": [{"text": "do"}]}, {"role": "user", "spans": user},
                      {"role": "assistant", "spans": answer}],
        }  # fmt: skip

    train, test = folder / "train.jsonl", folder / "test.jsonl"
    train.write_text("".join(json.dumps(record(i, t)) + "\n" for i in range(8) for t in ("asr", "tts")))
    test.write_text("".join(json.dumps(record(i, "asr")) + "\n" for i in range(2)))
    return train, test


SMALL = (
    "data.row_tokens=64", "data.batch_tokens=128", f"data.num_codes={NUM_CODES}", "train.steps=3", "train.lr=1e-2",
    "train.tensorboard=false", "tasks=[{name: asr, speak: false},{name: tts}]", "eval.max_tokens=12",
    "eval.sampler={name: blockwise, block_length: 4, gen_length: 8, diffusion_steps: 8}", "eval.bootstrap=20", "eval.samples=0",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_every_verb(kind, folders, tmp_path):
    train, test = examples(tmp_path)
    run, tokenizer = tmp_path / "run", tmp_path / "tokenizer"
    common = [
        f"model.path={folders[kind]}", f"data.tokenizer={tokenizer}", f"data.train={train}", f"run.dir={run}",
        "run.device=cpu", *SMALL,
    ]  # fmt: skip
    assert main(["tokenizer", *common]) == 0
    assert main(["train", *common]) == 0
    answers = {}
    for cache in ("exact", "none"):
        out = tmp_path / f"cache-{cache}"
        assert main(["generate", *common, f"eval.examples=[{test}]", f"eval.out={out}", f"eval.cache={cache}"]) == 0
        records = [json.loads(line) for line in (out / "test.generations.jsonl").read_text().splitlines()]
        answers[cache] = [{k: r[k] for k in ("uid", "text", "codes", "n_tokens", "stopped")} for r in records]
    assert len(answers["exact"]) == 2 and answers["exact"] == answers["none"], "greedy decoding: cached = uncached"
    assert all(r["n_tokens"] for r in answers["exact"])
    more = [f"eval.examples=[{test}]", f"eval.out={tmp_path / 'cache-exact'}"]
    assert main(["score", *common, *more]) == 0
    assert main(["likelihood", *common, *more, "--draws", "2"]) == 0
    assert (tmp_path / "cache-exact/card.json").is_file() and (tmp_path / "cache-exact/likelihood.json").is_file()
