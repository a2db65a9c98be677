"""Hidden states of a published speech encoder, one vector per frame: HuBERT, WavLM, wav2vec 2.0 and others like them, Whisper.

Letters: ``S`` wav samples, ``F`` frames, ``f`` frames of a piece, ``D`` dimensions of a hidden state.

A recording has F = ceil(S / hop) frames.  Convolutions without padding give one or two fewer, because the last windows would
reach beyond the sound; these last frames repeat the last vector, so all others are what the published programs compute.
Recordings longer than ``piece_s`` are cut into pieces of (almost) equal length, which do not see each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ttt.audio.weights import weights_digest
from ttt.errors import CheckpointError, ConfigError, TttError
from ttt.io.json_input import read_json
from ttt.io.pretrained import load_pretrained, load_settings, refuse_misfits, refuse_nonfinite

RATE_HZ = 16_000  # of the recordings that all of them take
MEND = "point codec.encoder at a folder with config.json and model.safetensors of a speech encoder (HuBERT, WavLM, Whisper, ...)"
Normalize = Literal["folder", "yes", "no"]


@dataclass(frozen=True)
class FrameSettings:
    """How sound becomes frames.

    ``layer``: the hidden state behind the layer of this number, from 1 on, as fairseq's ``extract_features`` gives it
    for ``output_layer`` (so before the norm that large models have behind their last layer).
    ``pad``: zeros put before and behind the sound.  ``normalize``: bring it to mean 0 and variance 1; ``folder``: as
    ``preprocessor_config.json`` says.  ``piece_s``: the longest piece that is encoded at once.
    """

    layer: int = 9
    pad: int = 0
    normalize: Normalize = "folder"
    piece_s: float = 100.0


class SpeechEncoder:
    """The encoder of a local folder up to one of its layers.

    ``hop``: samples per frame; ``dim``: D; ``digest``: stands for the weights that are used.
    """

    def __init__(self, folder: str | Path, settings: FrameSettings, device: str = "cpu", dtype: str = "float32") -> None:
        if not str(folder):
            raise CheckpointError(f"codec.encoder: not set: {MEND}")
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no speech encoder here (config.json is missing): {MEND}")
        self.settings = settings
        config, model = _open(folder)
        self._whisper = config.model_type == "whisper"
        layers = config.encoder_layers if self._whisper else config.num_hidden_layers
        if settings.layer > layers:
            raise ConfigError(f"codec.layer: {settings.layer} asked for, the encoder in {folder} has {layers} layers")
        self._normalize = _normalizes(folder, self._whisper) if settings.normalize == "folder" else settings.normalize == "yes"
        longest = settings.piece_s * RATE_HZ
        if self._whisper:
            if settings.pad:
                raise ConfigError(f"codec.pad: Whisper pads inside ({folder}); set it to 0")
            model = _whisper_part(model, settings.layer)
            self._mel = _whisper_mel(config)
            self.hop, self.dim = 2 * int(self._mel.hop_length), int(config.d_model)
            longest = min(longest, config.max_source_positions * self.hop)
        else:
            _cut_layers(model, settings.layer)
            self.hop, self.dim = math.prod(config.conv_stride), int(config.hidden_size)
            self._window = 1  # samples that a frame looks at before the attention
            for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
                self._window = (self._window - 1) * stride + kernel
        self._piece = max(1, int(longest) // self.hop)  # frames
        refuse_nonfinite(folder, model.state_dict().items())
        self.digest = weights_digest(model.state_dict())
        self._model = model.to(device=device, dtype=getattr(torch, dtype)).eval()
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)

    @torch.inference_mode()
    def features(self, samples: Tensor) -> Tensor:
        """Hidden states of one recording: f32 [S] -> f32 [F, D] with F = ceil(S / hop)."""
        samples = samples.to(self._device)
        if self._normalize:  # as transformers' Wav2Vec2FeatureExtractor
            samples = (samples - samples.mean()) / torch.sqrt(samples.var(correction=0) + 1e-7)
        return torch.cat([self._encode(samples[a:b]) for a, b in self._pieces(len(samples))])

    def _pieces(self, length: int) -> Iterator[tuple[int, int]]:
        frames = -(-length // self.hop)
        count = -(-frames // self._piece)
        for i in range(count):
            yield frames * i // count * self.hop, min(frames * (i + 1) // count * self.hop, length)

    def _encode(self, samples: Tensor) -> Tensor:
        frames = -(-len(samples) // self.hop)
        if self._whisper:
            return self._encode_mel(torch.nn.functional.pad(samples, (0, frames * self.hop - len(samples))))
        pad = self.settings.pad
        behind = max(0, self._window - len(samples) - 2 * pad)  # a sound shorter than one window
        padded = torch.nn.functional.pad(samples, (pad, pad + behind))
        states = self._model(padded[None].to(self._dtype)).last_hidden_state[0, :frames].float()
        return torch.cat([states, states[-1:].expand(frames - len(states), -1)])

    def _encode_mel(self, samples: Tensor) -> Tensor:
        """Whisper's layers on sound of any length up to 30 s, f32 [f * hop] -> f32 [f, D]; silence behind it is not encoded."""
        mel = self._mel(
            samples.cpu().numpy(), sampling_rate=RATE_HZ, padding="do_not_pad", truncation=False, return_tensors="pt"
        ).input_features.to(self._device, self._dtype)  # fmt: skip
        model = self._model
        x = torch.nn.functional.gelu(model.conv2(torch.nn.functional.gelu(model.conv1(mel)))).transpose(1, 2)
        x = x + model.embed_positions.weight[: x.shape[1]]
        for layer in model.layers:
            x = layer(x, None)
        return model.layer_norm(x)[0].float()


def _open(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel

    try:
        config = load_settings(AutoConfig, folder)
        if config.model_type != "whisper" and not (hasattr(config, "conv_stride") and hasattr(config, "conv_kernel")):
            raise CheckpointError(f"{folder}: {config.model_type!r} is no speech encoder that takes samples: {MEND}")
        model, info = load_pretrained(AutoModel, folder, output_loading_info=True)
    except TttError:
        raise
    except Exception as error:  # transformers raises many kinds for damaged folders
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{folder}: the speech encoder cannot be loaded ({reason}): {MEND}") from error
    # A vector that only training uses is often left out of published weights, and heads of other tasks are often in them.
    refuse_misfits(folder, info, may_lack=lambda name: name.endswith("masked_spec_embed"), strict=False)
    if not hasattr(model.encoder, "layers"):
        raise CheckpointError(f"{folder}: {config.model_type!r} has no list of layers: {MEND}")
    return config, model


def _cut_layers(model: Any, layer: int) -> None:
    """Leave out what comes behind ``layer``: the last hidden state is then ``hidden_states[layer]`` of the whole model."""
    inner = model.encoder
    if getattr(model.config, "do_stable_layer_norm", False):
        inner.layer_norm = torch.nn.Identity()  # this kind normalises behind its last layer
    inner.layers = inner.layers[:layer]
    if getattr(model, "adapter", None) is not None:
        model.adapter = None  # shortens the sequence behind the last layer


def _whisper_part(model: Any, layer: int) -> Any:
    encoder = model.encoder
    if layer < len(encoder.layers):
        encoder.layer_norm = torch.nn.Identity()
    encoder.layers = encoder.layers[:layer]
    return encoder


def _whisper_mel(config: Any) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=config.num_mel_bins)


def _normalizes(folder: Path, whisper: bool) -> bool:
    """What the folder says about normalising sound."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings = read_json(folder / name, "copy the folder again", error=CheckpointError)
            settings = settings.get("feature_extractor", settings)
            rate = settings.get("sampling_rate", RATE_HZ)
            if rate != RATE_HZ:
                raise ConfigError(f"{folder / name}: the encoder takes {rate} Hz; only encoders of {RATE_HZ} Hz can be used")
            return bool(settings.get("do_normalize", not whisper))
    if whisper:
        return False
    raise ConfigError(
        f"{folder}: no preprocessor_config.json says whether sound is normalised: set codec.normalize to yes or no "
        "(published programs for HuBERT base: no)"
    )
