"""The codec `units`: fields, folder, fitting, encoding, decoding.

Letters: ``S`` wav samples, ``F`` frames (pooled ones), ``K`` units, ``D`` dimensions of a hidden state, ``M`` mel channels.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ttt.audio.codecs.checks import check_codes, check_wave, standardize
from ttt.audio.codecs.units.decoder import REACH, UnitDecoder, fit_decoder, new_decoder
from ttt.audio.codecs.units.encoder import RATE_HZ, FrameSettings, Normalize, SpeechEncoder
from ttt.audio.codecs.units.runs import RunStream, remove_runs
from ttt.audio.codecs.units.vocoder import DURATION_REACH, CodeHifigan, load_vocoder
from ttt.audio.kmeans import kmeans_in_batches, nearest
from ttt.audio.mel_stream import MelStream
from ttt.audio.signal import MelSettings, griffin_lim, log_mel, mel_to_linear
from ttt.audio.streaming import WindowStream
from ttt.audio.weights import load_weights, save_weights, weights_digest
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.interfaces import StreamDecoder, TrainableCodec
from ttt.io.devices import pick_device
from ttt.io.digests import digest_of_json
from ttt.registry import NonNegativeInt, PositiveFloat, PositiveInt
from ttt.registry.families import CODEC
from ttt.rng import generator
from ttt.types import AudioCodes, Waveform

log = logging.getLogger(__name__)
FIT = "fit it with 'ttt fit codec', or point codec.path at a fitted codec"
DECODER = "decoder."  # prefix of its arrays in the folder


@CODEC.register("units")
@dataclass
class Units(TrainableCodec):
    """k-means units of a published speech encoder (GSLM, TWIST, slamkit): the nearest of K centroids to each hidden state.

    ``path``: what 'ttt fit codec' wrote (centroids, durations, decoder).  ``encoder``: a local transformers folder of HuBERT,
    mHuBERT, WavLM, wav2vec 2.0 or Whisper; only encoding and fitting need it.  ``centroids``: published ones as ``.npy``, f32
    [K, D]; fitting then fits the decoder only.  Without ``path`` these encode, and ``vocoder`` (the folder of a CodeHiFiGAN)
    decodes.  ``dedup``: a run of equal units becomes one code; what each lasted is kept beside the codes.
    """

    path: str = ""  # folder with codec.safetensors and codec.json
    encoder: str = ""
    layer: PositiveInt = 9  # whose hidden states are taken
    num_codes: PositiveInt = 500
    centroids: str = ""
    pool: PositiveInt = 1  # encoder frames averaged to one
    dedup: bool = False
    normalize: Normalize = "folder"  # sound to mean 0 and variance 1 first; folder: as preprocessor_config.json says
    pad: NonNegativeInt = 0  # zeros before and behind the sound (slamkit: 40)
    piece_s: PositiveFloat = 100.0  # longer recordings are encoded in pieces that do not see each other (Whisper: 30 s)
    vocoder: str = ""  # instead of the fitted decoder
    speaker: NonNegativeInt = 0  # of a vocoder with several
    style: NonNegativeInt = 0
    max_frames: PositiveInt = 2_000_000  # encoder frames (50 Hz: 11 hours) that the centroids are fitted on
    iterations: PositiveInt = 10  # of k-means on its first batch
    decoder_minutes: PositiveFloat = 60.0  # sound that the decoder is fitted on
    decoder_steps: PositiveInt = 1500
    griffin_lim_iterations: PositiveInt = 32

    rate_hz = RATE_HZ
    num_codebooks = 1
    codec_id = ""
    _fitted: ClassVar[tuple[str, ...]] = ("layer", "num_codes", "pool", "normalize", "pad", "piece_s")

    def __post_init__(self) -> None:
        self._weights: dict[str, Tensor] = {}  # centroids f32 [K, D], durations f32 [K]
        self._encoder: SpeechEncoder | None = None
        self._decoder: UnitDecoder | None = None
        self._vocoder: CodeHifigan | None = None
        self._device, self._dtype = torch.device("cpu"), "float32"

    @property
    def encode_rate_hz(self) -> int:
        """Samples per second of recordings: 16,000, whatever a vocoder's rate is."""
        return RATE_HZ

    @property
    def code_rate_hz(self) -> float:
        """Codes per second; 0 without runs."""
        return 0.0 if self.dedup else self.frame_rate_hz

    def duration_s(self, ids: np.ndarray) -> float:
        """Seconds that codes last with the durations that `decode` predicts."""
        return int(self._durations(ids).sum()) / self.frame_rate_hz

    # -- folder

    def load(self, device: str = "cpu", dtype: str = "float32") -> Units:
        """Load the fitted folder, or published centroids, and the encoder and vocoder that are named; returns self.

        ``dtype`` is that of the encoder; centroids and decoder stay float32.
        """
        self._device, self._dtype = torch.device(device), dtype
        encoder_digest, decoder_digest = "", ""
        if self.path:
            encoder_digest, decoder_digest = self._load_fitted()
        elif self.centroids:
            self._weights = {"centroids": read_centroids(self.centroids, self.num_codes).to(device)}
        else:
            raise CheckpointError(f"codec.path: not set: {FIT}, or set codec.centroids")
        if self.encoder or not self.path:
            encoder = self._open_encoder()
            if encoder_digest and encoder_digest != encoder.digest:
                raise CheckpointError(
                    f"{self.path}: was fitted on layer {self.layer} of another encoder than that in {self.encoder}: name the same "
                    "one, or fit it again with 'ttt fit codec'"
                )
            encoder_digest = encoder.digest
        if self.vocoder:
            decoder_digest = self._open_vocoder()
        self._name(encoder_digest, decoder_digest)
        return self

    def _load_fitted(self) -> tuple[str, str]:
        """Weights and settings of ``path``; -> digests of the encoder they belong to and of the decoder."""
        tensors, info = load_weights(self.path, "codec", FIT)
        damaged = f"{self.path}: codec.json and codec.safetensors do not describe a codec 'units'"
        try:
            settings = {name: info[name] for name in self._fitted}
            changed = [f"{k} {getattr(self, k)} -> {v}" for k, v in settings.items() if getattr(self, k) != v]
            for name, value in settings.items():
                setattr(self, name, value)
            self._set_frames(int(info["hop"]))
            decoder = new_decoder(self.num_codes, self._stretch, self._mel.mels)
            decoder.load_state_dict({k.removeprefix(DECODER): v for k, v in tensors.items() if k.startswith(DECODER)})
            self._weights = {name: tensors[name].to(self._device) for name in ("centroids", "durations")}
            if len(self._weights["centroids"]) != self.num_codes or self._weights["durations"].shape != (self.num_codes,):
                raise ValueError("arrays of other shapes")
            digest = str(info["encoder"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{damaged} ({reason}): fit it again with 'ttt fit codec'") from error
        if changed:
            log.warning("codec: %s was fitted with other settings, which are used: %s", self.path, ", ".join(changed))
        self._decoder = decoder.to(self._device).eval()
        return digest, self._digest_of_decoder()

    def _open_encoder(self) -> SpeechEncoder:
        settings = FrameSettings(self.layer, self.pad, self.normalize, self.piece_s)
        self._encoder = encoder = SpeechEncoder(self.encoder, settings, str(self._device), self._dtype)
        if self._weights and self._weights["centroids"].shape[1] != encoder.dim:
            width = self._weights["centroids"].shape[1]
            raise CheckpointError(
                f"{self.centroids or self.path}: centroids have {width} dimensions, layers of the encoder in {self.encoder} have "
                f"{encoder.dim}: name the encoder that they were made for"
            )
        self._set_frames(encoder.hop)
        return encoder

    def _open_vocoder(self) -> str:
        self._vocoder, digest = load_vocoder(self.vocoder, str(self._device))
        vocoder, sizes = self._vocoder, {"num_embeddings": (self._vocoder.num_codes, self.num_codes)}
        sizes["frames per second"] = (vocoder.rate_hz / vocoder.hop, self.frame_rate_hz)  # type: ignore[assignment]
        for what, (has, needed) in sizes.items():
            if has != needed:
                raise ConfigError(f"{self.vocoder}: the vocoder's {what}: {has:g}, the codec's: {needed:g}: they must be the same")
        for name, table in (("speaker", vocoder.spkr), ("style", vocoder.style)):
            if getattr(self, name) >= (table.num_embeddings if table is not None else 1):
                raise ConfigError(f"codec.{name}: {getattr(self, name)} is none of the vocoder in {self.vocoder}")
        self.rate_hz = vocoder.rate_hz
        return f"{digest}-{self.speaker}-{self.style}"

    def _set_frames(self, hop: int) -> None:
        """Everything that follows from the samples per encoder frame."""
        self._hop = hop * self.pool
        self.frame_rate_hz = RATE_HZ / self._hop
        mel_hop = next(n for n in range(min(200, self._hop), 0, -1) if self._hop % n == 0)
        self._stretch = self._hop // mel_hop  # mel frames per frame
        self._mel = MelSettings(hop_samples=mel_hop)

    def _name(self, encoder: str, decoder: str) -> None:
        """``codec_id``: what decides the codes, then what decides the sound."""
        fields = [getattr(self, name) for name in (*self._fitted, "dedup")]
        codes = digest_of_json([fields, encoder, weights_digest({"centroids": self._weights["centroids"]})])[:8]
        self.codec_id = f"units-{codes}" + (f"-{digest_of_json(decoder)[:8]}" if decoder else "")

    def _digest_of_decoder(self) -> str:
        assert self._decoder is not None
        return weights_digest({**self._decoder.state_dict(), "durations": self._weights["durations"]})

    def save(self, folder: str | Path) -> None:
        """Write ``codec.safetensors`` + ``codec.json``, complete or not at all."""
        weights = self._get()
        if self._decoder is None or self._encoder is None:
            raise CheckpointError("codec 'units' was not fitted: call fit()")
        decoder = {DECODER + name: value for name, value in self._decoder.state_dict().items()}
        info = {name: getattr(self, name) for name in self._fitted}
        save_weights(
            folder, "codec", {**weights, **decoder},
            {"name": "units", **info, "hop": self._hop // self.pool, "encoder": self._encoder.digest},
        )  # fmt: skip

    # -- fitting

    def fit(self, waves: Sequence[Waveform], seed: int) -> Mapping[str, float]:
        """Fit centroids (unless ``centroids`` gives them), durations and decoder; memory does not grow with the corpus.

        Recordings are read one at a time in an order that the seed and their number decide; another order of the corpus
        gives another result.  It is computed on ``device`` (empty: the CPU).  Returns the ``frames`` that the centroids saw,
        the mean squared distance to them per dimension (``mse_codes``), the ``perplexity`` of the units, their
        ``mean_duration`` in frames, and the decoder's mean absolute error of a log-mel (``mel_error``).
        """
        self._device, self._dtype = torch.device(pick_device(self.device or "cpu", "codec.device")), self.dtype
        self._weights = {} if not self.centroids else {"centroids": read_centroids(self.centroids, self.num_codes)}
        encoder = self._open_encoder()
        gen = generator(seed, "codec")
        order = torch.randperm(len(waves), generator=gen).tolist()
        self._seen = 0
        if not self.centroids:
            batches = self._batches(waves, order, gen)
            self._weights["centroids"] = kmeans_in_batches(batches, self.num_codes, self.iterations, gen)
            log.info("codec: centroids fitted on %d frames", self._seen)
        self._weights = {"centroids": self._weights["centroids"].to(self._device)}
        units, mels, mse = self._material(waves, order)
        runs = [torch.unique_consecutive(u, return_counts=True) for u in units]
        size, total = torch.zeros(self.num_codes), torch.zeros(self.num_codes)
        for ids, counts in runs:
            size.index_add_(0, ids, torch.ones(len(ids)))
            total.index_add_(0, ids, counts.float())
        mean = float(total.sum() / size.sum())
        self._weights["durations"] = torch.where(size > 0, total / size.clamp(min=1), mean).to(self._device)
        self._decoder, error = fit_decoder(
            units, mels, self.num_codes, self._stretch, self.frame_rate_hz, self.decoder_steps, seed, self._device
        )
        self._name(encoder.digest, self._open_vocoder() if self.vocoder else self._digest_of_decoder())
        share = total.double() / total.sum()
        perplexity = float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
        return {
            "frames": float(self._seen), "mse_codes": mse, "perplexity": perplexity, "mean_duration": mean, "mel_error": error,
        }  # fmt: skip

    def _batches(self, waves: Sequence[Waveform], order: Sequence[int], gen: torch.Generator) -> Iterator[Tensor]:
        """Pooled hidden states in batches of about twenty a centroid, 10,000 at least, shuffled."""
        size, held, waiting = max(10_000, 20 * self.num_codes), [], 0
        limit = self.max_frames // self.pool
        for number, index in enumerate(order, 1):
            held.append(self._pooled(waves[index]).cpu())
            waiting += len(held[-1])
            self._seen += len(held[-1])
            done = number == len(order) or self._seen >= limit
            if done and self._seen < self.num_codes:
                raise DataError(
                    f"codec 'units': {self._seen} frames of sound cannot fill {self.num_codes} codes: give more waveforms, or "
                    "lower codec.num_codes"
                )
            if waiting >= size or (done and waiting):
                vectors = torch.cat(held)
                yield vectors[torch.randperm(len(vectors), generator=gen)]
                held, waiting = [], 0
                log.info("codec: %d of %d recordings, %d frames", number, len(order), self._seen)
            if done:
                return

    def _material(self, waves: Sequence[Waveform], order: Sequence[int]) -> tuple[list[Tensor], list[Tensor], float]:
        """Units i64 [F] and log-mels f16 [T, M] of ``decoder_minutes``, and the mean squared distance to the centroids."""
        units, mels, error, seconds = [], [], 0.0, 0.0
        for index in order:
            wave = waves[index]
            vectors = self._pooled(wave)
            ids = nearest(vectors, self._weights["centroids"])
            error += float((vectors - self._weights["centroids"][ids]).square().mean(1).sum())
            units.append(ids.cpu())
            samples = torch.nn.functional.pad(torch.tensor(wave.samples), (0, len(ids) * self._hop - len(wave.samples)))
            mels.append(log_mel(samples, self._mel).half())
            seconds += wave.duration_s
            if seconds >= 60 * self.decoder_minutes:
                break
        return units, mels, error / sum(map(len, units))

    # -- use

    @torch.inference_mode()
    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Units of each recording, encoded by itself: F = ceil(S / samples per frame), or its runs with their durations."""
        centres = self._get()["centroids"]
        out = []
        for wave in waves:
            ids = nearest(self._pooled(wave), centres).to(torch.int32).cpu().numpy()[:, None]
            lasts = None
            if self.dedup:
                ids, lasts = remove_runs(ids)
            out.append(AudioCodes(ids, self.frame_rate_hz, self.codec_id, lasts))
        return out

    @torch.inference_mode()
    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Sound of each code sequence, S = frames * samples per frame; no row depends on another.

        Codes without runs last as long as their ``durations`` say, else as the vocoder, or the mean of each unit, predicts.
        """
        self._get()
        rows = []
        for c in codes:
            check_codes(c.ids, self.num_codes, 1, "units")
            lasts = self._durations(c.ids) if c.durations is None else c.durations
            rows.append(np.repeat(c.ids[:, 0], lasts))
        return [Waveform(np.clip(samples, -1.0, 1.0), self.rate_hz) for samples in self._sound(rows)]

    def open_stream(self) -> StreamDecoder:
        """Griffin-Lim that continues its samples, or windows of the vocoder, cross-faded; durations as `decode` predicts them."""
        self._get()
        frames = copy.copy(self)
        frames.dedup = False  # every code that it sees lasts one frame
        stream: StreamDecoder
        if self._vocoder is not None:
            stream = WindowStream(frames, past=24, future=8, fade=2)
        else:
            self._get_decoder()
            ahead = math.ceil(REACH / self._stretch)
            stream = MelStream(frames, self._some_mels, self._stretch, ahead, self._mel, self.griffin_lim_iterations)
        return RunStream(stream, self._durations, DURATION_REACH, self.num_codes) if self.dedup else stream

    def code_vectors(self) -> np.ndarray:
        """The centroids, standardised: f32 [1, K, D]."""
        return standardize(self._get()["centroids"].cpu().numpy()[None])

    # -- pieces

    def _get(self) -> dict[str, Tensor]:
        if not self._weights:
            raise CheckpointError("codec 'units' holds no weights yet: call load() (codec.path) or fit()")
        return self._weights

    def _get_decoder(self) -> UnitDecoder:
        if self._decoder is None:
            raise ConfigError(
                "codec 'units': published centroids alone cannot be decoded: set codec.vocoder, or fit a decoder ('ttt fit codec')"
            )
        return self._decoder

    @torch.inference_mode()
    def _pooled(self, wave: Waveform) -> Tensor:
        """Hidden states of a recording, averaged over ``pool`` frames (the last repeats to fill its group): f32 [F, D]."""
        if self._encoder is None:
            raise ConfigError("codec.encoder: not set; the codec 'units' cannot encode without the folder of its encoder")
        check_wave(wave, RATE_HZ, "units")
        states = self._encoder.features(torch.tensor(wave.samples))
        if self.pool == 1:
            return states
        missing = -len(states) % self.pool
        return torch.cat([states, states[-1:].expand(missing, -1)]).unflatten(0, (-1, self.pool)).mean(1)

    @torch.inference_mode()
    def _durations(self, ids: np.ndarray) -> np.ndarray:
        """Frames i64 [F] that codes i32 [F, 1] last."""
        if not self.dedup or not len(ids):
            return np.ones(len(ids), dtype=np.int64)
        units = torch.as_tensor(ids[:, 0], device=self._device).long()
        if self._vocoder is not None and self._vocoder.dur_predictor is not None:
            return self._vocoder.durations(units).cpu().numpy()
        if "durations" not in self._weights:
            raise ConfigError(
                "codec 'units': codes without runs and without durations need a vocoder with a duration predictor, or a fitted "
                "codec (codec.path)"
            )
        return self._weights["durations"][units].round().long().clamp(min=1).cpu().numpy()

    def _sound(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Samples of units [F] that last one frame each."""
        out = [np.zeros(0, dtype=np.float32)] * len(rows)
        order = sorted((i for i in range(len(rows)) if len(rows[i])), key=lambda i: len(rows[i]))
        if self._vocoder is not None:
            for i in order:
                ids = torch.as_tensor(rows[i], device=self._device).long()
                out[i] = self._vocoder(ids, self.speaker, self.style).cpu().numpy()
            return out
        self._get_decoder()
        for start in range(0, len(order), 16):
            part = order[start : start + 16]
            mels = [self._mels(rows[i]) for i in part]
            frames = [len(m) for m in mels]
            linear = mel_to_linear(torch.cat(mels), self._mel).split(frames)
            padded = torch.nn.utils.rnn.pad_sequence(list(linear), batch_first=True)
            samples = griffin_lim(padded, frames, self._mel, self.griffin_lim_iterations).cpu().numpy()
            for row, i in enumerate(part):
                out[i] = samples[row, : frames[row] * self._mel.hop_samples]
        return out

    def _mels(self, ids: np.ndarray) -> Tensor:
        units = torch.as_tensor(ids, device=self._device).long()
        return self._get_decoder()(units[None])[0].clamp(math.log(self._mel.min_magnitude), 5.0)

    def _some_mels(self, ids: np.ndarray, start: int, stop: int) -> Tensor:
        """Mel frames [start, stop) of codes [F, 1]: those in reach are decoded."""
        first = max(0, (start - REACH) // self._stretch)
        last = -(-(stop + REACH) // self._stretch)
        mels = self._mels(ids[first:last, 0])
        return mels[start - first * self._stretch : stop - first * self._stretch]


def read_centroids(path: str | Path, num_codes: int) -> Tensor:
    """Centroids f32 [K, D] of a ``.npy`` file.  Raises `CheckpointError`; of pickles (joblib) it says how to convert them."""
    path = Path(path)
    if path.suffix != ".npy":
        raise CheckpointError(
            f"{path}: centroids are read from .npy only; where you trust this file, convert it once in Python: import joblib, "
            "numpy; numpy.save('centroids.npy', joblib.load(FILE).cluster_centers_)"
        )
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:  # numpy's own words offer to unpickle
        why = error.strerror if isinstance(error, OSError) else "not an array of numbers as numpy.save writes it"
        raise CheckpointError(f"{path}: cannot be read ({why}): name a .npy file of centroids [K, D]") from error
    if array.ndim != 2 or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise CheckpointError(f"{path}: expected finite numbers [K, D], got {array.dtype} {list(array.shape)}")
    if len(array) != num_codes:
        raise ConfigError(f"codec.num_codes: {num_codes}, but {path} holds {len(array)} centroids: set it to {len(array)}")
    return torch.tensor(array.astype(np.float32))
