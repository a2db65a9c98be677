"""Judges: speech recognisers that transcribe what a model says.

`ctc` is fitted on a corpus, `toy` reads the tones of the toy codec, `transformers_asr` loads a published recogniser.  A judge is
independent of the codec: `ctc` is trained on original recordings only.  Letters: ``B`` rows, ``S`` wav samples, ``T``
mel frames, ``U`` frames after the strided convolution, ``M`` mel channels, ``W`` words.
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

from ttt.audio.codecs.toy import Toy
from ttt.audio.loading import refuse_dtype
from ttt.audio.signal import MelSettings, log_mel, resample
from ttt.audio.weights import load_weights, save_weights, weights_digest
from ttt.errors import CheckpointError, DataError, TttError
from ttt.eval.metrics import word_edits
from ttt.interfaces import Judge
from ttt.io.pretrained import load_pretrained, load_settings, refuse_misfits, refuse_nonfinite
from ttt.registry import NonNegativeFloat, PositiveFloat, PositiveInt, ShareBelow1
from ttt.registry.families import JUDGE
from ttt.rng import derive_seed, generator
from ttt.types import Waveform

if TYPE_CHECKING:
    from ttt.data.manifest import Utterance

log = logging.getLogger(__name__)
_STRIDE = 4  # mel frames per output frame
_RANGE = 7.0  # log units below an utterance's loudest frame that are kept


@JUDGE.register("ctc")
@dataclass
class Ctc(Judge):
    """Small convolutional word recogniser for a closed vocabulary, fitted on original recordings by CTC.

    Log-mels, normalised to the loudest frame of the utterance, go through one strided and ``blocks`` residual convolutions;
    every 40 ms the output is a word of the corpus or the blank, and the transcript is the best path.  Training uses original
    recordings only, never a codec's output; they are varied in level, noise, tempo, blur and mel channels (stretch, masks), and,
    with ``max_silence_s``, silence is appended.
    """

    path: str = ""  # folder with judge.safetensors and judge.json
    channels: PositiveInt = 160
    blocks: PositiveInt = 5
    mels: PositiveInt = 48
    dropout: ShareBelow1 = 0.1
    max_epochs: PositiveFloat = 2.5  # the learning rate falls to zero over these
    max_seconds: NonNegativeFloat = 150.0  # of wall time; 0: no limit.  If met, weights depend on the machine's speed
    target_wer: NonNegativeFloat = 0.008  # on the dev set; training stops below it
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 4.0e-3
    max_silence_s: NonNegativeFloat = 0.0  # training appends up to so much silence, as codecs with long frames do

    # -- use

    def load(self, device: str = "cpu", dtype: str = "float32") -> Ctc:
        """Load the weights from ``path`` (float32 only); returns self."""
        refuse_dtype(self, "judge", dtype)
        tensors, info = load_weights(self.path, "judge", "run 'ttt fit judge', or point judge.path at a fitted judge")
        try:
            self.words = [str(w) for w in info["words"]]
            self.channels, self.blocks, self.mels = (int(info[k]) for k in ("channels", "blocks", "mels"))
            self._net = self._build(len(self.words))
            self._net.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(
                f"{self.path}: the weights do not fit judge.json ({reason}): run 'ttt fit judge' again"
            ) from error
        self._net.to(device).eval()
        self.judge_id = f"ctc-{weights_digest(tensors)}"
        return self

    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        """Words of each waveform, joined by blanks; a waveform shorter than 40 ms has none."""
        if not hasattr(self, "_net"):
            raise CheckpointError("judge: transcribe() before load()")
        return self._decode([self._features(w) for w in waves])

    # -- fitting

    def fit_manifests(
        self, train: Sequence[Utterance], dev: Sequence[Utterance], corpus: str | Path, seed: int
    ) -> Mapping[str, float]:
        """`fit` on manifests whose wavs lie under the folder ``corpus``."""
        from ttt.audio.wav import read

        texts = [[u.need_text("the judge") for u in part] for part in (train, dev)]
        waves = [[read(Path(corpus) / u.wav, mono=True) for u in part] for part in (train, dev)]
        return self.fit(waves[0], texts[0], waves[1], texts[1], seed)

    def fit(
        self, waves: Sequence[Waveform], texts: Sequence[str], dev_waves: Sequence[Waveform], dev_texts: Sequence[str],
        seed: int,
    ) -> Mapping[str, float]:  # fmt: skip
        """Learn to write ``texts``; returns dev word error rate, epochs and seconds.  Stops at ``target_wer``.

        Keeps the weights with the lowest dev error.  Equal seeds give equal weights on one machine and thread count,
        unless ``max_seconds`` ends the fit.
        """
        if not waves or len(waves) != len(texts):
            raise DataError(f"judge: {len(waves)} waveforms and {len(texts)} texts; one text per waveform is needed")
        started = time.perf_counter()
        self.words = sorted({word for text in texts for word in text.split()})
        number = {word: i + 1 for i, word in enumerate(self.words)}
        inputs = [self._features(w) for w in waves]
        labels = [torch.tensor([number[w] for w in text.split()], dtype=torch.long) for text in texts]
        short = [i for i, (x, y) in enumerate(zip(inputs, labels)) if len(x) // _STRIDE < _frames_needed(y)]
        if short:
            log.warning("judge: %d of %d utterances are too short for their text and are left out", len(short), len(waves))
        usable = np.setdiff1d(np.arange(len(inputs)), short)
        if not len(usable):
            raise DataError(
                "judge: every utterance is too short for its text: check that texts and wavs belong together"
            )
        dev_inputs = [self._features(w) for w in dev_waves]
        with torch.random.fork_rng(devices=[]):  # initial weights and dropout draw from the global generator
            torch.manual_seed(derive_seed(seed, "judge"))
            result = self._train(inputs, labels, usable, dev_inputs, dev_texts, seed, started)
        self._info = {"dev_wer": result["dev_wer"], "dev_utterances": len(dev_texts), "seed": seed}
        self.judge_id = f"ctc-{weights_digest(self._net.state_dict())}"
        return result

    def save(self, folder: str | Path) -> None:
        """Write ``judge.safetensors`` + ``judge.json``, complete or not at all."""
        if not hasattr(self, "_net"):
            raise CheckpointError("judge: save() before fit()")
        info = {"name": "ctc", "channels": self.channels, "blocks": self.blocks, "mels": self.mels, "words": self.words}
        save_weights(folder, "judge", self._net.state_dict(), {**info, **getattr(self, "_info", {})})

    def _train(
        self, inputs: list[Tensor], labels: list[Tensor], kept: np.ndarray, dev_inputs: list[Tensor],
        dev_texts: Sequence[str], seed: int, started: float,
    ) -> dict[str, float]:  # fmt: skip
        net = self._net = self._build(len(self.words))
        pooled = torch.cat([inputs[i] for i in kept[:: max(1, len(kept) // 1000)]])
        net.mean.copy_(pooled.mean(0))
        net.scale.copy_(pooled.std(0).clamp(min=0.1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.learning_rate, weight_decay=0.01)
        batches_per_epoch = -(-len(kept) // self.batch_size)
        steps = max(1, round(self.max_epochs * batches_per_epoch))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps + 1, pct_start=0.15
        )
        check = max(1, batches_per_epoch // 3)
        best, best_weights, step = float("inf"), None, 0
        rng = np.random.default_rng(derive_seed(seed, "judge_order"))
        gen = generator(seed, "judge_noise")
        while step < steps:
            for batch in _batches(kept, [len(x) for x in inputs], self.batch_size, rng):
                net.train()
                chosen = [self._silenced(_perturb(inputs[i], rng), rng) for i in batch]
                x, frames = _pad(chosen)
                x = _augment(x, gen)
                log_probs, out = net(x, frames)
                target = torch.cat([labels[i] for i in batch])
                lengths = torch.tensor([len(labels[i]) for i in batch])
                loss = F.ctc_loss(log_probs.transpose(0, 1), target, out, lengths, reduction="sum", zero_infinity=True)
                optimizer.zero_grad()
                (loss / lengths.sum()).backward()
                nn.utils.clip_grad_norm_(net.parameters(), 2.0)
                optimizer.step()
                schedule.step()
                step += 1
                late = bool(self.max_seconds) and time.perf_counter() - started > self.max_seconds
                if step % check == 0 or step == steps or late:
                    wer = _word_error_rate(dev_texts, self._decode(dev_inputs)) if dev_texts else float("nan")
                    log.info(
                        "judge: epoch %.1f  loss %.3f  dev wer %.4f  %.0f s", step / batches_per_epoch,
                        float(loss.detach()) / int(lengths.sum()), wer, time.perf_counter() - started,
                    )  # fmt: skip
                    if wer < best or best_weights is None:
                        best, best_weights = wer, {k: v.clone() for k, v in net.state_dict().items()}
                    if late or wer <= self.target_wer:
                        steps = step
                if step >= steps:
                    break
        assert best_weights is not None
        net.load_state_dict(best_weights)
        net.eval()
        return {"dev_wer": best, "epochs": step / batches_per_epoch, "seconds": time.perf_counter() - started}

    # -- pieces

    def _build(self, words: int) -> _Net:
        return _Net(self.mels, self.channels, self.blocks, words + 1, self.dropout)

    def _features(self, wave: Waveform) -> Tensor:
        """Log-mels [T, M] from 0 (the loudest frame's mean) down to -_RANGE below the mean."""
        settings = MelSettings(mels=self.mels, min_magnitude=1e-4)
        samples = torch.tensor(resample(wave, settings.rate_hz).samples)
        if len(samples) < settings.hop_samples * _STRIDE:
            return torch.zeros(0, self.mels)
        if not bool(torch.isfinite(samples).all()):
            raise DataError("judge: a waveform holds NaN or infinite samples: check what made it")
        x = log_mel(samples, settings)
        return (x - x.mean(1).max()).clamp(min=-_RANGE)

    def _silenced(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Log-mels [T, M] with a random length of silence behind them."""
        if not self.max_silence_s:
            return x
        frames = int(rng.integers(round(100 * self.max_silence_s) + 1))
        return torch.cat([x, x.new_full((frames, x.shape[1]), -_RANGE)])

    @torch.inference_mode()
    def _decode(self, inputs: Sequence[Tensor], batch_size: int = 64) -> list[str]:
        self._net.eval()
        device = self._net.mean.device
        order = sorted((i for i in range(len(inputs)) if len(inputs[i])), key=lambda i: len(inputs[i]))
        texts = [""] * len(inputs)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            x, frames = _pad([inputs[i] for i in rows])
            log_probs, out = self._net(x.to(device), frames)
            for i, path, length in zip(rows, log_probs.argmax(-1).cpu(), out.tolist()):
                ids = torch.unique_consecutive(path[:length]).tolist()
                texts[i] = " ".join(self.words[k - 1] for k in ids if k)
        return texts


@JUDGE.register("toy")
@dataclass
class ToyTones(Judge):
    """Reads the tones of the `toy` codec: a run of code k is the word ``wk``; the last code and silence separate words."""

    num_codes: PositiveInt = 32

    def __post_init__(self) -> None:
        self._codec = Toy(num_codes=self.num_codes)
        self.judge_id = f"toy-{self.num_codes}"

    def load(self, device: str = "cpu", dtype: str = "float32") -> ToyTones:
        """Returns self; there are no weights."""
        return self

    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        """One word per run of equal tones."""
        texts = []
        for wave in waves:
            strength = self._codec.strengths(resample(wave, self._codec.rate_hz).samples)  # [F, C]
            pause = self.num_codes - 1
            ids = np.where(strength.max(1, initial=0.0) < 0.05, pause, strength.argmax(1)).tolist()
            starts = [k for k, before in zip(ids, [None, *ids]) if k != before]
            texts.append(" ".join(f"w{k}" for k in starts if k != pause))
        return texts


@JUDGE.register("transformers_asr")
@dataclass
class TransformersAsr(Judge):
    """Any CTC or Whisper recogniser of transformers, saved with its processor in a local folder; nothing is downloaded."""

    path: str = ""
    language: str = ""  # Whisper only: for example "en"; empty: what the model's generation settings say
    max_new_tokens: PositiveInt = 128  # Whisper only

    def load(self, device: str = "cpu", dtype: str = "float32") -> TransformersAsr:
        """Load model and processor from ``path``; returns self."""
        mend = "point judge.path at a folder saved by save_pretrained of a recogniser and of its processor"
        if not self.path:
            raise CheckpointError(f"judge.path: not set for judge 'transformers_asr': {mend}")
        folder = Path(self.path)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no transformers model here (config.json is missing): {mend}")
        import transformers

        try:
            config = load_settings(transformers.AutoConfig, folder)
            self._generates = bool(config.is_encoder_decoder)
            auto = transformers.AutoModelForSpeechSeq2Seq if self._generates else transformers.AutoModelForCTC
            model, info = load_pretrained(auto, folder, output_loading_info=True)
            if info["missing_keys"]:
                raise CheckpointError(
                    f"{folder}: the weights lack {len(info['missing_keys'])} arrays, first {sorted(info['missing_keys'])[0]}: "
                    f"{mend}"
                )
            refuse_misfits(folder, info, strict=False)
            refuse_nonfinite(folder, model.named_parameters())
            self._processor = load_settings(transformers.AutoProcessor, folder)
            self._rate_hz = int(self._processor.feature_extractor.sampling_rate)
        except TttError:
            raise
        except Exception as error:  # transformers raises many kinds for damaged folders
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(f"{folder}: the recogniser cannot be loaded ({reason}): {mend}") from error
        self.judge_id = f"{config.model_type}-{weights_digest(model.state_dict())}"  # of the stored weights
        self._model = model.to(device, getattr(torch, dtype)).eval()
        return self

    @torch.inference_mode()
    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        """One transcript per waveform; waveforms are transcribed one by one, so that the result does not depend on the others."""
        if not hasattr(self, "_model"):
            raise CheckpointError("judge: transcribe() before load()")
        return [self._hear(resample(w, self._rate_hz).samples) for w in waves]

    def _hear(self, samples: np.ndarray) -> str:
        if len(samples) < self._rate_hz // 25:  # shorter than any word
            return ""
        longest_s = getattr(self._processor.feature_extractor, "chunk_length", None)
        if self._generates and longest_s and len(samples) > longest_s * self._rate_hz:
            raise DataError(
                f"judge: a waveform of {len(samples) / self._rate_hz:.1f} s, this recogniser takes {longest_s} s: cut it"
            )
        inputs = self._processor(samples, sampling_rate=self._rate_hz, return_tensors="pt")
        inputs = inputs.to(device=self._model.device, dtype=self._model.dtype)
        if self._generates:
            options: dict[str, Any] = {"language": self.language} if self.language else {}
            ids = self._model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, **options)
            return str(self._processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()
        return str(self._processor.batch_decode(self._model(**inputs).logits.argmax(-1))[0]).strip()


class _Net(nn.Module):
    """Log-mels [B, T, M] -> log-probabilities [B, U, W + 1] and valid lengths [B]; class 0 is CTC's blank."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mels: int, channels: int, blocks: int, classes: int, dropout: float):
        super().__init__()
        self.register_buffer("mean", torch.zeros(mels))
        self.register_buffer("scale", torch.ones(mels))
        self.front = nn.Conv1d(mels, channels, 2 * _STRIDE, _STRIDE, _STRIDE // 2)
        self.norm = nn.BatchNorm1d(channels)
        self.blocks = nn.ModuleList([_Block(channels, 5, dropout) for _ in range(blocks)])
        self.out = nn.Linear(channels, classes)

    def forward(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        frames = frames.to(x.device)
        x = ((x - self.mean) / self.scale).transpose(1, 2)  # [B, M, T]
        x = x * _mask(frames, x.shape[2])
        x, frames = self.front(x), frames // _STRIDE
        mask = _mask(frames, x.shape[2])
        x = F.relu(self.norm(x)) * mask
        for block in self.blocks:
            x = block(x) * mask
        return self.out(x.transpose(1, 2)).log_softmax(-1), frames


class _Block(nn.Module):
    """Residual convolution over time.  [B, C, U] -> [B, C, U]."""

    def __init__(self, channels: int, width: int, dropout: float):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, width, padding=width // 2)
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(F.relu(self.norm(self.conv(x))))


def _mask(frames: Tensor, width: int) -> Tensor:
    return (torch.arange(width, device=frames.device)[None] < frames[:, None])[:, None].float()


def _pad(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    frames = torch.tensor([len(x) for x in inputs])
    return nn.utils.rnn.pad_sequence(list(inputs), batch_first=True), frames


def _frames_needed(label: Tensor) -> int:
    """CTC needs a frame per word and one between equal neighbours."""
    return len(label) + int((label[1:] == label[:-1]).sum())


def _batches(kept: np.ndarray, lengths: Sequence[int], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of nearly equal lengths, in random order."""
    key = np.asarray(lengths)[kept] * rng.uniform(0.9, 1.1, len(kept))
    order = kept[np.argsort(key, kind="stable")]
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _perturb(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Change the tempo (0.87 to 1.15) and the vocal tract (mel channels stretched by up to 8 %)."""
    frames = max(_STRIDE, round(len(x) * float(rng.uniform(0.95, 1.15))))
    stretch = float(rng.uniform(0.92, 1.08))
    grid = torch.empty(1, frames, x.shape[1], 2)
    grid[..., 1] = torch.linspace(-1, 1, frames)[None, :, None]
    grid[..., 0] = torch.linspace(-1, 2 * stretch - 1, x.shape[1])[None, None, :]
    return F.grid_sample(x[None, None], grid, padding_mode="border", align_corners=True)[0, 0]


def _augment(x: Tensor, gen: torch.Generator) -> Tensor:
    """Blur, noise, level and masks on log-mels [B, T, M]; one draw per row."""
    rows, width, mels = x.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=gen)

    blurred = F.avg_pool1d(x.transpose(1, 2), 5, 1, 2, count_include_pad=False).transpose(1, 2)
    share = draw(rows, 1, 1) * (draw(rows, 1, 1) < 0.5)
    x = x + share * (blurred - x)
    x = x + 0.5 * draw(rows, 1, 1) * torch.randn(x.shape, generator=gen)
    x = x + 0.6 * (draw(rows, 1, 1) - 0.5)
    lowest = -_RANGE + 4.0 * draw(rows, 1, 1) * (draw(rows, 1, 1) < 0.5)
    x = torch.maximum(x, lowest)
    channel, frame = torch.arange(mels)[None, None], torch.arange(width)[None, :, None]
    for _ in range(2):
        start = draw(rows, 1, 1) * mels
        x = x.masked_fill((channel >= start) & (channel < start + 8 * draw(rows, 1, 1)), -3.0)
    start = draw(rows, 1, 1) * width
    return x.masked_fill((frame >= start) & (frame < start + 10 * draw(rows, 1, 1)), -5.0)


def _word_error_rate(references: Sequence[str], transcripts: Sequence[str]) -> float:
    """Edits over reference words, summed over all utterances.

    >>> _word_error_rate(["one two two", "four"], ["one two", ""])
    0.5
    """
    counts = [word_edits(" ".join(r.split()), " ".join(t.split())) for r, t in zip(references, transcripts)]
    return sum(s + d + i for s, d, i, _ in counts) / max(1, sum(n for *_, n in counts))
