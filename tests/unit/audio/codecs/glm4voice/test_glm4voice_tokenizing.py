"""GLM-4-Voice's speech tokenizer: every switch against a slow computation, lengths, company, both layouts, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.glm4voice_folders import TOKENIZER_CONFIG, changing_sound, make_tokenizer_folder, make_training_folder
from ttt.audio.codecs.glm4voice.tokenizer import SpeechTokenizer, open_tokenizer
from ttt.errors import CheckpointError

VARIANTS = {
    "published": {},
    "max": {"pooling_type": "max", "quantize_causal_block_size": 12},
    "early": {"pooling_position": 1, "quantize_causal_block_size": 12},
    "early_max_3": {
        "pooling_position": 1,
        "pooling_type": "max",
        "pooling_kernel_size": 3,
        "quantize_causal_block_size": 10,
    },
    "no_pooling": {"pooling_kernel_size": None, "quantize_causal_block_size": 12},
    "no_block": {"quantize_causal_block_size": None},
    "plain_convolutions": {"encoder_causal_convolution": False},
    "causal_attention": {"encoder_causal_attention": True},
    "causal_encoder": {"quantize_causal_encoder": True, "pooling_position": 1},
    "relu": {"activation_function": "relu", "encoder_attention_heads": 2},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return make_tokenizer_folder(tmp_path_factory.mktemp("glm4voice") / "tokenizer")


def layer_norm(x, w, name):
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def slowly(w, settings, features, real):
    """States and codes of one row, frame by frame, from the weights of the file."""
    heads, pool = settings["encoder_attention_heads"], settings["pooling_kernel_size"] or 1
    left, right = (2, 0) if settings["encoder_causal_convolution"] else (1, 1)
    activation = getattr(functional, settings["activation_function"])
    x = features
    for name, stride in (("conv1", 1), ("conv2", 2)):
        x = torch.cat([torch.zeros(len(x), left), x, torch.zeros(len(x), right)], 1)
        steps = range(0, x.shape[1] - 2, stride)
        x = torch.stack([torch.einsum("oik,ik->o", w[f"{name}.weight"], x[:, t : t + 3]) for t in steps], 1)
        x = functional.gelu(x + w[f"{name}.bias"][:, None])
    x = x.T + w["embed_positions.weight"][: x.shape[1]]
    real, block = real[::2], settings["quantize_causal_block_size"]
    strict = settings["encoder_causal_attention"] or settings["quantize_causal_encoder"]
    for number in range(settings["quantize_position"]):
        at = f"layers.{number}"
        y = layer_norm(x, w, f"{at}.self_attn_layer_norm")
        q = y @ w[f"{at}.self_attn.q_proj.weight"].T + w[f"{at}.self_attn.q_proj.bias"]
        k = y @ w[f"{at}.self_attn.k_proj.weight"].T
        v = y @ w[f"{at}.self_attn.v_proj.weight"].T + w[f"{at}.self_attn.v_proj.bias"]
        rows = []
        for i in range(len(x)):
            if strict:
                seen = list(range(i + 1))
            else:
                seen = [j for j in range(len(x)) if real[j] and (not block or j <= i or i // block == j // block)]
            parts = zip(q[i].chunk(heads), k[seen].chunk(heads, 1), v[seen].chunk(heads, 1), strict=True)
            rows.append(torch.cat([torch.softmax(b @ a / len(a) ** 0.5, 0) @ c for a, b, c in parts]))
        x = x + torch.stack(rows) @ w[f"{at}.self_attn.out_proj.weight"].T + w[f"{at}.self_attn.out_proj.bias"]
        y = layer_norm(x, w, f"{at}.final_layer_norm")
        y = activation(y @ w[f"{at}.fc1.weight"].T + w[f"{at}.fc1.bias"])
        x = x + y @ w[f"{at}.fc2.weight"].T + w[f"{at}.fc2.bias"]
        if number + 1 == settings["pooling_position"] and pool > 1:
            groups = [x[i : i + pool] for i in range(0, len(x), pool)]
            x = torch.stack([g.mean(0) if settings["pooling_type"] == "avg" else g.amax(0) for g in groups])
            real, block = real[::pool], block and block // pool
    codes = [(row - w["codebook.weight"]).square().sum(1).argmin() for row in x]
    return x, torch.stack(codes), real


@pytest.mark.parametrize("name", VARIANTS)
def test_each_switch_against_a_slow_computation(name, tmp_path):
    folder = make_tokenizer_folder(tmp_path, seed=3, **VARIANTS[name])
    network = open_tokenizer(folder)
    weights, settings = load_file(folder / "model.safetensors"), TOKENIZER_CONFIG | VARIANTS[name]
    pieces = [changing_sound(9000, 1), changing_sound(4321, 2)]
    with torch.inference_mode():
        features, real = network.features(pieces)
        states, kept = network(features, real)
        codes = network.codes(states)
    for row in range(2):
        expected, expected_codes, expected_kept = slowly(weights, settings, features[row], real[row])
        torch.testing.assert_close(states[row], expected, atol=1e-4, rtol=1e-4)
        assert kept[row].tolist() == expected_kept.tolist()
        assert codes[row].tolist() == expected_codes.tolist()
        per_token = 320 * (settings["pooling_kernel_size"] or 1)
        assert kept[row].sum() == -(-len(pieces[row]) // per_token)
    assert len(codes.unique()) > 3, "the codes say nothing"


@pytest.mark.parametrize("samples", [1, 150, 1279, 1280, 1281, 16_000, 480_000, 481_281])
def test_a_token_for_every_80_ms_begun(published, samples):
    network = open_tokenizer(published)
    tokens = network.encode(changing_sound(samples))
    assert tokens.shape == (-(-samples // 1280),) and tokens.dtype == np.int32


@pytest.mark.parametrize("more", [20_000, 25_600])
@pytest.mark.parametrize("causal", [True, False])
def test_pieces_of_a_long_recording_are_those_of_one_padded_batch(tmp_path, more, causal):
    """The official program pads the last piece to the length of the others."""
    changes = {"encoder_causal_convolution": causal, "max_source_positions": 120}
    network = open_tokenizer(make_tokenizer_folder(tmp_path, **changes))
    whole = network.config.piece_samples
    samples = changing_sound(whole + more)
    with torch.inference_mode():
        features, real = network.features([samples[:whole], samples[whole:]])
        states, kept = network(features, real)
        one_by_one = torch.cat(list(network.pieces(samples)))
    torch.testing.assert_close(one_by_one, states[kept], atol=1e-5, rtol=1e-5)
    assert network.encode(samples).tolist() == network.codes(states[kept]).tolist()


def test_pieces_are_no_longer_than_there_are_positions(tmp_path):
    network = open_tokenizer(make_tokenizer_folder(tmp_path, max_source_positions=30))
    samples = changing_sound(20_000)
    assert network.config.piece_samples == 28 * 320
    first = network.encode(samples[: 28 * 320])
    assert network.encode(samples)[: len(first)].tolist() == first.tolist()


def test_silence_has_the_lowest_features(published):
    network = open_tokenizer(published)
    features, real = network.features([np.zeros(4000, dtype=np.float32)])
    assert features.unique().tolist() == [-1.5] and real.sum() == 25
    assert len(network.encode(np.zeros(4000, dtype=np.float32))) == 4


def test_a_training_checkpoint_gives_the_same_codes(published, tmp_path):
    expected = open_tokenizer(published)
    network = open_tokenizer(make_training_folder(tmp_path, published))
    np.testing.assert_array_equal(network.encode(changing_sound(20_000)), expected.encode(changing_sound(20_000)))


def test_layers_may_give_tuples(published, monkeypatch):
    network = open_tokenizer(published)
    expected = network.encode(changing_sound(9000))
    for layer in network.layers:
        plain = layer.forward
        monkeypatch.setattr(layer, "forward", lambda *a, plain=plain, **k: (plain(*a, **k), None))
    np.testing.assert_array_equal(network.encode(changing_sound(9000)), expected)


def test_half_precision_keeps_the_codebook(published):
    network = open_tokenizer(published, dtype=torch.bfloat16)
    assert network.conv1.weight.dtype == torch.bfloat16 and network.codebook.weight.dtype == torch.float32
    assert network.distances(torch.zeros(1, 1, 32, dtype=torch.bfloat16)).dtype == torch.float32
    exact = open_tokenizer(published)
    same = network.encode(changing_sound(32_000)) == exact.encode(changing_sound(32_000))
    assert same.mean() > 0.7


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("layers.1.fc1.bias"), r"layers\.1\.fc1\.bias is missing"),
        (lambda w: w.update({"codebook.weight": torch.zeros(63, 32)}),
         r"codebook\.weight has shape \[63, 32\], the configuration says \[64, 32\]"),
        (lambda w: w.update({"odd.weight": torch.zeros(2)}), r"odd\.weight is not described"),
        (lambda w: w["conv2.bias"].fill_(float("nan")), r"conv2\.bias holds NaN"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(published, tmp_path, change, message):
    weights = load_file(published / "model.safetensors")
    change(weights)
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"quantize_vocab_size": None}, "quantize_vocab_size is missing"),
        ({"d_model": "wide"}, "d_model: must be a whole number"),
        ({"pooling_type": "sum"}, "pooling_type: no 'sum'"),
        ({"pooling_position": 3}, "pooling_position must lie in 1 to quantize_position 2"),
        ({"encoder_attention_heads": 5}, "d_model 32 is no multiple of 5 heads"),
        ({"quantize_causal_block_size": 3}, "is less than the 4 frames of a token"),
    ],
)
def test_a_configuration_that_cannot_be_computed_is_refused(published, tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(TOKENIZER_CONFIG | changes))
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=message) as error:
        open_tokenizer(tmp_path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def test_folders_that_are_none_are_refused(published, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_tokenizer(tmp_path)
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="no weights"):
        open_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        open_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 24000}')
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: sampling_rate is 24000"):
        open_tokenizer(tmp_path)


def test_the_network_holds_only_what_encoding_needs(published):
    network = open_tokenizer(published)
    assert isinstance(network, SpeechTokenizer) and len(network.layers) == 2
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
