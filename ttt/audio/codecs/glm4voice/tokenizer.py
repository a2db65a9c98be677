"""GLM-4-Voice's speech tokenizer (arXiv 2412.02612, section 2.1): the first layers of Whisper's encoder, pooled and quantised.

After ``speech_tokenizer/modeling_whisper.py`` (class ``WhisperVQEncoder``) and ``speech_tokenizer/utils.py`` (function
``extract_speech_token``) of the official program.  Layers and features are those of transformers.

Letters: ``B`` rows, ``S`` samples at 16 kHz, ``M`` mel channels, ``T`` mel frames of 10 ms, ``N`` hidden frames of 20 ms, ``K``
tokens (of 80 ms as published), ``D`` width, ``C`` codes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ttt.audio.weights import give_weights
from ttt.errors import CheckpointError, ConfigError
from ttt.io.json_input import read_json
from ttt.io.pretrained import load_settings, refuse_pickles
from ttt.packed_weights import pack
from ttt.registry import NonNegativeInt, PositiveInt
from ttt.registry.core import build_dataclass

RATE_HZ = 16_000
HOP_SAMPLES = 160  # of a mel frame
FRAME_SAMPLES = 2 * HOP_SAMPLES  # of a hidden frame: the second convolution has stride 2
PIECE_S = 30  # longer recordings are cut
TRAINING_PREFIX = "model.encoder."  # of the names in training checkpoints
MEND = "name a folder with config.json and model.safetensors of a GLM-4-Voice speech tokenizer, or copy it again"


@dataclass(frozen=True)
class TokenizerConfig:
    """What ``config.json`` says about encoding; a key that it lacks has the value here.

    ``pooling_kernel_size`` 0: no pooling; ``quantize_causal_block_size`` 0: every frame sees all others.
    """

    num_mel_bins: PositiveInt = 80
    d_model: PositiveInt = 384
    encoder_attention_heads: PositiveInt = 6
    encoder_ffn_dim: PositiveInt = 1536
    activation_function: Literal["gelu", "gelu_new", "quick_gelu", "relu", "silu"] = "gelu"
    max_source_positions: PositiveInt = 1500
    encoder_causal_convolution: bool = False
    encoder_causal_attention: bool = False
    quantize_causal_encoder: bool = False
    quantize_causal_block_size: NonNegativeInt = 0
    pooling_kernel_size: NonNegativeInt = 0
    pooling_type: Literal["max", "avg"] = "max"
    pooling_position: NonNegativeInt = 0
    quantize_position: PositiveInt = 16
    quantize_vocab_size: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if not self.quantize_vocab_size:
            raise ValueError("quantize_vocab_size is missing: an encoder without a codebook")
        if self.d_model % self.encoder_attention_heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of {self.encoder_attention_heads} heads")
        if self.pooling_kernel_size and not 1 <= self.pooling_position <= self.quantize_position:
            raise ValueError(
                f"pooling_position must lie in 1 to quantize_position {self.quantize_position}, got {self.pooling_position}"
            )
        if 0 < self.quantize_causal_block_size < self.pooling:
            raise ValueError(
                f"quantize_causal_block_size {self.quantize_causal_block_size} is less than the {self.pooling} frames of a token"
            )
        if self.max_source_positions < self.pooling:
            raise ValueError(f"max_source_positions {self.max_source_positions} is less than a token")

    @classmethod
    def read(cls, path: Path) -> TokenizerConfig:
        """Raises `CheckpointError` naming the file, the key and what is wrong."""
        content = read_json(path, MEND, error=CheckpointError)
        names = {f.name for f in fields(cls)}
        try:
            return build_dataclass(cls, {k: v for k, v in content.items() if k in names and v is not None}, "")
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}; {MEND}") from error

    @property
    def pooling(self) -> int:
        """Hidden frames of a token."""
        return self.pooling_kernel_size or 1

    @property
    def token_samples(self) -> int:
        """Samples of a token."""
        return FRAME_SAMPLES * self.pooling

    @property
    def piece_samples(self) -> int:
        """Samples that are encoded at a time: 30 s, or as many whole tokens as there are positions for."""
        positions = min(self.max_source_positions, PIECE_S * RATE_HZ // FRAME_SAMPLES)
        return positions // self.pooling * self.token_samples


class SpeechTokenizer(nn.Module):
    """The network; names and shapes of its arrays are those of the published file.  ``extractor``: `open_extractor`."""

    def __init__(self, config: TokenizerConfig, extractor: Any = None) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

        super().__init__()
        self.config, self.extractor = config, extractor
        width = config.d_model
        whisper = WhisperConfig(
            d_model=width, encoder_attention_heads=config.encoder_attention_heads, encoder_ffn_dim=config.encoder_ffn_dim,
            activation_function=config.activation_function, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
            attn_implementation="sdpa",
        )  # fmt: skip
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(whisper) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        # Read by the layers behind the quantiser, which encoding does not need.
        self.embed_positions2 = nn.Embedding(-(-config.max_source_positions // config.pooling), width)

    def forward(self, features: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mels f32 [B, M, T] and which frames are no padding, bool [B, T] -> states [B, K, D], bool [B, K].

        T: whole tokens.
        """
        config = self.config
        padding = (2, 0) if config.encoder_causal_convolution else (1, 1)
        x = features.to(self.conv1.weight.dtype)
        x = functional.gelu(self.conv1(functional.pad(x, padding)))
        x = functional.gelu(self.conv2(functional.pad(x, padding)))
        x = x.transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        real, block = real[:, ::2], config.quantize_causal_block_size
        allowed = self.allowed(real, block)
        for number, layer in enumerate(self.layers, 1):
            out = layer(x, attention_mask=allowed[:, None])
            x = out[0] if isinstance(out, tuple) else out  # a tuple in the first releases of transformers 5
            if number == config.pooling_position and config.pooling_kernel_size:
                pool = functional.avg_pool1d if config.pooling_type == "avg" else functional.max_pool1d
                x = pool(x.transpose(1, 2), config.pooling).transpose(1, 2)
                real, block = real[:, :: config.pooling], block // config.pooling
                allowed = self.allowed(real, block)
        return x, real

    def allowed(self, real: Tensor, block: int) -> Tensor:
        """May a frame (second axis) see another one (last)?  bool [B, N], frames in a block (0: no blocks) -> bool [B, N, N].

        Strictly causal attention sees padding too, which stands behind the recording.
        """
        at = torch.arange(real.shape[1], device=real.device)
        past = at[None, :] <= at[:, None]
        if self.config.encoder_causal_attention or self.config.quantize_causal_encoder:
            return past.expand(len(real), -1, -1)
        if not block:
            return real[:, None, :].expand(-1, real.shape[1], -1)
        return (past | (at[None, :] // block == at[:, None] // block)) & real[:, None, :]

    def codes(self, states: Tensor) -> Tensor:
        """The nearest entry of the codebook, always found in float32: [..., D] -> i64 [...]."""
        return self.distances(states).argmin(-1)

    def distances(self, states: Tensor) -> Tensor:
        """Squared distances to all entries of the codebook: [..., D] -> f32 [..., C]."""
        states, codebook = states.float(), self.codebook.weight.float()
        lengths = states.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
        return lengths - 2 * states @ codebook.T

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Tokens of one recording at 16 kHz, S > 0: f32 [S] -> i32 [ceil(S / samples per token)]."""
        with torch.inference_mode():
            pieces = [self.codes(states) for states in self.pieces(samples)]
        return torch.cat(pieces).to("cpu", torch.int32).numpy()

    def pieces(self, samples: np.ndarray) -> Iterator[Tensor]:
        """The states [K, D] of each piece of a recording f32 [S], one piece at a time."""
        device = self.codebook.weight.device
        for start in range(0, len(samples), self.config.piece_samples):
            piece = samples[start : start + self.config.piece_samples]
            # The official program pads the last piece to the others' 30 s.  One token more gives the same features and states.
            features, real = self.features([piece], more_tokens=int(start > 0))
            states, real = self(features.to(device), real.to(device))
            yield states[real]

    def features(self, pieces: Sequence[np.ndarray], more_tokens: int = 0) -> tuple[Tensor, Tensor]:
        """Log-mels f32 [B, M, T] of some pieces f32 [S], and which frames are no padding, bool [B, T].

        Padded with zeros to the longest piece in whole tokens, and by ``more_tokens``, at most to a whole piece.
        """
        whole = self.config.token_samples
        samples = (-(-max(map(len, pieces)) // whole) + more_tokens) * whole
        rows = np.zeros((len(pieces), min(samples, self.config.piece_samples)), dtype=np.float32)
        for row, piece in zip(rows, pieces, strict=True):
            row[: len(piece)] = piece
        made = self.extractor(rows, sampling_rate=RATE_HZ, padding="do_not_pad", return_tensors="pt")["input_features"]
        frames = torch.tensor([-(-len(piece) // HOP_SAMPLES) for piece in pieces])
        return made, torch.arange(made.shape[-1])[None, :] < frames[:, None]


def open_tokenizer(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> SpeechTokenizer:
    """The network of a folder, ready to encode.

    The folder is the published one or a training checkpoint, whose names begin with ``model.encoder.``; what only training
    needs (``ema_*``, later layers) is left out.  The codebook stays float32 whatever ``dtype`` says.
    Raises `CheckpointError` for a folder that is none, and for the first array that is missing or has another shape.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no speech tokenizer here (config.json is missing); {MEND}")
    config = TokenizerConfig.read(folder / "config.json")
    with torch.device("meta"):
        network = SpeechTokenizer(config, open_extractor(folder, config))
    give_weights(network, _read_weights(folder, config, dtype), folder, MEND)
    network.requires_grad_(False).eval().to(device)
    pack(network.layers)  # twice as fast on a CPU, for a second copy of the layers' weights
    return network


def open_extractor(folder: Path, config: TokenizerConfig) -> Any:
    """The `WhisperFeatureExtractor` that ``preprocessor_config.json`` describes, or the published one where the file is missing."""
    from transformers import WhisperFeatureExtractor

    expected = {
        "feature_size": config.num_mel_bins, "sampling_rate": RATE_HZ, "hop_length": HOP_SAMPLES, "chunk_length": PIECE_S,
    }  # fmt: skip
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return WhisperFeatureExtractor(**expected)
    content = read_json(path, MEND, error=CheckpointError)
    for key, value in expected.items():
        if content.get(key, value) != value:
            raise CheckpointError(f"{path}: {key} is {content[key]!r}, the tokenizer needs {value}; {MEND}")
    return load_settings(WhisperFeatureExtractor, folder)


def _read_weights(folder: Path, config: TokenizerConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arrays that encoding needs, under their published names."""
    from safetensors import SafetensorError, safe_open

    refuse_pickles(folder)
    tensors: dict[str, Tensor] = {}
    path = folder
    try:
        with contextlib.ExitStack() as opened:
            found: dict[str, Any] = {}
            for path in sorted(folder.glob("*.safetensors")):
                file = opened.enter_context(safe_open(path, framework="pt"))
                found.update(dict.fromkeys(file.keys(), file))
            prefix = TRAINING_PREFIX if any(name.startswith(TRAINING_PREFIX) for name in found) else ""
            for name, file in found.items():
                own = name.removeprefix(prefix)
                if name.startswith(prefix) and not _for_training(own, config.quantize_position):
                    tensors[own] = file.get_tensor(name).to(torch.float32 if own == "codebook.weight" else dtype)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error}); {MEND}") from error
    return tensors


def _for_training(name: str, layers: int) -> bool:
    """Is this an array that only training reads: statistics of the codebook, or layers behind the quantiser?"""
    part, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    behind = part == "layers" and number.isdigit() and int(number) >= layers
    return behind or part == "layer_norm" or part.startswith("ema_")
