"""Published neural codecs through transformers, from a local folder; nothing is downloaded (SNAC: `ttt.audio.codecs.snac`).

Letters: ``F`` frames, ``Q`` codebooks, ``C`` codes per codebook, ``S`` wav samples, ``E`` dimensions of a code vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ttt.audio.batches import batches
from ttt.audio.codecs.causal_stream import CausalStream, can_stream
from ttt.audio.codecs.checks import check_codes, check_wave, standardize
from ttt.audio.loading import refuse_dtype
from ttt.audio.streaming import WindowStream
from ttt.errors import CheckpointError, ConfigError, TttError
from ttt.interfaces import Codec, Dtype, StreamDecoder
from ttt.io.pretrained import load_pretrained, refuse_misfits, refuse_nonfinite
from ttt.registry import NonNegativeInt, name_of
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

if TYPE_CHECKING:
    from torch import Tensor


BATCH_SAMPLES = 2**20  # of a batch, 44 s at 24,000 Hz: EnCodec's first layer holds 128 bytes for each


@dataclass
class PublishedCodec(Codec):
    """Base class: a transformers codec saved in ``path``, mono, with the first ``num_codebooks`` of its codebooks.

    ``num_codebooks`` 0 takes all that the model has (at its highest bit rate).
    """

    renamed_fields: ClassVar = {"num_books": "num_codebooks"}

    path: str = ""
    num_codebooks: NonNegativeInt = 0

    model_class: ClassVar[str] = ""
    weights_file: ClassVar[str] = "model.safetensors"
    codec_id = ""

    @property
    def name(self) -> str:
        """The registered name of the codec."""
        return name_of(self)

    def load(self, device: str = "cpu", dtype: str = "float32") -> PublishedCodec:
        """Load the model from ``path``; returns self.  In half precision all but the quantizer is (`run_in`)."""
        mend = f"point codec.path at a folder with config.json and {self.weights_file} of a {self.model_class}"
        if not self.path:
            raise CheckpointError(f"codec.path: not set for codec {self.name!r}: {mend}")
        folder = Path(self.path)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no {self.name} model here (config.json is missing): {mend}")
        try:
            model, missing = self._open(folder)
        except TttError:
            raise
        except Exception as error:  # these libraries raise many kinds for damaged folders
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(f"{folder}: the {self.name} model cannot be loaded ({reason}): {mend}") from error
        if missing:
            raise CheckpointError(
                f"{folder}: the weights lack {len(missing)} arrays of a {self.model_class}, first {missing[0]}: {mend}"
            )
        refuse_nonfinite(folder, model.state_dict().items())
        refuse_dtype(self, "codec", dtype, self._dtypes(self._config(model)))
        digest = hashlib.blake2b(digest_size=4)  # of the stored weights, whatever type they are used in
        for key, value in sorted(model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self._model, self._device = run_in(model.to(device).eval(), getattr(torch, dtype)), torch.device(device)
        config = self._config(model)
        if getattr(config, "audio_channels", 1) != 1:
            raise ConfigError(f"{folder}: the model has {config.audio_channels} channels; only mono codecs can be used")
        self.rate_hz, self.num_codes = int(config.sampling_rate), int(config.codebook_size)
        self._hop = self._samples_per_frame(config)
        self.frame_rate_hz = self.rate_hz / self._hop
        self._encode_rate_hz, self._encode_hop = self._encoder_rate(config)
        self._causal = self._is_causal(config)
        self.exact_stream = self._causal and can_stream(model.decoder) and dtype == "float32"
        available = self._available_codebooks(config)
        if self.num_codebooks > available:
            raise ConfigError(f"codec.num_codebooks: {self.num_codebooks} asked for, {folder} has {available}")
        self.num_codebooks = self.num_codebooks or available
        self.codec_id = f"{self.name}-{digest.hexdigest()}-{self.num_codebooks}"
        return self

    @property
    def encode_rate_hz(self) -> int:
        """Samples per second of the recordings that the model takes."""
        return self._encode_rate_hz

    @torch.inference_mode()
    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Codes of each recording, padded with silence to whole frames: F = ceil(S / samples per frame).

        Recordings share a batch where that leaves their codes alone (`_is_causal`).
        """
        model, hop = self._get(), self._encode_hop
        for wave in waves:
            check_wave(wave, self.encode_rate_hz, self.name)
        frames = [-(-len(wave.samples) // hop) for wave in waves]
        out: dict[int, AudioCodes] = {}
        for rows in batches(frames, BATCH_SAMPLES // hop, padded=self._causal):
            samples = torch.zeros(len(rows), 1, hop * max(frames[i] for i in rows))
            for row, i in zip(samples, rows, strict=True):
                row[0, : len(waves[i].samples)] = torch.tensor(waves[i].samples)
            ids = self._encode(model, samples.to(self._device))[:, : self.num_codebooks].to(torch.int32).cpu().numpy()
            for row, i in zip(ids, rows, strict=True):
                out[i] = AudioCodes(np.ascontiguousarray(row[:, : frames[i]].T), self.frame_rate_hz, self.codec_id)
        return [out[i] for i in range(len(waves))]

    @torch.inference_mode()
    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Sound of each code sequence, S = F * samples per frame, clipped to [-1, 1]; batches as in `encode`."""
        model = self._get()
        for c in codes:
            check_codes(c.ids, self.num_codes, self.num_codebooks, self.name)
        frames = [len(c.ids) for c in codes]
        out = [np.zeros(n * self._hop, dtype=np.float32) for n in frames]
        for rows in batches(frames, BATCH_SAMPLES // self._hop, padded=self._causal):
            ids = torch.zeros(len(rows), self.num_codebooks, max(frames[i] for i in rows), dtype=torch.long)
            for row, i in zip(ids, rows, strict=True):
                row[:, : frames[i]] = torch.from_numpy(codes[i].ids.T)
            sounds = self._decode(model, ids.to(self._device)).reshape(len(rows), -1).float().cpu().numpy()
            for sound, i in zip(sounds, rows, strict=True):
                kept = sound[: len(out[i])]
                out[i][: len(kept)] = kept.clip(-1.0, 1.0)
        return [Waveform(samples, self.rate_hz) for samples in out]

    def open_stream(self) -> StreamDecoder:
        """Decodes with the state of every layer where the decoder is causal; else a moving window with cross-fades."""
        model = self._get()
        if not (self._causal and can_stream(model.decoder)):
            return WindowStream(self)
        check = partial(check_codes, num_codes=self.num_codes, num_codebooks=self.num_codebooks, codec=self.name)
        decode = self._stateful_decode(model)
        return CausalStream(model.decoder, lambda ids: decode(ids.to(self._device)), check)

    def _stateful_decode(self, model: Any) -> Callable[[Tensor], Tensor]:
        """`_decode` for one stream, with what the model itself keeps from call to call."""
        return partial(self._decode, model)

    def code_vectors(self) -> np.ndarray | None:
        """Codebook entries, standardised: f32 [Q, C, E]."""
        codebooks = self._codebooks(self._get())[: self.num_codebooks]
        return standardize(torch.stack([b.detach().float().cpu() for b in codebooks]).numpy())

    def _get(self) -> Any:
        if not hasattr(self, "_model"):
            raise CheckpointError(f"codec {self.name!r} holds no weights yet: call load() (codec.path)")
        return self._model

    def _open(self, folder: Path) -> tuple[Any, list[str]]:
        """The model in a folder, and names of arrays that its weights lack."""
        import transformers

        model, info = load_pretrained(getattr(transformers, self.model_class), folder, output_loading_info=True)
        refuse_misfits(folder, {**info, "missing_keys": ()}, strict=False)
        return model, sorted(info["missing_keys"])

    def _config(self, model: Any) -> Any:
        """The object that holds rates and sizes: ``sampling_rate``, ``codebook_size``, ..."""
        return model.config

    def _dtypes(self, config: Any) -> tuple[str, ...]:
        """Types that the model's layers can compute in."""
        return get_args(Dtype)

    def _samples_per_frame(self, config: Any) -> int:
        return int(np.prod(config.upsampling_ratios))

    def _encoder_rate(self, config: Any) -> tuple[int, int]:
        """(rate of the recordings, samples per frame), where they are not those of the decoded sound."""
        return self.rate_hz, self._hop

    def _is_causal(self, config: Any) -> bool:
        """Does what follows a frame change neither its code nor its sound?  Then rows may be padded on the right to share a batch.

        Else only rows of one length do.
        """
        return False

    def _available_codebooks(self, config: Any) -> int:
        raise NotImplementedError

    def _encode(self, model: Any, samples: Tensor) -> Tensor:
        """f32 [B, 1, S] -> i64 [B, Q, F]."""
        raise NotImplementedError

    def _decode(self, model: Any, ids: Tensor) -> Tensor:
        """i64 [B, Q, F] -> samples [B, ...]."""
        return model.decode(audio_codes=ids).audio_values

    def _codebooks(self, model: Any) -> list[Tensor]:
        raise NotImplementedError


def run_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``model`` with all its parts but quantizers in ``dtype``; what enters and leaves a part is converted.

    Distances to codebook entries are taken in float32: rounded, they would choose other codes.
    """

    def enter(part: nn.Module, given: Any, named: Any) -> Any:
        return convert((given, named), dtype)

    def leave(part: nn.Module, given: Any, result: Any) -> Any:
        return convert(result, torch.float32)

    for name, part in model.named_children() if dtype != torch.float32 else ():
        if "quantizer" not in name:
            part.to(dtype)
            part.register_forward_pre_hook(enter, with_kwargs=True)
            part.register_forward_hook(leave)
    return model


def convert(values: Any, dtype: torch.dtype) -> Any:
    """``values`` with every floating-point tensor in it in ``dtype``."""
    return tree_map_only(torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)


@CODEC.register("encodec")
@dataclass
class Encodec(PublishedCodec):
    """EnCodec (mono, not chunked), for example the published models of 24 kHz (75 frames/s) and 32 kHz (4 codebooks, 50/s)."""

    model_class = "EncodecModel"

    def _is_causal(self, config: Any) -> bool:
        return config.use_causal_conv and config.norm_type == "weight_norm"  # the other norm is taken over time

    def _available_codebooks(self, config: Any) -> int:
        if config.chunk_length_s is not None or config.normalize:
            raise ConfigError(f"{self.path}: EnCodec models that cut into chunks or normalise loudness cannot be used")
        return int(1000 * config.target_bandwidths[-1] // (self.frame_rate_hz * np.log2(config.codebook_size)))

    def _encode(self, model: Any, samples: Tensor) -> Tensor:
        return model.encode(samples, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0]

    def _decode(self, model: Any, ids: Tensor) -> Tensor:
        return model.decode(audio_codes=ids[None], audio_scales=[None]).audio_values

    def _codebooks(self, model: Any) -> list[Tensor]:
        return [layer.codebook.embed for layer in model.quantizer.layers]


@CODEC.register("dac")
@dataclass
class Dac(PublishedCodec):
    """Descript Audio Codec."""

    model_class = "DacModel"

    def _samples_per_frame(self, config: Any) -> int:
        return int(config.hop_length)

    def _available_codebooks(self, config: Any) -> int:
        return int(config.n_codebooks)

    def _encode(self, model: Any, samples: Tensor) -> Tensor:
        return model.encode(samples, n_quantizers=self.num_codebooks).audio_codes

    def _codebooks(self, model: Any) -> list[Tensor]:
        return [quantizer.codebook.weight for quantizer in model.quantizer.quantizers]


@CODEC.register("mimi")
@dataclass
class Mimi(PublishedCodec):
    """Mimi: 12.5 frames per second, the first codebook carries most of the meaning."""

    model_class = "MimiModel"

    def _stateful_decode(self, model: Any) -> Callable[[Tensor], Tensor]:
        from transformers import DynamicCache

        cache = DynamicCache(config=model.decoder.decoder_transformer.config)
        return lambda ids: model.decode(audio_codes=ids, decoder_past_key_values=cache).audio_values

    def _is_causal(self, config: Any) -> bool:
        return config.use_causal_conv

    def _samples_per_frame(self, config: Any) -> int:
        return round(config.sampling_rate / config.frame_rate)

    def _available_codebooks(self, config: Any) -> int:
        return int(config.num_quantizers)

    def _encode(self, model: Any, samples: Tensor) -> Tensor:
        return model.encode(samples, num_quantizers=self.num_codebooks).audio_codes

    def _codebooks(self, model: Any) -> list[Tensor]:
        quantizer = model.quantizer
        parts = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
        return [layer.codebook.embed for part in parts for layer in part.layers]
