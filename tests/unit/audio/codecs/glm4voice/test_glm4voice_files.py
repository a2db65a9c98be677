"""The decoder's folder: config.yaml is data and nothing else, weights fit exactly, and every refusal names what is wrong."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.glm4voice_folders import make_decoder_folder, with_weight_norm
from ttt.audio.codecs.glm4voice.decoder import Decoder
from ttt.audio.codecs.glm4voice.files import DecoderConfig, read_config
from ttt.errors import CheckpointError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_decoder_folder(tmp_path_factory.mktemp("glm4voice") / "decoder")


@pytest.fixture
def home(original, tmp_path):
    return shutil.copytree(original, tmp_path / "decoder")


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_config_is_data(home):
    config = read_config(home / "config.yaml")
    assert (config.flow.vocab_size, config.flow.encoder.block_size) == (64, 10)
    assert config.flow.spk_embed_dim == 192 and config.hift.sampling_rate == 22050  # both refer to keys above
    assert config.flow.decoder.cfm_params.content.inference_cfg_rate == 0.7
    assert config.hift.resblock_kernel_sizes == [3, 7, 11]  # not in the file: as published


def test_nothing_that_config_names_is_built_or_called(home, tmp_path):
    trace = tmp_path / "trace"
    (home / "config.yaml").write_text(f"a: !apply:os.mkdir [{trace}]\nflow: !new:os.mkdir\n    path: {trace}\n")
    assert read_config(home / "config.yaml") == DecoderConfig()
    (home / "config.yaml").write_text(f"flow: !!python/object/apply:os.mkdir [{trace}]\n")
    with pytest.raises(CheckpointError, match="config.yaml:1: .*python/object"):
        read_config(home / "config.yaml")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("block_size: 10", "block_size: 0", "flow.encoder.block_size: must be >= 1"),
        ("block_rel_selfattn", "rel_selfattn", "flow.encoder.selfattention_layer_type: no 'rel_selfattn'"),
        ("use_cnn_module: False", "use_cnn_module: True", "flow.encoder.use_cnn_module: no True"),
        ("num_heads: 2", "num_heads: two", "flow.decoder.estimator.num_heads: must be a whole number"),
        ("!ref <sample_rate>", "!ref <rate>", "hift.sampling_rate: must be a whole number, got '<rate>'"),
        ("flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec", "flow: [", "config.yaml:11: not YAML"),
    ],
)
def test_config_that_cannot_be_computed_with(home, old, new, message):
    rewrite(home / "config.yaml", old, new)
    with pytest.raises(CheckpointError) as error:
        Decoder.load(home)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.yaml", "flow.pt", "hift.pt"])
def test_missing_file(home, name):
    (home / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*name a folder with config.yaml, flow.pt and hift.pt"):
        Decoder.load(home)


def changed(home, file, change):
    arrays = torch.load(home / file, weights_only=True)
    change(arrays)
    torch.save(arrays, home / file)


def drop(name):
    return lambda arrays: arrays.pop(name)


def put(name, value):
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("flow.pt", drop("encoder.after_norm.bias"), "encoder.after_norm.bias is missing"),
        ("flow.pt", put("more.weight", torch.zeros(1)), "more.weight is not described by the configuration"),
        ("flow.pt", put("encoder_proj.bias", torch.zeros(3)), "encoder_proj.bias has shape [3], the configuration says [80]"),
        ("flow.pt", put("encoder_proj.bias", torch.full((80,), torch.nan)), "encoder_proj.bias holds NaN"),
        ("hift.pt", drop("conv_pre.weight_g"), "conv_pre.weight_g is missing"),
        ("hift.pt", drop("ups.1.weight_v"), "ups.1.weight is missing"),
        ("hift.pt", put("conv_pre.weight_g", torch.ones(16)), "conv_pre.weight_g has shape [16]"),
        ("hift.pt", put("epoch", 3), "expected arrays by name"),
    ],
)
def test_weights_that_do_not_fit(home, file, change, message):
    changed(home, file, change)
    with pytest.raises(CheckpointError) as error:
        Decoder.load(home)
    assert f"{file}: {message}" in str(error.value) and "\n" not in str(error.value)


class Payload:
    """Makes a folder where a pickle is read that may run code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_run_and_damage_is_told(home, tmp_path):
    torch.save({"a": Payload(tmp_path / "trace")}, home / "hift.pt")
    with pytest.raises(CheckpointError, match="hift.pt: cannot be read as weights") as error:
        Decoder.load(home)
    assert not (tmp_path / "trace").exists() and "\n" not in str(error.value)
    whole = (home / "flow.pt").read_bytes()
    (home / "flow.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="flow.pt: cannot be read as weights"):
        Decoder.load(home)


def test_every_form_of_the_weights_gives_one_sound(home):
    tokens = np.arange(3)
    want = Decoder.load(home).decode(tokens, steps=1)
    changed(home, "hift.pt", renamed)  # as newer torch writes weight normalisation
    np.testing.assert_array_equal(Decoder.load(home).decode(tokens, steps=1), want)
    for stem in ("flow", "hift"):
        save_file(torch.load(home / f"{stem}.pt", weights_only=True), home / f"{stem}.safetensors")
        (home / f"{stem}.pt").unlink()
    np.testing.assert_array_equal(Decoder.load(home).decode(tokens, steps=1), want)


def renamed(arrays):
    for name in list(arrays):
        for old, new in ((".weight_g", "original0"), (".weight_v", "original1")):
            if name.endswith(old):
                arrays[f"{name.removesuffix(old)}.parametrizations.weight.{new}"] = arrays.pop(name)


def test_weight_normalisation_is_resolved(home):
    stored = torch.load(home / "hift.pt", weights_only=True)
    up = Decoder.load(home).hift.ups[0]
    torch.testing.assert_close(
        up.weight, torch._weight_norm(stored["ups.0.weight_v"], stored["ups.0.weight_g"], 0), rtol=1e-6, atol=1e-7
    )
    assert with_weight_norm({"ups.0.weight": up.weight}).keys() == {"ups.0.weight_g", "ups.0.weight_v"}
