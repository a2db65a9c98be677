"""Codecs that need no published weights: tones, k-means of log-mels, and codes that come with the data.

Letters: ``F`` frames (one code of each book), ``Q`` code books, ``C`` codes per book, ``S`` wav samples, ``T`` mel frames,
``M`` mel channels, ``E`` dimensions in which codes are compared.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from ttt.audio.kmeans import fit_neighbour_tables, kmeans, look_up, nearest
from ttt.audio.signal import MelSettings, griffin_lim, log_mel, mel_to_linear
from ttt.audio.weights import load_weights, save_weights, weights_digest
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.interfaces import Codec, StreamDecoder, TrainableCodec
from ttt.registry.families import CODEC
from ttt.rng import generator
from ttt.types import AudioCodes, Waveform

log = logging.getLogger(__name__)


def check_wave(wave: Waveform, rate_hz: int, codec: str) -> None:
    """Refuse what cannot be encoded: another rate, no samples, NaN or infinity."""
    if wave.rate_hz != rate_hz:
        raise DataError(
            f"codec {codec!r}: waveform has {wave.rate_hz} Hz, expected {rate_hz} Hz: "
            "resample it with ttt.audio.signal.resample"
        )
    if len(wave.samples) == 0:
        raise DataError(f"codec {codec!r}: a waveform holds no samples: make it again or drop the item")
    if not np.isfinite(wave.samples).all():
        bad = int((~np.isfinite(wave.samples)).sum())
        raise DataError(
            f"codec {codec!r}: {bad} of {len(wave.samples)} samples are NaN or infinite: make the wav again"
        )


def check_codes(ids: np.ndarray, num_codes: int, num_books: int, codec: str) -> None:
    """Refuse codes [F, Q] of another shape or outside the code book."""
    if ids.ndim != 2 or ids.shape[1] != num_books:
        raise DataError(
            f"codec {codec!r}: codes have shape {list(ids.shape)}, expected [F, {num_books}] (code books last)"
        )
    wrong = ids[(ids < 0) | (ids >= num_codes)]
    if wrong.size:
        raise DataError(
            f"codec {codec!r}: code {int(wrong[0])} is outside the code book of {num_codes} (0 to {num_codes - 1}): "
            "decode with the codec that made the codes"
        )


@CODEC.register("toy")
@dataclass
class Toy(Codec):
    """Code k is one frame of a pure tone; no weights, exact round trip.  For tests and the toy recipe."""

    num_codes: int = 32
    rate_hz: int = 16_000
    frame_rate_hz: float = 50.0

    num_books = 1
    exact_stream = True

    def __post_init__(self) -> None:
        self._hop = round(self.rate_hz / self.frame_rate_hz)
        if self._hop < 1 or abs(self._hop * self.frame_rate_hz - self.rate_hz) > 1e-6:
            raise ValueError(
                f"rate_hz must be a multiple of frame_rate_hz, got {self.rate_hz} and {self.frame_rate_hz}"
            )
        step = (self._hop // 2 - 4) // max(self.num_codes, 1)
        if self.num_codes < 1 or step < 1:
            raise ValueError(
                f"num_codes must lie in 1 to {self._hop // 2 - 4} at this frame rate, got {self.num_codes}"
            )
        self._bins = 4 + step * np.arange(self.num_codes)  # whole periods per frame: tones meet at zero
        self.codec_id = f"toy-{self.num_codes}x{self._hop}@{self.rate_hz}"

    def load(self, device: str = "cpu") -> Toy:
        """Nothing to bring."""
        return self

    def tone(self, ids: np.ndarray) -> np.ndarray:
        """Samples f32 [F * hop] of codes [F]."""
        turns = self._bins[ids][:, None] * np.arange(self._hop)[None] / self._hop
        return (0.5 * np.sin(2 * np.pi * turns)).astype(np.float32).reshape(-1)

    def strengths(self, samples: np.ndarray) -> np.ndarray:
        """Magnitude of each code's tone in each frame, f32 [F, C]; a tone of `tone` has 0.25."""
        frames = -(-len(samples) // self._hop)
        padded = np.zeros(frames * self._hop, dtype=np.float32)
        padded[: len(samples)] = samples
        return np.abs(np.fft.rfft(padded.reshape(frames, self._hop), axis=1))[:, self._bins] / self._hop

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """The strongest tone of each frame; a last frame cut short counts."""
        for wave in waves:
            check_wave(wave, self.rate_hz, "toy")
        ids = [self.strengths(w.samples).argmax(1).astype(np.int32)[:, None] for w in waves]
        return [AudioCodes(i, self.frame_rate_hz, self.codec_id) for i in ids]

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """One tone per code."""
        for c in codes:
            check_codes(c.ids, self.num_codes, 1, "toy")
        return [Waveform(self.tone(c.ids[:, 0]), self.rate_hz) for c in codes]

    def stream_decoder(self) -> StreamDecoder:
        """Gives each frame as it comes."""
        return _ToyStream(self)

    def code_vectors(self) -> np.ndarray:
        """Codes are told apart and otherwise unrelated: f32 [1, C, C], the identity, standardised."""
        return standardize(np.eye(self.num_codes, dtype=np.float32)[None])


@dataclass
class _ToyStream(StreamDecoder):
    codec: Toy

    def push(self, codes: np.ndarray) -> np.ndarray:
        check_codes(codes, self.codec.num_codes, 1, "toy")
        return self.codec.tone(codes[:, 0])

    def finish(self) -> np.ndarray:
        return np.zeros(0, dtype=np.float32)


@CODEC.register("mel_kmeans")
@dataclass
class MelKmeans(TrainableCodec):
    """Log-mel frames, stacked to one vector per code, PCA, k-means; Griffin-Lim turns mels back into sound.

    ``num_books`` > 1 quantises what the books before left over.  The decoder adds to each code's centroid what its
    ``context`` neighbours on either side tell about its mels (additive tables, fitted after the k-means), which mends
    the borders between codes.
    """

    path: str = ""  # folder with codec.safetensors and codec.json
    frame_rate_hz: float = 16.667  # 100 / a whole number of 10 ms mel frames
    num_codes: int = 1024
    num_books: int = 1
    pca_dim: int = 40
    mels: int = 40
    floor: float = 0.02  # mel magnitude below which nothing is told apart
    level: bool = False  # bring each utterance's loudest mel frame to the same level first
    context: int = 2  # neighbours the decoder looks at, on either side
    max_frames: int = 100_000  # codes (not mel frames) used for fitting
    iterations: int = 10  # of k-means
    griffin_lim_iterations: int = 32

    rate_hz = 16_000
    codec_id = ""
    _fitted = ("frame_rate_hz", "num_codes", "num_books", "pca_dim", "mels", "floor", "level", "context")

    def __post_init__(self) -> None:
        for name in ("num_codes", "num_books", "pca_dim", "mels", "max_frames", "iterations", "griffin_lim_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.floor <= 0 or self.context < 0:
            raise ValueError(f"floor must be > 0 and context >= 0, got {self.floor} and {self.context}")
        stack = round(100 / self.frame_rate_hz) if self.frame_rate_hz > 0 else 0
        if stack < 1 or abs(100 / stack / self.frame_rate_hz - 1) > 0.002:
            raise ValueError(f"frame_rate_hz must be 100 / n (25, 20, 16.667, 12.5, ...), got {self.frame_rate_hz}")
        if self.pca_dim > stack * self.mels:
            raise ValueError(f"pca_dim must be <= {stack * self.mels} (mel frames per code x mels), got {self.pca_dim}")
        self.frame_rate_hz = 100 / stack
        self._stack = stack
        self._mel = MelSettings(rate_hz=self.rate_hz, mels=self.mels, floor=self.floor)
        self._weights: dict[str, Tensor] = {}

    # -- folder

    def load(self, device: str = "cpu") -> MelKmeans:
        """Bring what `save` wrote; the folder's settings win over configured ones, and the log says which differ."""
        tensors, info = load_weights(
            self.path, "codec", "fit it with 'ttt codec', or point codec.path at a fitted codec"
        )
        damaged = f"{self.path}: codec.json and codec.safetensors do not describe a mel_kmeans codec"
        try:
            found = {name: info[name] for name in self._fitted}
            other = [f"{k} {getattr(self, k)} -> {v}" for k, v in found.items() if getattr(self, k) != v]
            for name, value in found.items():
                setattr(self, name, value)
            self.__post_init__()
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{damaged} ({error}): fit it again with 'ttt codec'") from error
        width = self._stack * self.mels
        shapes = {
            "mean": (width,), "basis": (width, self.pca_dim), "level": (),
            "books": (self.num_books, self.num_codes, self.pca_dim),
            "tables": (2 * self.context + 1, self.num_codes, self.pca_dim),
        }  # fmt: skip
        if {k: tuple(v.shape) for k, v in tensors.items()} != shapes:
            raise CheckpointError(f"{damaged} (arrays of other shapes): fit it again with 'ttt codec'")
        if other:
            log.warning("codec: %s was fitted with other settings, which are used: %s", self.path, ", ".join(other))
        self._weights = {k: v.to(device) for k, v in tensors.items()}
        self.codec_id = f"mel_kmeans-{weights_digest(tensors)}"
        return self

    def save(self, folder: str | Path) -> None:
        """Write ``codec.safetensors`` + ``codec.json``, complete or not at all."""
        info = {"name": "mel_kmeans", **{name: getattr(self, name) for name in self._fitted}}
        save_weights(folder, "codec", self._get(), info)

    # -- fitting

    @torch.inference_mode()
    def fit(self, waves: Sequence[Waveform], seed: int) -> Mapping[str, float]:
        """Learn from waveforms in a random order until ``max_frames`` codes are seen.

        Returns ``frames`` used, mean squared errors per mel value after PCA (``mse_pca``), of the centroids
        (``mse_codes``) and with neighbours (``mse_decoder``), and the ``perplexity`` of the first book.
        """
        gen = generator(seed, "codec")
        stacks: list[Tensor] = []
        levels: list[float] = []
        seen = 0
        for index in torch.randperm(len(waves), generator=gen).tolist():
            check_wave(waves[index], self.rate_hz, "mel_kmeans")
            x, level = self._stacks(torch.from_numpy(waves[index].samples))
            stacks.append(x)
            levels.append(level)
            seen += len(x)
            if seen >= self.max_frames:
                break
        if seen < max(self.num_codes, self.pca_dim):
            raise DataError(
                f"codec 'mel_kmeans': {seen} frames of sound cannot fill {self.num_codes} codes: "
                "give more waveforms, or lower codec.num_codes"
            )
        vectors = torch.cat(stacks)  # [F, stack * M]
        mean = vectors.mean(0)
        centred = vectors - mean
        values, basis = torch.linalg.eigh(centred.T @ centred)
        basis = basis[:, -self.pca_dim :].flip(1)
        basis = basis * basis.sum(0).sign()  # eigenvectors come with any sign
        z = centred @ basis  # [F, E]
        books, ids, rest = [], [], z
        for _ in range(self.num_books):
            book = kmeans(rest, self.num_codes, self.iterations, gen)
            ids.append(nearest(rest, book))
            rest = rest - book[ids[-1]]
            books.append(book)
        tables, left = fit_neighbour_tables(rest, ids[0], [len(s) for s in stacks], self.num_codes, self.context)
        self._weights = {
            "mean": mean, "basis": basis.contiguous(), "books": torch.stack(books), "tables": tables,
            "level": torch.tensor(float(np.median(levels))),
        }  # fmt: skip
        self._weights = {k: v.clone() for k, v in self._weights.items()}
        self.codec_id = f"mel_kmeans-{weights_digest(self._weights)}"
        share = torch.bincount(ids[0], minlength=self.num_codes).double() / len(ids[0])
        lost = float(centred.square().mean() - z.square().sum(1).mean() / centred.shape[1])
        return {
            "frames": float(seen), "mse_pca": lost,
            "mse_codes": lost + float(rest.square().sum(1).mean()) / centred.shape[1],
            "mse_decoder": lost + float(left.square().sum(1).mean()) / centred.shape[1],
            "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
        }  # fmt: skip

    # -- use

    @torch.inference_mode()
    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Codes of each recording, F = ceil(S / samples per frame); each is encoded by itself."""
        weights = self._get()
        device = weights["mean"].device
        out = []
        for wave in waves:
            check_wave(wave, self.rate_hz, "mel_kmeans")
            rest = (self._stacks(torch.tensor(wave.samples, device=device))[0] - weights["mean"]) @ weights["basis"]
            ids = []
            for book in weights["books"]:
                ids.append(nearest(rest, book))
                rest = rest - book[ids[-1]]
            codes = torch.stack(ids, dim=1).to(torch.int32).cpu().numpy()
            out.append(AudioCodes(codes, self.frame_rate_hz, self.codec_id))
        return out

    @torch.inference_mode()
    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Sound of each code sequence, S = F * samples per frame; no row depends on another."""
        weights = self._get()
        for c in codes:
            check_codes(c.ids, self.num_codes, self.num_books, "mel_kmeans")
        out = [Waveform(np.zeros(0, dtype=np.float32), self.rate_hz)] * len(codes)
        order = sorted((i for i in range(len(codes)) if len(codes[i].ids)), key=lambda i: len(codes[i].ids))
        for start in range(0, len(order), 16):
            rows = order[start : start + 16]
            mels = [self._mels(torch.tensor(codes[i].ids, device=weights["mean"].device).long()) for i in rows]
            frames = [len(m) for m in mels]
            linear = mel_to_linear(torch.cat(mels), self._mel).split(frames)
            padded = torch.nn.utils.rnn.pad_sequence(list(linear), batch_first=True)
            samples = griffin_lim(padded, frames, self._mel, self.griffin_lim_iterations).cpu().numpy()
            for row, i in enumerate(rows):
                kept = samples[row, : frames[row] * self._mel.hop_samples]
                out[i] = Waveform(np.clip(kept, -1.0, 1.0), self.rate_hz)
        return out

    def stream_decoder(self) -> StreamDecoder:
        """Griffin-Lim on a moving window that continues the samples already given away."""
        self._get()
        return _MelStream(self)

    def code_vectors(self) -> np.ndarray:
        """Centroids, standardised: f32 [Q, C, E]."""
        return standardize(self._get()["books"].cpu().numpy())

    # -- pieces

    def _get(self) -> dict[str, Tensor]:
        if not self._weights:
            raise CheckpointError("codec 'mel_kmeans' holds no weights yet: call load() (codec.path) or fit()")
        return self._weights

    def _stacks(self, samples: Tensor) -> tuple[Tensor, float]:
        """Log-mels, ``stack`` frames side by side: f32 [S] -> f32 [F, stack * M]; and the loudest frame's level."""
        per_code = self._stack * self._mel.hop_samples
        frames = -(-len(samples) // per_code)
        padded = torch.nn.functional.pad(samples, (0, frames * per_code - len(samples)))
        x = log_mel(padded, self._mel)  # [T, M]
        level = max(float(x.mean(1).max()), math.log(self.floor) + 1.0)
        if self.level:
            x = (x - level).clamp(min=_LOWEST)
        return x.reshape(frames, -1), level

    def _mels(self, ids: Tensor) -> Tensor:
        """Log-mels of codes: i64 [F, Q] -> f32 [F * stack, M]."""
        weights = self._get()
        z = sum(book[ids[:, q]] for q, book in enumerate(weights["books"]))
        z = z + look_up(weights["tables"], ids[:, 0], [len(ids)])
        x = (z @ weights["basis"].T + weights["mean"]).reshape(-1, self.mels)
        if self.level:
            x = torch.where(x <= _LOWEST, torch.full_like(x, math.log(self.floor)), x + weights["level"])
        return x.clamp(math.log(self.floor), 5.0)


_LOWEST = -6.0  # log units below the loudest frame that a levelled codec keeps


class _MelStream(StreamDecoder):
    """Holds back ``context`` codes and two mel frames, which later codes still change."""

    _PAST = 24  # mel frames of given samples that a window starts with

    def __init__(self, codec: MelKmeans):
        self.codec = codec
        self.ids = np.zeros((0, codec.num_books), dtype=np.int32)
        self.given = np.zeros(0, dtype=np.float32)  # what has been given away, in full: streams are short

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Codes [F, Q] -> the samples that are final by now."""
        check_codes(codes, self.codec.num_codes, self.codec.num_books, "mel_kmeans")
        self.ids = np.concatenate([self.ids, codes.astype(np.int32)])
        return self._give(max(0, len(self.ids) - self.codec.context) * self.codec._stack, 2)

    def finish(self) -> np.ndarray:
        """The rest."""
        return self._give(len(self.ids) * self.codec._stack, 0)

    @torch.inference_mode()
    def _give(self, ready: int, held: int) -> np.ndarray:
        codec, mel = self.codec, self.codec._mel
        done = len(self.given) // mel.hop_samples
        if ready - held <= done:
            return np.zeros(0, dtype=np.float32)
        device = codec._get()["mean"].device
        first = max(0, done - self._PAST)
        mels = codec._mels(torch.tensor(self.ids, device=device).long())[first:ready]
        known = torch.tensor(self.given[first * mel.hop_samples :], device=device)[None]
        samples = griffin_lim(
            mel_to_linear(mels, mel)[None], [len(mels)], mel, codec.griffin_lim_iterations, known=known
        )  # fmt: skip
        new = samples[0, known.shape[1] : (ready - held - first) * mel.hop_samples].clamp(-1.0, 1.0).cpu().numpy()
        self.given = np.concatenate([self.given, new])
        return new


@CODEC.register("precomputed")
@dataclass
class Precomputed(Codec):
    """Codes come with the data; nothing is encoded or decoded.  The fields say what the codes are."""

    num_codes: int = 16_384
    num_books: int = 1
    frame_rate_hz: float = 12.5
    rate_hz: int = 24_000
    label: str = "precomputed"  # stored beside the codes as `codec_id`

    def __post_init__(self) -> None:
        if min(self.num_codes, self.num_books, self.frame_rate_hz, self.rate_hz) <= 0:
            raise ValueError("num_codes, num_books, frame_rate_hz and rate_hz must be > 0")
        self.codec_id = self.label

    def load(self, device: str = "cpu") -> Precomputed:
        """Nothing to bring."""
        return self

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Refused."""
        self._refuse("encode")

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Refused."""
        self._refuse("decode")

    def stream_decoder(self) -> StreamDecoder:
        """Refused."""
        self._refuse("decode")

    def _refuse(self, verb: str) -> NoReturn:
        raise ConfigError(
            f"codec: 'precomputed' cannot {verb}, its codes come with the data: configure the codec that made them, "
            f"for example one of {', '.join(n for n in CODEC.names() if n != 'precomputed')}"
        )


def standardize(vectors: np.ndarray) -> np.ndarray:
    """Each book centred and divided by its overall standard deviation: f32 [Q, C, E] -> f32 [Q, C, E]."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    spread = centred.std(axis=(1, 2), keepdims=True)
    return (centred / np.maximum(spread, 1e-8)).astype(np.float32)
