"""Any audio tokenizer of transformers (X-Codec 2, NeuCodec, Higgs Audio v2, X-Codec, DAC, ...) from a local folder.

What a model can do is found out when it is loaded: by the signatures of its class before weights are read, then by
encoding and decoding a few frames.  Letters: ``B`` rows, ``F`` frames, ``Q`` codebooks, ``S`` wav samples.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ttt.audio.codecs.checks import check_wave, standardize
from ttt.audio.codecs.published import PublishedCodec
from ttt.audio.loading import refuse_dtype
from ttt.errors import ConfigError
from ttt.io.pretrained import load_pretrained, load_settings, refuse_misfits
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

if TYPE_CHECKING:
    from torch import Tensor

_FRAMES = 8  # of the trial
_OWN_NAMES = ("encodec", "mimi", "snac")  # model types with a codec of their own


@CODEC.register("transformers_codec")
@dataclass
class TransformersCodec(PublishedCodec):
    """Any audio tokenizer of transformers with codes (X-Codec 2, NeuCodec, Higgs Audio v2, X-Codec, DAC) in the folder ``path``.

    Rates, codebooks and codes are the model's.  Models that take features beside samples need their feature extractor in the
    folder too (``preprocessor_config.json``).
    """

    model_class = "model of AutoModelForAudioTokenization"

    def load(self, device: str = "cpu", dtype: str = "float32") -> TransformersCodec:
        """Load the model and try it.  Raises `ConfigError` for one that gives no codes, or others than its configuration says."""
        super().load(device, dtype)
        noise = 0.1 * np.random.default_rng(0).standard_normal(_FRAMES * self._encode_hop)
        wave = Waveform(noise.astype(np.float32), self.encode_rate_hz)
        asked = f"{self.path}: {type(self._model).__name__}"
        try:
            (codes,) = self.encode([wave])
            with torch.inference_mode():
                ids = torch.tensor(codes.ids.T, dtype=torch.long, device=self._device)[None]
                samples = self._decode(self._model, ids).numel()
        except Exception as error:  # models fail in as many ways as there are models
            if dtype != "float32" and isinstance(error, RuntimeError):
                refuse_dtype(self, "codec", dtype)
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{asked} cannot encode and decode {_FRAMES} frames ({reason}); it cannot be used") from error
        (frames, books), largest = codes.ids.shape, int(codes.ids.max(initial=0))
        if (frames, books) != (_FRAMES, self.num_codebooks) or not 0 <= codes.ids.min(initial=0) <= largest < self.num_codes:
            raise ConfigError(
                f"{asked} gives {frames} frames of {books} codes up to {largest} for {_FRAMES} frames of sound, its configuration "
                f"says {_FRAMES} of {self.num_codebooks} below {self.num_codes}; it cannot be used"
            )
        if abs(samples - _FRAMES * self._hop) >= self._hop:
            raise ConfigError(
                f"{asked} makes {samples} samples of {_FRAMES} frames, its configuration says {_FRAMES * self._hop}; "
                "it cannot be used"
            )
        return self

    @torch.inference_mode()
    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Codes of each recording, F = ceil(S / samples per frame); each by itself where the model takes features."""
        if self._extractor is None:
            return super().encode(waves)
        out = []
        for wave in waves:
            check_wave(wave, self.encode_rate_hz, self.name)
            frames = -(-len(wave.samples) // self._encode_hop)
            ids = self._from_features(wave.samples)
            if ids.shape[1] < frames:  # NeuCodec leaves out a last frame that is not full
                ids = self._from_features(np.pad(wave.samples, (0, frames * self._encode_hop - len(wave.samples))))
            kept = ids[: self.num_codebooks, :frames].T.to(torch.int32).cpu().numpy()
            out.append(AudioCodes(np.ascontiguousarray(kept), self.frame_rate_hz, self.codec_id))
        return out

    def _from_features(self, samples: np.ndarray) -> Tensor:
        """f32 [S] -> i64 [Q, F], as the model's own pair of extractor and encoder makes them."""
        model = self._get()
        given = self._extractor(samples, sampling_rate=self.encode_rate_hz, return_tensors="pt").to(self._device)
        takes = inspect.signature(model.encode).parameters
        return model.encode(**{name: value for name, value in given.items() if name in takes}).audio_codes[0]

    def code_vectors(self) -> np.ndarray | None:
        """Codebook entries, standardised: f32 [Q, C, E]; None where the codes have none (finite scalar quantisation)."""
        tables = self._codebooks(self._get())[: self.num_codebooks]
        alike = len(tables) == self.num_codebooks and len({t.shape for t in tables}) == 1
        return standardize(torch.stack([t.detach().float().cpu() for t in tables]).numpy()) if alike else None

    def _open(self, folder: Path) -> tuple[Any, list[str]]:
        import transformers

        config = load_settings(transformers.AutoConfig, folder)
        cls = _class_of(config)
        wrong = "there is no audio tokenizer of this type" if cls is None else _lacks(cls)
        wrong = wrong and f"{wrong}; point codec.path at the folder of an audio tokenizer that has codes"
        if config.model_type in _OWN_NAMES:
            wrong = f"it has a codec of its own: set codec.name={config.model_type}"
        if wrong:
            raise ConfigError(f"{folder}: model type {config.model_type!r}: {wrong}")
        needs_features = "input_features" in inspect.signature(cls.encode).parameters
        self._extractor: Any = load_settings(transformers.AutoFeatureExtractor, folder) if needs_features else None
        model, info = load_pretrained(cls, folder, output_loading_info=True)
        refuse_misfits(folder, {**info, "missing_keys": ()}, strict=False)
        return model, sorted(info["missing_keys"])

    def _config(self, model: Any) -> Any:
        """Rates and sizes under one name each; models call them by several."""
        config = model.config
        hop = _first(config, "frame_size", "hop_length")
        rate = _first(config, "output_sampling_rate", "sampling_rate", "sample_rate")
        levels = getattr(config, "quantization_levels", None)
        return SimpleNamespace(
            sampling_rate=rate, hop_length=hop, audio_channels=getattr(config, "audio_channels", 1),
            encode_rate_hz=getattr(config, "input_sampling_rate", rate), encode_hop=getattr(config, "encoder_hop_length", hop),
            codebook_size=math.prod(levels) if levels else _first(config, "codebook_size"),
            num_codebooks=1 if levels else _first(config, "num_codebooks", "n_codebooks", "num_quantizers"),
        )  # fmt: skip

    def _encoder_rate(self, config: Any) -> tuple[int, int]:
        return int(config.encode_rate_hz), int(config.encode_hop)

    def _samples_per_frame(self, config: Any) -> int:
        return int(config.hop_length)

    def _available_codebooks(self, config: Any) -> int:
        return int(config.num_codebooks)

    def _encode(self, model: Any, samples: Tensor) -> Tensor:
        takes, more = inspect.signature(model.encode).parameters, {}
        if "bandwidth" in takes:
            more["bandwidth"] = model.config.target_bandwidths[-1]
        return model.encode(samples, **more, return_dict=True).audio_codes

    def _decode(self, model: Any, ids: Tensor) -> Tensor:
        if ids.shape[2] == 1 and self._extractor is not None:  # their norms over time need two frames; the second is cut off
            ids = ids.expand(-1, -1, 2)
        return super()._decode(model, ids)

    def _codebooks(self, model: Any) -> list[Tensor]:
        layers = getattr(model.quantizer, "quantizers", [])
        tables = [getattr(getattr(layer, "codebook", None), "embed", None) for layer in layers]
        tables = [getattr(layer.codebook, "weight", None) if t is None else t for t, layer in zip(tables, layers, strict=True)]
        return [t for t in tables if t is not None]


def _class_of(config: Any) -> Any:
    """The class of transformers for audio tokenization, or else the bare model, of a configuration; None if it has none."""
    from transformers.models.auto import modeling_auto as auto

    for mapping in (auto.MODEL_FOR_AUDIO_TOKENIZATION_MAPPING, auto.MODEL_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    return None


def _lacks(cls: Any) -> str:
    """Why a class cannot turn sound into codes and back; empty: it can."""
    for name, may_need in (("encode", {"self", "input_values", "input_features"}), ("decode", {"self", "audio_codes"})):
        method = getattr(cls, name, None)
        if method is None:
            return f"{cls.__name__} has no method {name!r}"
        takes = inspect.signature(method).parameters
        needs = {n for n, p in takes.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if needs - may_need or (name == "decode" and "audio_codes" not in takes):
            return f"{cls.__name__}.{name} takes {', '.join(sorted(needs - {'self'}))}, so it works without codes"
    return ""


def _first(config: Any, *names: str) -> Any:
    for name in names:
        value = getattr(config, name, None)
        if value:
            return value
    raise ConfigError(f"model type {config.model_type!r}: its configuration has none of {', '.join(names)}; it cannot be used")
