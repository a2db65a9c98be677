"""Speaker encoders: a voice as a vector of length 1; recordings of one voice have a cosine near 1.

`small` is fitted on the voices of a corpus, on original recordings only; `transformers_xvector` loads a published
encoder.  Letters: ``B`` rows, ``T`` mel frames, ``M`` mel channels, ``E`` numbers of an embedding, ``V`` voices.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttt.audio.loading import refuse_dtype
from ttt.audio.signal import MelSettings, log_mel, resample
from ttt.audio.weights import load_weights, save_weights, weights_digest
from ttt.errors import CheckpointError, DataError, TttError
from ttt.interfaces import SpeakerEncoder
from ttt.io.pretrained import load_pretrained, load_settings, refuse_misfits, refuse_nonfinite
from ttt.registry import PositiveFloat, PositiveInt
from ttt.registry.families import SPEAKER
from ttt.rng import derive_seed
from ttt.types import Waveform

if TYPE_CHECKING:
    from ttt.data.manifest import Utterance

log = logging.getLogger(__name__)
_MIN_S = 0.1  # shorter sounds are padded with silence
_RANGE = 7.0  # log units below the loudest frame that are kept


@SPEAKER.register("small")
@dataclass
class SmallSpeaker(SpeakerEncoder):
    """Convolutions over log-mels, mean and standard deviation over time, one linear layer; fitted on the voices of a corpus.

    Trained on random crops of the recordings with a softmax over scaled cosines, so that the angle identifies the voice.
    """

    path: str = ""  # folder with speaker.safetensors and speaker.json
    channels: PositiveInt = 96
    dim: PositiveInt = 64  # numbers of an embedding
    mels: PositiveInt = 48
    epochs: PositiveFloat = 4.0
    utterances: PositiveInt = 1600  # at most so many recordings are used, equally many of each voice
    crop_s: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)  # shortest and longest crop
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 2.0e-3

    def __post_init__(self) -> None:
        if self.crop_s[0] > self.crop_s[1]:
            raise ValueError(f"crop_s must be two times in seconds, the shorter first, got {list(self.crop_s)}")

    def load(self, device: str = "cpu", dtype: str = "float32") -> SmallSpeaker:
        """Load the weights from ``path`` (float32 only); returns self."""
        refuse_dtype(self, "speaker", dtype)
        tensors, info = load_weights(
            self.path, "speaker", "run 'ttt fit speaker', or point speaker.path at a fitted encoder"
        )
        try:
            self.voices = [str(v) for v in info["voices"]]
            self.channels, self.dim, self.mels = (int(info[k]) for k in ("channels", "dim", "mels"))
            self._net = _Net(self.mels, self.channels, self.dim, len(self.voices))
            self._net.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(
                f"{self.path}: the weights do not fit speaker.json ({reason}): run 'ttt fit speaker' again"
            ) from error
        self._net.to(device).eval()
        self.speaker_id = f"small-{weights_digest(tensors)}"
        return self

    @torch.inference_mode()
    def embed(self, waves: Sequence[Waveform]) -> np.ndarray:
        """f32 [n, E]; one recording at a time, so that the result does not depend on the others."""
        if not hasattr(self, "_net"):
            raise CheckpointError("speaker: embed() before load()")
        self._net.eval()
        device = self._net.mean.device
        rows = [self._net.embed(self._features(w)[None].to(device))[0].cpu() for w in waves]
        return torch.stack(rows).numpy() if rows else np.zeros((0, self.dim), dtype=np.float32)

    def fit_manifests(
        self, train: Sequence[Utterance], dev: Sequence[Utterance], corpus: str | Path, seed: int
    ) -> Mapping[str, float]:
        """`fit` on manifests whose wavs are under the folder ``corpus``; equally many recordings of each voice."""
        from ttt.audio.wav import read

        rng = np.random.default_rng(derive_seed(seed, "speaker_choice"))
        by_voice: dict[str, list[Utterance]] = {}
        for u in train:
            by_voice.setdefault(u.speaker, []).append(u)
        share = max(2, self.utterances // max(1, len(by_voice)))
        chosen = [of_voice[i] for of_voice in by_voice.values() for i in rng.permutation(len(of_voice))[:share].tolist()]
        dev_chosen = [u for u in dev if u.speaker in by_voice]
        waves = [[read(Path(corpus) / u.wav, mono=True) for u in part] for part in (chosen, dev_chosen)]
        return self.fit(waves[0], [u.speaker for u in chosen], waves[1], [u.speaker for u in dev_chosen], seed)

    def fit(
        self, waves: Sequence[Waveform], voices: Sequence[str], dev_waves: Sequence[Waveform], dev_voices: Sequence[str],
        seed: int,
    ) -> Mapping[str, float]:  # fmt: skip
        """Learn to tell ``voices`` apart; returns accuracy and equal error rate on the dev recordings, and seconds."""
        if len(waves) != len(voices) or len(set(voices)) < 2:
            raise DataError(
                f"speaker: {len(waves)} recordings of {len(set(voices))} voices; at least two voices are needed"
            )
        started = time.perf_counter()
        self.voices = sorted(set(voices))
        labels = torch.tensor([self.voices.index(v) for v in voices])
        inputs = [self._features(w) for w in waves]
        rng = np.random.default_rng(derive_seed(seed, "speaker_order"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "speaker"))
            self._net = _Net(self.mels, self.channels, self.dim, len(self.voices))
        pooled = torch.cat(inputs[:: max(1, len(inputs) // 500)])
        self._net.mean.copy_(pooled.mean(0))
        self._net.scale.copy_(pooled.std(0).clamp(min=0.1))
        batches = max(1, len(inputs) // self.batch_size)
        steps = max(1, round(self.epochs * batches))
        optimizer = torch.optim.AdamW(self._net.parameters(), lr=self.learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps + 1, pct_start=0.2
        )
        self._net.train()
        order = rng.permutation(len(inputs))
        for step in range(steps):
            at = step % batches
            if at == 0:
                order = rng.permutation(len(inputs))
            batch = order[at * self.batch_size : (at + 1) * self.batch_size]
            frames = max(10, round(100 * float(rng.uniform(*self.crop_s))))
            x = torch.stack([_crop(inputs[i], frames, rng) for i in batch])
            x = x + 0.5 * torch.from_numpy(rng.normal(size=(len(batch), 1, 1)).astype(np.float32))  # level
            loss = F.cross_entropy(self._net(x), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % max(1, batches) == 0:
                log.info("speaker: epoch %.1f  loss %.3f", (step + 1) / batches, float(loss.detach()))
        self._net.eval()
        self.speaker_id = f"small-{weights_digest(self._net.state_dict())}"
        measured = {"num_voices": float(len(self.voices)), "seconds": time.perf_counter() - started}
        if len(dev_waves):
            embedded = self.embed(dev_waves)
            measured["dev_accuracy"] = self._accuracy(embedded, dev_voices)
            measured["dev_eer"] = equal_error_rate(embedded, dev_voices)
        self._info = {k: v for k, v in measured.items() if k != "seconds"} | {"seed": seed}
        return measured

    def save(self, folder: str | Path) -> None:
        """Write ``speaker.safetensors`` + ``speaker.json``, complete or not at all."""
        if not hasattr(self, "_net"):
            raise CheckpointError("speaker: save() before fit()")
        info = {"name": "small", "channels": self.channels, "dim": self.dim, "mels": self.mels, "voices": self.voices}
        save_weights(folder, "speaker", self._net.state_dict(), {**info, **getattr(self, "_info", {})})

    def _accuracy(self, embedded: np.ndarray, voices: Sequence[str]) -> float:
        with torch.inference_mode():
            guessed = self._net.logits(torch.from_numpy(embedded)).argmax(1)
        return float(np.mean([self.voices[int(g)] == v for g, v in zip(guessed, voices, strict=True)]))

    def _features(self, wave: Waveform) -> Tensor:
        """Log-mels [T, M] from 0 (the loudest frame's mean) down."""
        settings = MelSettings(mels=self.mels, min_magnitude=1e-4)
        samples = torch.tensor(resample(wave, settings.rate_hz).samples)
        min_samples = round(_MIN_S * settings.rate_hz)
        if len(samples) < min_samples:
            samples = F.pad(samples, (0, min_samples - len(samples)))
        if not bool(torch.isfinite(samples).all()):
            raise DataError("speaker: a waveform holds NaN or infinite samples: check what made it")
        x = log_mel(samples, settings)
        return (x - x.mean(1).max()).clamp(min=-_RANGE)


@SPEAKER.register("transformers_xvector")
@dataclass
class TransformersXVector(SpeakerEncoder):
    """Any x-vector model of transformers (WavLM, UniSpeech-SAT, wav2vec 2), saved with its feature extractor in a local folder."""

    path: str = ""

    def load(self, device: str = "cpu", dtype: str = "float32") -> TransformersXVector:
        """Load model and feature extractor from ``path``; returns self.  Nothing is downloaded."""
        mend = (
            "point speaker.path at a folder saved by save_pretrained of an x-vector model and of its feature extractor"
        )
        if not self.path:
            raise CheckpointError(f"speaker.path: not set for 'transformers_xvector': {mend}")
        folder = Path(self.path)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no transformers model here (config.json is missing): {mend}")
        import transformers

        try:
            auto: Any = transformers.AutoModelForAudioXVector
            model, info = load_pretrained(auto, folder, output_loading_info=True)
            self._extractor = load_settings(transformers.AutoFeatureExtractor, folder)
            refuse_misfits(folder, {**info, "missing_keys": ()}, strict=False)
            refuse_nonfinite(folder, model.named_parameters())
        except TttError:
            raise
        except Exception as error:  # transformers raises many kinds for damaged folders
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(f"{folder}: the speaker encoder cannot be loaded ({reason}): {mend}") from error
        missing = [
            key for key in info["missing_keys"] if not key.startswith("objective.")
        ]  # classes of the training only
        if missing:
            raise CheckpointError(
                f"{folder}: the weights lack {len(missing)} arrays, first {sorted(missing)[0]}: {mend}"
            )
        self._rate_hz = int(self._extractor.sampling_rate)
        self.speaker_id = f"{model.config.model_type}-{weights_digest(model.state_dict())}"  # of the stored weights
        self._model = model.to(device, getattr(torch, dtype)).eval()
        return self

    @torch.inference_mode()
    def embed(self, waves: Sequence[Waveform]) -> np.ndarray:
        """f32 [n, E]; one recording at a time; those shorter than half a second are padded with silence."""
        if not hasattr(self, "_model"):
            raise CheckpointError("speaker: embed() before load()")
        rows = []
        for wave in waves:
            samples = resample(wave, self._rate_hz).samples
            samples = np.pad(samples, (0, max(0, self._rate_hz // 2 - len(samples))))
            inputs = self._extractor(samples, sampling_rate=self._rate_hz, return_tensors="pt")
            inputs = inputs.to(device=self._model.device, dtype=self._model.dtype)
            rows.append(F.normalize(self._model(**inputs).embeddings[0].float(), dim=-1).cpu().numpy())
        return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def equal_error_rate(embedded: np.ndarray, voices: Sequence[str]) -> float:
    """Error rate at the threshold where pairs of one voice are rejected as often as pairs of two voices are accepted.

    ``embedded`` f32 [n, E]; NaN when there are only pairs of one kind.

    >>> equal_error_rate(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]], ["a", "a", "b", "b"])
    0.0
    """
    cosines = embedded @ embedded.T
    at = np.triu_indices(len(embedded), 1)
    names = np.asarray(voices)
    same: np.ndarray = names[at[0]] == names[at[1]]
    if not same.any() or same.all():
        return float("nan")
    scores = cosines[at]
    thresholds = np.unique(scores)
    missed = np.searchsorted(np.sort(scores[same]), thresholds, side="left") / same.sum()
    other = np.logical_not(same)
    wrong = 1 - np.searchsorted(np.sort(scores[other]), thresholds, side="left") / other.sum()
    best = int(np.argmin(np.abs(missed - wrong)))
    return float((missed[best] + wrong[best]) / 2)


class _Net(nn.Module):
    """Log-mels [B, T, M] -> scaled cosines to the voices [B, V]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mels: int, channels: int, dim: int, voices: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(mels))
        self.register_buffer("scale", torch.ones(mels))
        self.layers = nn.ModuleList([
            nn.Conv1d(mels, channels, 5, stride=2, padding=2),
            nn.Conv1d(channels, channels, 3, padding=2, dilation=2),
            nn.Conv1d(channels, channels, 3, padding=3, dilation=3),
        ])  # fmt: skip
        self.out = nn.Linear(2 * channels, dim)
        self.centres = nn.Parameter(torch.randn(voices, dim))

    def embed(self, x: Tensor) -> Tensor:
        """[B, T, M] -> unit vectors [B, E]."""
        x = ((x - self.mean) / self.scale).transpose(1, 2)
        for layer in self.layers:
            x = F.relu(layer(x))
        spread = (x.var(2, unbiased=False) + 1e-5).sqrt()
        return F.normalize(self.out(torch.cat([x.mean(2), spread], 1)), dim=-1)

    def logits(self, embedded: Tensor) -> Tensor:
        """Unit vectors [B, E] -> [B, V]."""
        return 12.0 * embedded @ F.normalize(self.centres, dim=-1).T

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.embed(x))


def _crop(x: Tensor, frames: int, rng: np.random.Generator) -> Tensor:
    """A random crop of ``frames`` frames [frames, M]; a shorter recording is repeated."""
    if len(x) < frames:
        x = x.repeat(-(-frames // len(x)), 1)
    start = int(rng.integers(0, len(x) - frames + 1))
    return x[start : start + frames]
