"""A tiny speech tokenizer of GLM-4-Voice in the published file format, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ttt.audio.codecs.glm4voice.tokenizer import SpeechTokenizer, TokenizerConfig, open_extractor

# The switches of the published config.json, with small sizes.
CONFIG: dict[str, Any] = {
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
    settings = CONFIG | changes
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
    network = SpeechTokenizer(TokenizerConfig.read(path / "config.json"))
    network.load_state_dict(arrays)
    piece = changing_sound(160_000)[: network.config.piece_samples]
    with torch.inference_mode():
        states = network.eval()(*network.features([piece], open_extractor(path, network.config)))[0][0]
    drawn = states[torch.randint(len(states), (len(arrays["codebook.weight"]),), generator=gen)]
    return drawn + 0.1 * states.std(0) * torch.randn(drawn.shape, generator=gen)


def make_training_folder(path: Path, published: Path) -> Path:
    """The same weights as a training checkpoint holds them, in two shards, among arrays that encoding does not read."""
    from safetensors.torch import load_file

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
