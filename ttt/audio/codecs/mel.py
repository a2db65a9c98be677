"""Codecs that are fitted on a corpus in seconds: log-mels, PCA, residual k-means; Griffin-Lim turns mels back into sound.

Letters: ``F`` frames, ``S`` sub-frames per frame (1 unless codebooks have several rates), ``Q`` code positions per
frame, ``C`` codes per codebook, ``T`` mel frames, ``M`` mel channels, ``E`` dimensions of a sub-frame after PCA, ``D``
= S * E of a frame.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ttt.audio.codecs.checks import check_codes, check_wave, standardize
from ttt.audio.hierarchy import join, positions, split
from ttt.audio.kmeans import fit_neighbour_tables, kmeans, look_up, nearest
from ttt.audio.loading import refuse_dtype
from ttt.audio.mel_stream import MelStream
from ttt.audio.signal import MelSettings, griffin_lim, log_mel, mel_to_linear
from ttt.audio.weights import load_weights, save_weights, weights_digest
from ttt.errors import CheckpointError, DataError
from ttt.interfaces import StreamDecoder, TrainableCodec
from ttt.registry import NonNegativeInt, PositiveFloat, PositiveInt, name_of
from ttt.registry.core import with_new_names
from ttt.registry.families import CODEC
from ttt.rng import generator
from ttt.types import AudioCodes, Waveform

log = logging.getLogger(__name__)


@dataclass
class MelCodec(TrainableCodec):
    """Base class: the mels of a frame, split into S sub-frames and reduced by PCA, are one vector; each codebook quantises the
    residual of the codebooks before it.

    The decoder adds to each frame a correction that depends on its first code and on those of its ``context``
    neighbours (additive tables, fitted after the k-means), which smooths the borders between frames.
    """

    renamed_fields: ClassVar = {"floor": "min_magnitude", "num_books": "num_codebooks"}

    path: str = ""  # folder with codec.safetensors and codec.json
    frame_rate_hz: PositiveFloat = 16.667  # 100 / a whole number of 10 ms mel frames
    num_codes: PositiveInt = 1024  # codes of a codebook
    pca_dim: PositiveInt = 40  # dimensions kept of a sub-frame
    mels: PositiveInt = 40
    min_magnitude: PositiveFloat = 0.02  # smaller mel magnitudes are raised to this before the log
    level: bool = False  # bring each utterance's loudest mel frame to the same level first
    context: NonNegativeInt = 2  # neighbours the decoder looks at, on either side
    max_frames: PositiveInt = 100_000  # frames (not mel frames) used for fitting
    iterations: PositiveInt = 10  # of k-means
    griffin_lim_iterations: PositiveInt = 32

    rate_hz = 16_000
    codec_id = ""
    _fitted: ClassVar[tuple[str, ...]] = (
        "frame_rate_hz", "num_codes", "pca_dim", "mels", "min_magnitude", "level", "context",
    )  # fmt: skip

    def __post_init__(self) -> None:
        self.num_codebooks = len(positions(self._strides))
        self._parts = max(self._strides)
        stack = round(100 / self.frame_rate_hz)
        if stack < 1 or abs(100 / stack / self.frame_rate_hz - 1) > 0.002:
            raise ValueError(f"frame_rate_hz must be 100 / n (25, 20, 16.667, 12.5, ...), got {self.frame_rate_hz}")
        if stack % self._parts:
            raise ValueError(
                f"a frame of {stack} mel frames (100 / frame_rate_hz) cannot be cut into {self._parts} sub-frames: "
                "choose another frame_rate_hz"
            )
        if self.pca_dim > stack // self._parts * self.mels:
            raise ValueError(
                f"pca_dim must be <= {stack // self._parts * self.mels} (mel frames per code x mels), got {self.pca_dim}"
            )
        self.frame_rate_hz = 100 / stack
        self._stack = stack  # mel frames per frame
        self._mel = MelSettings(rate_hz=self.rate_hz, mels=self.mels, min_magnitude=self.min_magnitude)
        self._weights: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def _strides(self) -> Sequence[int]:
        """Sub-frames that one code of each codebook stands for."""

    @abstractmethod
    def _pack(self, codebooks: Sequence[Tensor]) -> dict[str, Tensor]:
        """Codebooks [C, s * E] in the form in which they are stored."""

    @abstractmethod
    def _codebooks(self) -> list[Tensor]:
        """Codebooks [C, s * E] of the weights."""

    @property
    def _name(self) -> str:
        return name_of(self)

    # -- folder

    def load(self, device: str = "cpu", dtype: str = "float32") -> MelCodec:
        """Load what `save` wrote (float32 only); its settings replace configured ones, and the log names those that differ."""
        refuse_dtype(self, "codec", dtype)
        tensors, info = load_weights(
            self.path, "codec", "fit it with 'ttt fit codec', or point codec.path at a fitted codec"
        )
        damaged = f"{self.path}: codec.json and codec.safetensors do not describe a {self._name} codec"
        try:
            info = with_new_names(type(self), info, f"{self.path}/codec.json")
            settings = {name: info[name] for name in self._fitted}
            changed = [f"{k} {getattr(self, k)} -> {v}" for k, v in settings.items() if getattr(self, k) != v]
            for name, value in settings.items():
                setattr(self, name, value)
            self.__post_init__()
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{damaged} ({error}): fit it again with 'ttt fit codec'") from error
        width = self._stack // self._parts * self.mels
        codebooks = self._pack([torch.empty(self.num_codes, s * self.pca_dim, device="meta") for s in self._strides])
        shapes = {
            "mean": (width,), "basis": (width, self.pca_dim), "level": (),
            "tables": (2 * self.context + 1, self.num_codes, self._parts * self.pca_dim),
            **{name: tuple(codebook.shape) for name, codebook in codebooks.items()},
        }  # fmt: skip
        if {k: tuple(v.shape) for k, v in tensors.items()} != shapes:
            raise CheckpointError(f"{damaged} (arrays of other shapes): fit it again with 'ttt fit codec'")
        if changed:
            log.warning("codec: %s was fitted with other settings, which are used: %s", self.path, ", ".join(changed))
        self._weights = {k: v.to(device) for k, v in tensors.items()}
        self.codec_id = f"{self._name}-{weights_digest(tensors)}"
        return self

    def save(self, folder: str | Path) -> None:
        """Write ``codec.safetensors`` + ``codec.json``, complete or not at all."""
        info = {"name": self._name, **{name: getattr(self, name) for name in self._fitted}}
        save_weights(folder, "codec", self._get(), info)

    # -- fitting

    @torch.inference_mode()
    def fit(self, waves: Sequence[Waveform], seed: int) -> Mapping[str, float]:
        """Learn from waveforms in a random order until ``max_frames`` frames are seen.

        Returns ``frames`` used, mean squared errors per mel value after PCA (``mse_pca``), of the centroids
        (``mse_codes``) and with neighbours (``mse_decoder``), and the ``perplexity`` of the first codebook (of later
        ones ``perplexity_1``, ...).
        """
        gen = generator(seed, "codec")
        stacks: list[Tensor] = []
        levels: list[float] = []
        seen = 0
        for index in torch.randperm(len(waves), generator=gen).tolist():
            wave = waves[index]
            check_wave(wave, self.rate_hz, self._name)
            x, level = self._stacks(torch.from_numpy(wave.samples))
            stacks.append(x)
            levels.append(level)
            seen += len(x)
            if seen >= self.max_frames:
                break
        if seen < max(self.num_codes, self.pca_dim):
            raise DataError(
                f"codec {self._name!r}: {seen} frames of sound cannot fill {self.num_codes} codes: "
                "give more waveforms, or lower codec.num_codes"
            )
        vectors = torch.cat(stacks).reshape(seen * self._parts, -1)  # [F * S, stack / S * M]
        mean = vectors.mean(0)
        centred = vectors - mean
        values, basis = torch.linalg.eigh(centred.T @ centred)
        basis = basis[:, -self.pca_dim :].flip(1)
        basis = basis * basis.sum(0).sign()  # eigenvectors come with any sign
        rest = centred @ basis  # [F * S, E]
        kept = float(rest.square().sum() / centred.numel())
        codebooks: list[Tensor] = []
        perplexities: list[float] = []
        first = torch.empty(0)
        for stride in self._strides:
            wide = rest.reshape(-1, stride * self.pca_dim)
            codebook = kmeans(wide, self.num_codes, self.iterations, gen)
            ids = nearest(wide, codebook)
            rest = (wide - codebook[ids]).reshape(rest.shape)
            first = first if codebooks else ids
            codebooks.append(codebook)
            share = torch.bincount(ids, minlength=self.num_codes).double() / len(ids)
            perplexities.append(float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())))
        # tables follow the first position: of several codes of the first codebook in a frame, the earliest
        first = first.reshape(seen, -1)[:, 0]
        frames = [len(s) for s in stacks]
        tables, left = fit_neighbour_tables(rest.reshape(seen, -1), first, frames, self.num_codes, self.context)
        self._weights = {
            "mean": mean, "basis": basis.contiguous(), **self._pack(codebooks), "tables": tables,
            "level": torch.tensor(float(np.median(levels))),
        }  # fmt: skip
        self._weights = {k: v.clone() for k, v in self._weights.items()}
        self.codec_id = f"{self._name}-{weights_digest(self._weights)}"
        lost = float(centred.square().mean()) - kept
        return {
            "frames": float(seen), "mse_pca": lost,
            "mse_codes": lost + float(rest.square().sum() / centred.numel()),
            "mse_decoder": lost + float(left.square().sum() / centred.numel()),
            **{f"perplexity_{q}" if q else "perplexity": p for q, p in enumerate(perplexities)},
        }  # fmt: skip

    # -- use

    @torch.inference_mode()
    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Codes of each recording, F = ceil(S / samples per frame); each is encoded by itself."""
        weights = self._get()
        device = weights["mean"].device
        out = []
        for wave in waves:
            check_wave(wave, self.rate_hz, self._name)
            x = self._stacks(torch.tensor(wave.samples, device=device))[0]  # [F, stack * M]
            rest = (x.reshape(len(x) * self._parts, -1) - weights["mean"]) @ weights["basis"]  # [F * S, E]
            ids = []
            for codebook, stride in zip(self._codebooks(), self._strides, strict=True):
                wide = rest.reshape(-1, stride * self.pca_dim)
                ids.append(nearest(wide, codebook))
                rest = (wide - codebook[ids[-1]]).reshape(rest.shape)
            codes = join([i.to(torch.int32).cpu().numpy() for i in ids], self._strides)
            out.append(AudioCodes(codes, self.frame_rate_hz, self.codec_id))
        return out

    @torch.inference_mode()
    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Sound of each code sequence, S = F * samples per frame; no row depends on another."""
        self._get()
        for c in codes:
            check_codes(c.ids, self.num_codes, self.num_codebooks, self._name)
        out = [Waveform(np.zeros(0, dtype=np.float32), self.rate_hz)] * len(codes)
        order = sorted((i for i in range(len(codes)) if len(codes[i].ids)), key=lambda i: len(codes[i].ids))
        for start in range(0, len(order), 16):
            rows = order[start : start + 16]
            mels = [self._mels(codes[i].ids) for i in rows]
            frames = [len(m) for m in mels]
            linear = mel_to_linear(torch.cat(mels), self._mel).split(frames)
            padded = torch.nn.utils.rnn.pad_sequence(list(linear), batch_first=True)
            samples = griffin_lim(padded, frames, self._mel, self.griffin_lim_iterations).cpu().numpy()
            for row, i in enumerate(rows):
                kept = samples[row, : frames[row] * self._mel.hop_samples]
                out[i] = Waveform(np.clip(kept, -1.0, 1.0), self.rate_hz)
        return out

    def open_stream(self) -> StreamDecoder:
        """Griffin-Lim on a moving window that continues the samples already output."""
        self._get()
        return MelStream(
            self, lambda ids, start, stop: self._mels(ids)[start:stop], self._stack, self.context, self._mel,
            self.griffin_lim_iterations,
        )  # fmt: skip

    def code_vectors(self) -> np.ndarray:
        """The vector that each code adds to its frame, standardised: f32 [Q, C, D]; zero in sub-frames that it does not cover."""
        codebooks = [codebook.cpu().numpy() for codebook in self._codebooks()]
        vectors = np.zeros((self.num_codebooks, self.num_codes, self._parts * self.pca_dim), dtype=np.float32)
        for q, (codebook, n) in enumerate(positions(self._strides)):
            width = codebooks[codebook].shape[1]
            vectors[q, :, n * width : (n + 1) * width] = codebooks[codebook]
        return standardize(vectors)

    # -- pieces

    def _get(self) -> dict[str, Tensor]:
        if not self._weights:
            raise CheckpointError(f"codec {self._name!r} holds no weights yet: call load() (codec.path) or fit()")
        return self._weights

    def _stacks(self, samples: Tensor) -> tuple[Tensor, float]:
        """Log-mels, ``stack`` frames side by side: f32 [S] -> f32 [F, stack * M]; and the loudest frame's level."""
        per_frame = self._stack * self._mel.hop_samples
        frames = -(-len(samples) // per_frame)
        padded = torch.nn.functional.pad(samples, (0, frames * per_frame - len(samples)))
        x = log_mel(padded, self._mel)  # [T, M]
        level = max(float(x.mean(1).max()), math.log(self.min_magnitude) + 1.0)
        if self.level:
            x = (x - level).clamp(min=_LOWEST)
        return x.reshape(frames, -1), level

    def _mels(self, codes: np.ndarray) -> Tensor:
        """Log-mels of codes: i32 [F, Q] -> f32 [F * stack, M]."""
        weights = self._get()
        device = weights["mean"].device
        ids = [torch.tensor(i, device=device).long() for i in split(codes, self._strides)]
        z = look_up(weights["tables"], torch.as_tensor(codes[:, 0], device=device).long(), [len(codes)])  # [F, D]
        for codebook, mine in zip(self._codebooks(), ids, strict=True):
            z = z + codebook[mine].reshape(len(codes), -1)
        x = (z.reshape(-1, self.pca_dim) @ weights["basis"].T + weights["mean"]).reshape(-1, self.mels)
        if self.level:
            x = torch.where(x <= _LOWEST, torch.full_like(x, math.log(self.min_magnitude)), x + weights["level"])
        return x.clamp(math.log(self.min_magnitude), 5.0)


_LOWEST = -6.0  # log units below the loudest frame that a levelled codec keeps


@CODEC.register("mel_kmeans")
@dataclass
class MelKmeans(MelCodec):
    """Log-mel frames, stacked to one vector per frame, PCA, k-means; Griffin-Lim turns mels back into sound.

    With ``num_codebooks`` > 1 each codebook quantises the residual of those before it.  The decoder corrects each
    code's centroid by its ``context`` neighbours on either side (additive tables, fitted after the k-means).
    """

    num_codebooks: PositiveInt = 1

    _fitted: ClassVar[tuple[str, ...]] = (*MelCodec._fitted, "num_codebooks")

    @property
    def _strides(self) -> Sequence[int]:
        return [1] * self.num_codebooks

    def _pack(self, codebooks: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"books": torch.stack(list(codebooks))}

    def _codebooks(self) -> list[Tensor]:
        return list(self._get()["books"])


@CODEC.register("rvq")
@dataclass
class Rvq(MelCodec):
    """Residual vector quantisation of log-mels with codebooks at several rates, as in SNAC; fitted in seconds on a CPU.

    ``strides``: sub-frames that one code of each codebook stands for; all must divide the largest, which is the frame.
    ``(4, 2, 1)``: one code for four sub-frames, two for pairs, four single ones, Q = 7 positions in SNAC's order; all
    ones: plain residual codebooks, one code of each per frame (EnCodec, AudioLM).  A code of stride s is a centroid of
    s sub-frames side by side (SNAC repeats an average), so coarse codes know how their frame changes.
    """

    frame_rate_hz: PositiveFloat = 25.0  # 100 / a whole number of 10 ms mel frames, a multiple of the largest stride
    num_codes: PositiveInt = 128  # codes of a codebook
    context: NonNegativeInt = 1  # neighbours the decoder looks at, on either side
    strides: list[PositiveInt] = field(default_factory=lambda: [1, 1, 1, 1])  # one entry a codebook

    _fitted: ClassVar[tuple[str, ...]] = (*MelCodec._fitted, "strides")

    def __post_init__(self) -> None:
        self.strides = [int(s) for s in self.strides]
        super().__post_init__()

    @property
    def _strides(self) -> Sequence[int]:
        return self.strides

    def _pack(self, codebooks: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f"book_{q}": codebook for q, codebook in enumerate(codebooks)}

    def _codebooks(self) -> list[Tensor]:
        return [self._get()[f"book_{q}"] for q in range(len(self.strides))]
