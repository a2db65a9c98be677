"""The official checkpoint layout: in, out, round trips, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from local_backbones import extended, make_backbone, section
from safetensors.torch import load_file, save_file

from ttt.cli.main import main
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.model.causal_lm import build_lm, load_lm
from ttt.model.official import DEFAULTS, export, import_official, spelled_for_transformers_4, weight_files


def make_official(folder: Path, kind: str = "qwen2-untied", shard: str = "1GB") -> Path:
    """What the official program saves: transformers 4's spelling, five keys more, a fast tokenizer."""
    base = make_backbone(folder / "base", kind)
    tokenizer = extended(base)
    model = build_lm(section(base), tokenizer, 1)
    out = folder / "official"
    model.hf.save_pretrained(out, max_shard_size=shard)
    config = spelled_for_transformers_4(json.loads((out / "config.json").read_text()))
    config |= {
        "architectures": ["Qwen2ForARDiffLM"], "mask_token": tokenizer.vocab.mask_id, "learn_padding": False,
        "audio_token_id_start": tokenizer.vocab.audio_start, "unmasked_audio_prob": 0.3, "prefix_preservation_ratio": 0.25,
        "transformers_version": "4.52.4", "_name_or_path": "some/where",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    tokenizer.backend.save(str(out / "tokenizer.json"))
    return out


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    return make_official(tmp_path_factory.mktemp("official"))


def copied(source: Path, out: Path, **changes) -> Path:
    """``source`` with keys of its config changed (None removes one)."""
    shutil.copytree(source, out)
    config = {**json.loads((source / "config.json").read_text()), **changes}
    (out / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in weight_files(folder) for k, v in load_file(path).items()}


@pytest.mark.parametrize(("kind", "shard"), [("qwen2", "1GB"), ("qwen2-untied", "1GB"), ("qwen2-untied", "40KB")])
def test_round_trip_is_bit_equal_tensors_and_config(kind, shard, tmp_path):
    source = make_official(tmp_path, kind, shard)
    assert (len(weight_files(source)) > 1) == (shard == "40KB")
    assert main(["model", "import", str(source), str(tmp_path / "ours")]) == 0
    assert main(["model", "export", str(tmp_path / "ours"), str(tmp_path / "back"), "--layout", "official"]) == 0
    one, other = tensors(source), tensors(tmp_path / "back")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    read = [json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "back")]
    assert read[0] == read[1]
    assert not list(tmp_path.glob(".*"))


def test_an_imported_folder_is_a_model_and_a_backbone(official, tmp_path):
    tokenizer = import_official(official, tmp_path / "ours")
    model = load_lm(tmp_path / "ours")
    again = build_lm(section(tmp_path / "ours"), tokenizer, 5)
    expected = tensors(official)["model.embed_tokens.weight"]
    for found in (model, again):
        assert torch.equal(found.hf.get_input_embeddings().weight, expected), "no row counts as new"
    assert model.tokenizer.vocab == tokenizer.vocab == extended(official).vocab


def test_a_trained_model_is_exported_with_its_recipe_and_readable_by_transformers_4(official, tmp_path):
    import_official(official, tmp_path / "ours")
    checkpoint = tmp_path / "step-00000003"
    load_lm(tmp_path / "ours").save(checkpoint / "model")
    written = json.loads((checkpoint / "model/config.json").read_text())
    assert "rope_theta" not in written, "version 5 spells it otherwise"
    (checkpoint / "config.yaml").write_text(
        "objective: {name: ttt, strategies: [{name: banom, p: 0.4}, {name: sst, p: 0.5}]}\n"
    )
    assert main(["model", "export", str(checkpoint), str(tmp_path / "out"), "--layout", "official"]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["Qwen2ForARDiffLM"]
    assert (config["unmasked_audio_prob"], config["prefix_preservation_ratio"]) == (0.4, 0.0), (
        "ppm is not in the recipe"
    )
    original = json.loads((official / "config.json").read_text())
    for key in (
        "rope_theta",
        "torch_dtype",
        "mask_token",
        "audio_token_id_start",
        "learn_padding",
        "vocab_size",
        "rms_norm_eps",
    ):
        assert config[key] == original[key], key
    assert "rope_parameters" not in config and "dtype" not in config


def test_keys_that_nobody_set_get_the_official_defaults(official, tmp_path):
    """Exporting a model that never was official."""
    bare = copied(official, tmp_path / "bare", **dict.fromkeys((*DEFAULTS, "mask_token")))
    export(bare, tmp_path / "out", "official")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {k: config[k] for k in DEFAULTS if k != "audio_token_id_start"} == {
        k: v for k, v in DEFAULTS.items() if k != "audio_token_id_start"
    }
    assert config["audio_token_id_start"] == extended(official).vocab.audio_start


def test_export_converts_types_and_plain_transformers_reads_it(official, tmp_path):
    from transformers import AutoModelForCausalLM

    import_official(official, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "plain", "hf", "bfloat16")
    config = json.loads((tmp_path / "plain/config.json").read_text())
    assert "mask_token" not in config and config["torch_dtype"] == "bfloat16"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert plain.dtype == torch.bfloat16
    expected = tensors(official)["lm_head.weight"].bfloat16()
    assert torch.equal(plain.lm_head.weight, expected)


def test_rope_scaling_is_spelled_for_transformers_4():
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    assert spelled_for_transformers_4({"rope_parameters": yarn, "dtype": "float32"}) == {
        "rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "torch_dtype": "float32",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"mask_token": 5},
            r"config\.json: mask_token is 5, the tokenizer beside it says \d+; they do not belong together",
        ),
        ({"audio_token_id_start": None}, r"audio_token_id_start is 151684, the tokenizer beside it says"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "mask_token": None},
            r"is not the official layout .*name it with model\.path",
        ),
        ({"model_type": "llama"}, r"model_type 'llama': the official layout holds Qwen2 backbones only"),
        (
            {"intermediate_size": 8},
            r"weights of another shape, first 'model\.layers\.0\.mlp\.down_proj\.weight': \(32, 64\) stored",
        ),
        ({"num_hidden_layers": 3, "layer_types": None}, r"12 of \d+ weights missing, first 'model\.layers\.2\."),
        ({"num_hidden_layers": 1, "layer_types": None}, r"12 of \d+ weights unknown, first 'model\.layers\.1\."),
    ],
)
def test_folders_that_do_not_fit_are_refused(changes, pattern, official, tmp_path):
    source = copied(official, tmp_path / "source", **changes)
    with pytest.raises(CheckpointError, match=pattern):
        import_official(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"], "nothing is left half-written"


def test_a_missing_head_is_not_drawn_at_random(official, tmp_path):
    source = copied(official, tmp_path / "source")
    stored = load_file(source / "model.safetensors")
    del stored["lm_head.weight"]
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 of 27 weights missing, first 'lm_head.weight'"):
        import_official(source, tmp_path / "out")


def test_missing_files_are_named(official, tmp_path):
    pickled = copied(official, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*save_pretrained\(OUT\)"):
        import_official(pickled, tmp_path / "out")
    bare = copied(official, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer\.json; write one with AutoTokenizer"):
        import_official(bare, tmp_path / "out")
    shards = make_official(tmp_path / "shards", shard="40KB")
    gone = weight_files(shards)[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=rf"lists {gone.name}, which is not there"):
        import_official(shards, tmp_path / "out")
    (official_copy := copied(official, tmp_path / "cut")) and (official_copy / "model.safetensors").write_bytes(
        b"12345678"
    )
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        import_official(official_copy, tmp_path / "out")


def test_existing_folders_and_wrong_words(official, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds files that were not made by 'ttt model'; name another folder"):
            import_official(official, tmp_path / "out", overwrite)
    (tmp_path / "out/notes.txt").unlink()
    assert main(["model", "import", str(official), str(tmp_path / "out")]) == 0
    with pytest.raises(ConfigError, match="is there already; name another folder, or give --overwrite"):
        import_official(official, tmp_path / "out")
    assert main(["model", "import", str(official), str(tmp_path / "out"), "--overwrite"]) == 0
    with pytest.raises(ConfigError, match=r"--layout: no 'oficial'\. Did you mean 'official'"):
        export(tmp_path / "out", tmp_path / "x", "oficial")
    capsys.readouterr()
    for argv, pattern in (
        (["import", str(official), str(official)], "is the source"),
        (["merge", str(official), str(tmp_path / "x")], "no adapters here"),
        (["show", str(tmp_path / "nowhere")], "no such folder"),
    ):
        assert main(["model", *argv]) == 2 and pattern in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["model", "import", str(official)])
    assert stop.value.code == 2 and "arguments are required: OUT" in capsys.readouterr().err


def test_show_counts_what_the_folder_holds(official, capsys):
    assert main(["model", "show", str(official), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["all"] == sum(v.numel() for v in tensors(official).values())
    assert (
        found["parameters"]["embedding"] == found["parameters"]["head"] == tensors(official)["lm_head.weight"].numel()
    )
    assert found["official"]["unmasked_audio_prob"] == 0.3 and found["vocabulary"]["codes"] == 32
    assert main(["model", "show", str(official.parent / "base")]) == 0
    assert "no audio tokens" in capsys.readouterr().out


def test_adapters_are_merged_on_the_way(tmp_path, capsys):
    pytest.importorskip("peft")
    from ttt.config.schema import LoraSection

    base = make_backbone(tmp_path / "base", "qwen2")
    model = build_lm(section(base, LoraSection(rank=2)), extended(base), 1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))) * 0.05)
    (tmp_path / "adapter").mkdir()
    model.save(tmp_path / "adapter")
    assert main(["model", "merge", str(tmp_path / "adapter"), str(tmp_path / "whole")]) == 0
    assert main(["model", "export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--layout", "official"]) == 0
    merged = tensors(tmp_path / "whole")
    assert tensors(tmp_path / "out").keys() == merged.keys()
    assert all(torch.equal(v, merged[k]) for k, v in tensors(tmp_path / "out").items())
    layer = model.hf.model.layers[0].mlp.up_proj
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (16 / 2)
    expected = layer.base_layer.weight + update
    assert torch.allclose(merged["model.layers.0.mlp.up_proj.weight"], expected, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "out", "whole"]
    assert main(["model", "show", str(tmp_path / "adapter")]) == 0
    assert "quantize                   none" in capsys.readouterr().out
