"""GLM-4-Voice's speech tokenizer against the official program, array by array (``pytest -s`` prints the deviations).

Every folder of ``glm4voice/tokenizer`` is a variant of the configuration; the README beside it says from which waves its
arrays were made.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.conftest import folder, need
from ttt.audio.codecs.glm4voice.tokenizer import SpeechTokenizer, TokenizerConfig, open_tokenizer

HOME = folder() / "glm4voice"
VARIANTS = sorted(path.parent for path in (HOME / "tokenizer").glob("*/golden.npz"))
LARGEST: dict[str, dict[str, float]] = defaultdict(dict)  # variant -> array -> largest deviation
TOLERANCES = {"features": 1e-5, "alone_features": 1e-5, "batch_features": 1e-5}
STATE_TOLERANCE = 2e-5
MARGIN_TOLERANCE = 5e-3  # squared distances are sums over many states that are 2e-5 apart

pytestmark = pytest.mark.skipif(
    not VARIANTS, reason=f"no glm4voice/tokenizer/*/golden.npz in {folder()} (set TTT_PARITY_DIR)"
)


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    for variant, arrays in sorted(LARGEST.items()):
        print(f"\n{variant}: " + ", ".join(f"{name} {value:.1e}" for name, value in sorted(arrays.items())), end="")


def wave(samples: int, seed: int) -> np.ndarray:
    """Two chirps with a changing loudness in noise, as the README spells them."""
    draw, t = np.random.RandomState(seed), np.arange(samples) / 16000.0
    low, high = draw.uniform(80, 300), draw.uniform(500, 3000)
    x = 0.4 * np.sin(2 * np.pi * (low * t + ((40 * seed) % 7) * t**2)) + 0.2 * np.sin(
        2 * np.pi * (high * t + 150 * t**2)
    )
    loudness = 0.55 + 0.45 * np.sin(2 * np.pi * (1.3 + 0.2 * seed) * t + seed)
    return np.float32(x * loudness + 0.02 * draw.standard_normal(samples))


def waves_of(case: str) -> list[np.ndarray]:
    """The inputs of a case: its row of the README's table gives length and seed of each wave."""
    text = need("glm4voice/README.md").read_text()
    row = next((line for line in text.splitlines() if line.startswith(f"| {case} |")), None)
    assert row is not None, f"the README has no waves of {case}"
    if zeros := re.search(r"([\d,]+) zeros", row):
        return [np.zeros(int(zeros[1].replace(",", "")), dtype=np.float32)]
    return [wave(int(n), int(seed)) for n, seed in re.findall(r"\((\d+), (\d+)\)", row)]


def run(network: SpeechTokenizer, waves: list[np.ndarray]) -> dict[str, np.ndarray]:
    """All arrays that the reference may hold of one official call, by name."""
    seen: dict[str, torch.Tensor] = {}
    allowed, rule = [], network.allowed
    network.allowed = lambda real, block: allowed.append((block, rule(real, block))) or allowed[-1][1]
    hooks = [
        getattr(network, name).register_forward_hook(lambda module, given, out, name=name: seen.update({name: out}))
        for name in ("conv1", "conv2")
    ] + [
        layer.register_forward_pre_hook(lambda module, given, i=i: seen.update({f"input_of_layer{i}": given[0]}))
        for i, layer in enumerate(network.layers)
    ]
    try:
        with torch.inference_mode():
            features, real = network.features(waves)
            states, kept = network(features, real)
            distances = network.distances(states)
            codes = network.codes(states)
            after = network.codebook(codes) + network.embed_positions2.weight[: codes.shape[1]]
    finally:
        network.allowed = rule
        for hook in hooks:
            hook.remove()
    nearest = distances.topk(2, dim=-1, largest=False).values
    seen |= {f"allowed{i}_block{block}": value for i, (block, value) in enumerate(allowed)}
    seen |= {f"tokens{i}": codes[i][kept[i]] for i in range(len(waves))}
    seen |= {
        "features": features, "features_mean": features.mean(1), "features_head": features[..., :4],
        "features_tail": features[..., -8:], "feature_mask": real, "token_mask": kept, "pre_vq": states,
        "last_hidden_state": after, "codes_padded": codes, "margin": nearest[..., 1] - nearest[..., 0],
    }  # fmt: skip
    return {name: value.numpy() for name, value in seen.items()}


def compare(variant: str, name: str, ours: np.ndarray, reference: np.ndarray) -> None:
    """Equal where the reference holds whole numbers, else within the tolerance."""
    if name.startswith("allowed"):
        reference = np.unpackbits(reference, axis=-1)[..., : ours.shape[-1]]
    assert ours.shape == reference.shape, f"{variant} {name}: shape {ours.shape}, the reference {reference.shape}"
    key = re.sub(r"(\d+)?(_block\d+|_mean|_head|_tail)?$", "", name)
    deviation = float(np.abs(ours.astype(np.float64) - reference).max(initial=0))
    LARGEST[variant][key] = max(deviation, LARGEST[variant].get(key, 0.0))
    allowed = 0.0
    if reference.dtype == np.float32:
        allowed = MARGIN_TOLERANCE if name == "margin" else TOLERANCES.get(key, STATE_TOLERANCE)
    assert deviation <= allowed, f"{variant} {name}: off by {deviation:.3g}"


@pytest.mark.parametrize("path", VARIANTS, ids=[path.name for path in VARIANTS])
def test_every_array_of_the_variant(path: Path):
    network = open_tokenizer(path)
    cases: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for key, value in np.load(path / "golden.npz").items():
        cases[key.partition("/")[0]][key.partition("/")[2]] = value
    assert cases
    for case, arrays in cases.items():
        waves = waves_of(case)
        made: dict[str, np.ndarray] = {}
        if case == "stereo":
            waves = waves[:1]  # the official program takes the first channel
        if case == "edge":
            alone, together = run(network, waves[:1]), run(network, waves)
            own = slice(alone["features"].shape[-1] - 4, alone["features"].shape[-1])
            made |= {"batch_tokens0": together["tokens0"], "batch_features_tail": together["features"][0, :, own]}
            made |= {"alone_features_tail": alone["features"][0, :, own]}
            waves = waves[:1]
        elif case != "long":
            made |= run(network, waves)
        for i, samples in enumerate(waves):  # codes never depend on company
            made[f"tokens{i}"] = made[f"alone_tokens{i}"] = network.encode(samples)
        for name, reference in arrays.items():
            assert name in made, f"{path.name} {case}: nothing to compare {name} with"
            compare(path.name, name, made[name], reference)


def test_waves_are_those_of_the_reference():
    stored = np.load(need("glm4voice/tokenizer/waves.npz"))
    for name, reference in stored.items():
        case, _, number = name.rpartition("_")
        np.testing.assert_array_equal(waves_of(case)[int(number)], reference)


def test_the_published_file_fits_the_network():
    published = json.loads(need("glm4voice/published_names.json").read_text())["tokenizer model.safetensors"]
    # The published configuration (its config.json), as far as encoding reads it.
    config = TokenizerConfig(
        num_mel_bins=128, d_model=1280, encoder_attention_heads=20, encoder_ffn_dim=5120, encoder_causal_convolution=True,
        quantize_causal_block_size=200, pooling_kernel_size=4, pooling_type="avg", pooling_position=16,
        quantize_vocab_size=16384,
    )  # fmt: skip
    with torch.device("meta"):
        network = SpeechTokenizer(config)
    own = {name: list(value.shape) for name, value in network.state_dict().items()}
    statistics = {name for name in published if name.startswith("ema_")}
    assert own == {name: shape for name, shape in published.items() if name not in statistics} and len(statistics) == 2
