"""Weights that are not what they should be, and model folders that bring code or pickles along, for everything that opens one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ttt.errors import CheckpointError, UntrustedCodeError
from ttt.io import sealed
from ttt.model.causal_lm import load_lm
from ttt.registry.families import CODEC, JUDGE, SPEAKER

CODE = """
from pathlib import Path
from transformers import Qwen2Config
Path({mark!r}).write_text("ran")
class Own(Qwen2Config): pass
"""
CONFIG, CAUSAL = "modeling_own.Own", "modeling_own.OwnLM"


def change(path: str | Path, **values: object) -> None:
    path = Path(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, Path]:
    """Tiny models of transformers as judge, speaker encoder and codecs; read-only."""
    import transformers as t

    root = tmp_path_factory.mktemp("small")
    encoder = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [8],
        "conv_kernel": [10], "conv_stride": [5], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
        "num_feat_extract_layers": 1, "vocab_size": 8, "tdnn_dim": [8, 8], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1],
        "xvector_output_dim": 8,
    }  # fmt: skip
    t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**encoder)).save_pretrained(root / "judge")
    t.Wav2Vec2ForXVector(t.Wav2Vec2Config(**encoder)).save_pretrained(root / "speaker")
    for name in ("judge", "speaker"):
        t.Wav2Vec2FeatureExtractor().save_pretrained(root / name)
    t.DacModel(t.DacConfig(
        encoder_hidden_size=8, downsampling_ratios=[2, 2], decoder_hidden_size=16, n_codebooks=2, codebook_size=8,
        codebook_dim=4, upsampling_ratios=[2, 2], hidden_size=16,
    )).save_pretrained(root / "codec")  # fmt: skip
    return {path.name: path for path in root.iterdir()}


OPEN: dict[str, Callable[[Path], object]] = {
    "backbone": load_lm,
    "judge": lambda folder: JUDGE.build({"name": "transformers_asr", "path": str(folder)}, "judge").load(),
    "speaker": lambda folder: SPEAKER.build({"name": "transformers_xvector", "path": str(folder)}, "speaker").load(),
    "codec": lambda folder: CODEC.build({"name": "dac", "path": str(folder)}, "codec").load(),
}


@pytest.fixture
def folder(request, world, small, tmp_path) -> Path:
    """A copy of the folder that the parameter names, to spoil."""
    source = Path("model") if request.param == "backbone" else small[request.param]
    return Path(shutil.copytree(source, tmp_path / "copy"))


def each(*names: str):
    return pytest.mark.parametrize(
        "folder, opened", [(n, OPEN[n]) for n in names or OPEN], indirect=["folder"], ids=names or list(OPEN)
    )


@each()
def test_code_of_a_folder_is_not_run(folder, opened, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "modeling_own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    autos = (
        "AutoConfig",
        "AutoModelForCausalLM",
        "AutoModelForCTC",
        "AutoModelForAudioXVector",
        "AutoProcessor",
        "AutoModel",
    )
    good = (folder / "config.json").read_text()
    for more in ({}, {"model_type": "own_of_mine"}):
        (folder / "config.json").write_text(good)
        change(folder / "config.json", auto_map=dict.fromkeys(autos, CONFIG), **more)
        with pytest.raises(
            UntrustedCodeError,
            match=r"config.json: auto_map names .*Own \(modeling_own\.py [0-9a-f]{16}\)",
        ):
            opened(folder)
    (folder / "config.json").write_text(good)
    change(folder / "config.json", text_config={"auto_map": {"AutoConfig": "somebody/repository--modeling_own.Own"}})
    with pytest.raises(UntrustedCodeError, match="somebody/repository--modeling_own.Own"):
        opened(folder)
    (folder / "config.json").write_text(good)
    (folder / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": CONFIG}}))
    with pytest.raises(UntrustedCodeError, match="processor_config.json: auto_map names"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


VERBS = {
    "train": ("train", "--config", "recipe.yaml", "model.preset=''", "model.path=model", "run.dir=other"),
    "estimate": ("estimate", "recipe.yaml", "model.preset=''", "model.path=model"),
    "export": ("model", "export", "model", "out"),
    "text": ("model", "text", "model", "out"),
    "show": ("model", "show", "model"),
    "chat": ("chat", "model", "--config", "recipe.yaml"),
    "generate": ("generate", "--config", "recipe.yaml", "eval.checkpoint=model", "eval.out=answers"),
    "init_from": ("train", "--config", "recipe.yaml", "train.init_from=model", "run.dir=other"),
    "stream": ("stream", "model", "--config", "recipe.yaml", "--text", "one"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_do_not_ask_whether_to_run_code(verb, world, run, tmp_path, tree):
    Path("model/modeling_own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    change(
        "model/config.json", auto_map={"AutoConfig": CONFIG, "AutoModelForCausalLM": CAUSAL}, model_type="own_of_mine"
    )
    line = run(*VERBS[verb], stdin="y\nyes\n").complaint()
    assert "model/config.json: auto_map names" in line and "model.trust_remote_code=true" in line
    assert not (tmp_path / "ran").exists()


def test_code_runs_by_the_users_word(world, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = CODE + "from transformers import Qwen2ForCausalLM\nclass OwnLM(Qwen2ForCausalLM): config_class = Own\n"
    Path("model/modeling_own.py").write_text(code.format(mark=str(tmp_path / "ran")))
    change("model/config.json", auto_map={"AutoConfig": CONFIG, "AutoModelForCausalLM": CAUSAL})
    words = ("generate", "--config", world.recipe, "eval.checkpoint=model", "eval.out=answers")
    outcome = run(*words, "model.trust_remote_code=true")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "ran").exists()
    assert "runs code of this folder, modeling_own.Own, modeling_own.OwnLM (modeling_own.py" in outcome.log
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    assert "model.trust_remote_code is set" in run("chat", "run").complaint()
    assert run("chat", "run", "model.trust_remote_code=false").code == 0


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "ran")


@each()
def test_pickled_weights_are_refused(folder, opened, tmp_path):
    whole = folder / "model.safetensors"
    good = whole.read_bytes()
    torch.save(load_file(whole), folder / "pytorch_model.bin")
    whole.unlink()
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model.bin\)"):
        opened(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.pth")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        opened(folder)
    torch.save({"a": Evil(tmp_path / "ran")}, folder / "part.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": "part.bin"}}))
    with pytest.raises(CheckpointError, match="lists 'part.bin', which is no safetensors"):
        opened(folder)
    for names in ({"a": "../x.safetensors"}, {"a": 5}, [1], {"a": "absent.safetensors"}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        with pytest.raises(CheckpointError, match="index.json: lists"):
            opened(folder)
    (folder / "model.safetensors.index.json").unlink()
    whole.write_bytes(good)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapters without their base"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


def test_snac_reads_its_pickle_when_asked(tmp_path):
    from snac import SNAC

    settings = {
        "sampling_rate": 24000, "encoder_dim": 8, "encoder_rates": [2, 2], "decoder_dim": 16, "decoder_rates": [2, 2],
        "attn_window_size": None, "codebook_size": 8, "codebook_dim": 4, "vq_strides": [2, 1],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    weights = SNAC(**settings).state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin")

    def load(**more):
        return CODEC.build({"name": "snac", "path": str(tmp_path), **more}, "codec").load()

    with pytest.raises(CheckpointError, match="pytorch_model.bin: pickled weights, .* set codec.allow_pickle=true"):
        load()
    asked = load(allow_pickle=True)
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, tmp_path / "model.safetensors")
    assert load().codec_id == asked.codec_id
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@each()
def test_missing_and_nonfinite_tensors_are_refused(folder, opened):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(n for n, v in weights.items() if v.ndim > 1 and n.endswith("weight") and "objective" not in n)

    def stored(**changed):
        save_file({n: v for n, v in {**weights, **changed}.items() if v is not None}, path, metadata={"format": "pt"})

    stored(**{name: None})
    with pytest.raises(CheckpointError, match=f"lack.*{name}"):
        opened(folder)
    for bad in (float("nan"), float("inf"), float("-inf")):
        value = weights[name].clone()
        value.view(-1)[-1] = bad
        stored(**{name: value})
        with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinite weights"):
            opened(folder)


def test_backbones_hold_what_their_configuration_describes(world, run):
    path = Path("model/model.safetensors")
    weights = load_file(path)
    words = ("generate", "--config", world.recipe, "eval.checkpoint=model", "eval.out=answers")
    save_file({**weights, "model.layers.0.extra.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    assert (
        "the weights hold what config.json does not describe: model.layers.0.extra.weight;" in run(*words).complaint()
    )
    lost = sorted(n for n in weights if n.startswith("model.layers.1."))
    save_file({n: v for n, v in weights.items() if n not in lost}, path, metadata={"format": "pt"})
    line = run(*words).complaint()
    assert f"the weights lack {', '.join(lost[:3])} and {len(lost) - 3} more;" in line
    # What may be missing: the tied head (it is not stored at all here); what may be there: a buffer of old versions.
    save_file(
        {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}, path, metadata={"format": "pt"}
    )
    assert run(*words).code == 0


CHECKPOINT = "run/checkpoints/step-00000004"
DECODE = {
    "generate": ("generate", "--config", "recipe.yaml", "eval.out=answers"),
    "chat": ("chat", "run"),
    "chat of the weights": ("chat", f"{CHECKPOINT}/model"),
    "stream": ("stream", "run", "--text", "one"),
    "export": ("model", "export", f"{CHECKPOINT}/model", "out"),
    "init_from": ("train", "--config", "recipe.yaml", f"train.init_from={CHECKPOINT}", "run.dir=other"),
    "resume": ("train", "--config", "recipe.yaml", "train.steps=5"),
}


def flip(path: Path) -> None:
    """One bit of the last byte, in place; size and time of change as they were."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("verb", DECODE)
def test_a_flipped_bit_is_seen(verb, world, run):
    if verb not in ("export", "init_from", "resume"):
        assert run(*DECODE[verb]).code == 0  # and what was found good is noted
    flip(Path(CHECKPOINT, "model/model.safetensors"))
    line = run(*DECODE[verb], "--overwrite").complaint() if verb == "generate" else run(*DECODE[verb]).complaint()
    assert "file model/model.safetensors has other contents than when it was written" in line


def test_good_files_are_read_once(world, run, monkeypatch, tmp_path):
    read = []
    monkeypatch.setattr(sealed, "digest_of_file", lambda path, size: read.append(path.name) or "0" * 32)
    monkeypatch.setattr(sealed, "SETTLED_S", -1.0)
    assert "has other contents" in run("chat", "run").complaint() and len(read) == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "world")
    assert run("chat", "run").code == 0
    monkeypatch.setattr(sealed, "digest_of_file", lambda path, size: pytest.fail(f"{path} is read again"))
    assert run("chat", "run").code == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "world")
    monkeypatch.setenv("TTT_CACHE", "/dev/null/nowhere")
    assert run("chat", "run").code == 0  # nothing can be noted


EDITED = (
    None, [], {"model/config.json": 5}, {"model/x": {"bytes": "1"}}, {"model/../../x": {}},
    {"model/x": {"bytes": 1, "blake2b": "00"}},
)  # fmt: skip


@pytest.mark.parametrize("value", EDITED)
def test_edited_lists_of_files(value, world, run):
    change(f"{CHECKPOINT}/COMPLETE", files=value)
    assert "COMPLETE" in run("chat", "run").complaint() or "model/x is missing" in run("chat", "run").complaint()


def test_the_recipe_has_the_keys(world, run):
    stored = yaml.safe_load(run("config", "--config", world.recipe).out)
    assert stored["model"]["trust_remote_code"] is False


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_saved_folders_stop_and_keep_the_chat_template(world, run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ttt.text.tokenizer import TextTokenizer

    Path("model/chat_template.jinja").write_text(TEMPLATE)
    before = {"eos_token_id": 0, "do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1}
    Path("model/generation_config.json").write_text(json.dumps(before))
    lora = ("model.preset=''", "model.path=model", "model.lora.rank=2", "train.steps=1", "run.dir=adapters")
    assert run("train", "--config", world.recipe, *lora).code == 0
    adapters = "adapters/checkpoints/step-00000001/model"
    assert run("train", "--config", world.recipe, "model.preset=''", "model.path=model", "train.steps=1", "run.dir=whole").code == 0
    assert run("model", "merge", adapters, "merged").code == 0
    assert run("model", "export", "merged", "exported").code == 0
    assert run("model", "export", "model", "plain").code == 0
    end = TextTokenizer.load("model").vocab.im_end_id
    for folder in ("merged", "exported", "plain", "whole/checkpoints/step-00000001/model"):
        kept = AutoModelForCausalLM.from_pretrained(folder).generation_config
        assert kept.eos_token_id == end, folder
        assert (kept.temperature, kept.repetition_penalty) == (0.7, 1.1), folder
        assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE, folder
    assert json.loads(Path(adapters, "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
