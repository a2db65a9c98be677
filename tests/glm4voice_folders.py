"""Folders as GLM-4-Voice's are published, with tiny random weights, for whoever tests with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttt.audio.codecs.glm4voice.files import read_config
from ttt.audio.codecs.glm4voice.flow import Flow
from ttt.audio.codecs.glm4voice.hift import Hift
from ttt.audio.codecs.glm4voice.tokenizer import SpeechTokenizer, TokenizerConfig, open_extractor
from ttt.audio.weights import WEIGHT_NORM

CONFIG = """
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:torch.manual_seed [1986]
sample_rate: 22050
spk_embed_dim: 192
llm: !new:cosyvoice.llm.llm.TransformerLM
    text_encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder {{output_size: 8}}
    sampling: !name:cosyvoice.utils.common.ras_sampling {{top_k: 25}}
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 16
    output_size: {mels}
    spk_embed_dim: !ref <spk_embed_dim>
    vocab_size: {codes}
    input_frame_rate: 12.5
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        input_size: 16
        output_size: 16
        attention_heads: 2
        linear_units: 24
        num_blocks: 2
        dropout_rate: 0.1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'block_rel_selfattn'
        block_size: 10
        use_cnn_module: False
        macaron_style: False
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: {mels}
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        cfm_params: !new:omegaconf.DictConfig
            content: {{sigma_min: 1e-06, solver: 'euler', t_scheduler: 'cosine', inference_cfg_rate: 0.7}}
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: {estimator_in}
            out_channels: {mels}
            channels: [16, 16]
            attention_head_dim: 4
            n_blocks: 1
            num_mid_blocks: 1
            num_heads: 2
            act_fn: 'gelu'
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: {mels}
    base_channels: 16
    sampling_rate: !ref <sample_rate>
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params: {{n_fft: 16, hop_len: 4}}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor {{in_channels: {mels}, cond_channels: 8}}
"""
# Convolutions of hift.pt that are stored under weight normalisation.
NORMED = re.compile(
    r"(conv_pre|conv_post|ups\.\d+|f0_predictor\.condnet\.\d+|.*resblocks\.\d+\.convs[12]\.\d+)\.weight"
)


def make_decoder_folder(path: Path, seed: int = 0, codes: int = 64, mels: int = 80) -> Path:
    """Write ``config.yaml``, ``flow.pt`` and ``hift.pt`` of a tiny decoder; gives ``path``.  22,050 Hz, 12.5 tokens/s."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(CONFIG.format(codes=codes, mels=mels, estimator_in=4 * mels))
    config = read_config(path / "config.yaml")
    draws = torch.Generator().manual_seed(seed)
    torch.save(random_weights(Flow(config.flow), draws), path / "flow.pt")
    hift = random_weights(Hift(config.hift), draws)
    hift["conv_post.bias"] -= 2.0  # logarithms of magnitudes: not so loud that the sound is clipped
    torch.save(with_weight_norm(hift), path / "hift.pt")
    return path


def random_weights(module: nn.Module, draws: torch.Generator) -> dict[str, Tensor]:
    """Weights that keep the scale of what passes through them."""
    out = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=draws)
        if name.endswith(("alpha", "norm.weight")) or (name.endswith("weight") and value.dim() == 1):
            out[name] = 1 + 0.1 * noise
        else:
            out[name] = noise / max(1, value[0].numel()) ** 0.5 if value.dim() > 1 else 0.1 * noise
    return out


def with_weight_norm(arrays: dict[str, Tensor], form: int = 0) -> dict[str, Tensor]:
    """The arrays of hift.pt in one of the two forms of weight normalisation."""
    out = {}
    for name, value in arrays.items():
        if NORMED.fullmatch(name):
            base = name.removesuffix(".weight")
            magnitude, direction = (base + end for end in WEIGHT_NORM[form])
            out[magnitude] = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
            out[direction] = 3 * value  # only its direction counts
        else:
            out[name] = value
    return out


# The switches of the published config.json, with small sizes.
TOKENIZER_CONFIG: dict[str, Any] = {
    "architectures": ["WhisperVQEncoder"], "model_type": "whisper", "d_model": 32, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "encoder_layers": 4, "num_mel_bins": 128, "max_source_positions": 1500,
    "activation_function": "gelu", "scale_embedding": False, "encoder_causal_convolution": True,
    "encoder_causal_attention": False, "quantize_causal_encoder": False, "quantize_causal_block_size": 200,
    "pooling_kernel_size": 4, "pooling_type": "avg", "pooling_position": 2, "quantize_position": 2,
    "quantize_vocab_size": 64, "quantize_encoder_only": True, "quantize_ema_decay": 0.99,
}  # fmt: skip
EXTRACTOR = {
    "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128, "n_fft": 400, "hop_length": 160,
    "chunk_length": 30, "n_samples": 480000, "nb_max_frames": 3000, "sampling_rate": 16000, "padding_side": "right",
    "padding_value": 0.0, "return_attention_mask": False,
}  # fmt: skip


def make_tokenizer_folder(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write ``config.json`` (with ``changes``), ``preprocessor_config.json`` and ``model.safetensors``; -> ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    settings = TOKENIZER_CONFIG | changes
    (path / "config.json").write_text(json.dumps(settings))
    (path / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR | {"feature_size": settings["num_mel_bins"]}))
    with torch.device("meta"):
        network = SpeechTokenizer(TokenizerConfig.read(path / "config.json"))
    gen = torch.Generator().manual_seed(seed)
    arrays = {}
    for name, value in network.state_dict().items():
        scale = 0.3 if value.dim() == 1 or name.startswith("embed") else 1.5 * value[0].numel() ** -0.5
        arrays[name] = scale * torch.randn(value.shape, generator=gen) + (1.0 if name.endswith("norm.weight") else 0.0)
    arrays["codebook.weight"] = _codebook(arrays, path, gen)
    arrays["ema_count"] = torch.ones(settings["quantize_vocab_size"])
    arrays["ema_weight"] = arrays["codebook.weight"].clone()
    save_file(arrays, path / "model.safetensors", metadata={"format": "pt"})
    return path


def changing_sound(samples: int, seed: int = 0) -> np.ndarray:
    """A tone in noise; pitch and loudness of both jump every 80 ms.  f32 [samples] at 16 kHz."""
    draw = np.random.default_rng(seed)
    each = draw.uniform(0.0, 1.0, (3, -(-samples // 1280)))
    pitch, tone, noise = np.repeat(each, 1280, axis=1)[:, :samples]
    x = tone * np.sin(2 * np.pi * np.cumsum(80 + 6000 * pitch) / 16_000) + noise**4 * draw.standard_normal(samples)
    return (0.3 * x).astype(np.float32)


def _codebook(arrays: dict[str, torch.Tensor], path: Path, gen: torch.Generator) -> torch.Tensor:
    """States of a sound, each moved a little, so that different sounds have different codes."""
    config = TokenizerConfig.read(path / "config.json")
    network = SpeechTokenizer(config, open_extractor(path, config))
    network.load_state_dict(arrays)
    piece = changing_sound(160_000)[: config.piece_samples]
    with torch.inference_mode():
        states = network.eval()(*network.features([piece]))[0][0]
    drawn = states[torch.randint(len(states), (len(arrays["codebook.weight"]),), generator=gen)]
    return drawn + 0.1 * states.std(0) * torch.randn(drawn.shape, generator=gen)


def make_training_folder(path: Path, published: Path) -> Path:
    """The same weights as a training checkpoint holds them, in two shards, among arrays that encoding does not read."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_bytes((published / "config.json").read_bytes())
    arrays = {f"model.encoder.{name}": value for name, value in load_file(published / "model.safetensors").items()}
    width = arrays["model.encoder.conv1.bias"].shape[0]
    for name in ("layer_norm.weight", "layers.2.fc1.weight", "layers.3.self_attn.k_proj.weight"):
        arrays[f"model.encoder.{name}"] = torch.zeros(width)
    arrays["model.decoder.layers.0.fc1.weight"] = torch.zeros(width)
    names = sorted(arrays)
    shards = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    for file, held in shards.items():
        save_file({name: arrays[name] for name in held}, path / file, metadata={"format": "pt"})
    listed = {name: file for file, held in shards.items() for name in held}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return path
