"""Fakes: a codec whose codes are tones, a judge that reads the tones back as words, a small test set of three tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ttt.eval.generations import Generated
from ttt.interfaces import Codec, Judge
from ttt.types import AudioCodes, Example, Span, Turn, Waveform

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
RATE_HZ, FRAME = 16_000, 1600  # ten codes per second: one word each


@dataclass
class ToneCodec(Codec):
    """Code c <-> 100 ms of a sine of 300 + 200 c Hz."""

    rate_hz = RATE_HZ
    frame_rate_hz = RATE_HZ / FRAME
    num_codes = len(WORDS)
    num_codebooks = 1
    codec_id = "tones-1"

    def load(self, device: str = "cpu") -> ToneCodec:
        return self

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        return [AudioCodes(read_tones(w)[:, None], self.frame_rate_hz, self.codec_id) for w in waves]

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        t = np.arange(FRAME) / RATE_HZ
        tones = [0.4 * np.sin(2 * np.pi * (300 + 200 * c) * t) for c in range(self.num_codes)]
        return [Waveform(np.concatenate([tones[c] for c in x.ids[:, 0]]).astype(np.float32), RATE_HZ) for x in codes]

    def open_stream(self) -> Any:
        raise NotImplementedError


class ToneJudge(Judge):
    """Says the word of each tone; counts its calls.  ``deaf_to``: a word it always misses."""

    judge_id = "fake-1a2b"

    def __init__(self, deaf_to: str = "") -> None:
        self.deaf_to, self.heard = deaf_to, 0

    def load(self, device: str = "cpu") -> ToneJudge:
        return self

    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        self.heard += len(waves)
        return [" ".join(w for c in read_tones(x) if (w := WORDS[c]) != self.deaf_to) for x in waves]


def read_tones(wave: Waveform) -> np.ndarray:
    """Loudest tone of each frame i32 [F]."""
    frames = wave.samples[: len(wave.samples) // FRAME * FRAME].reshape(-1, FRAME)
    peak = np.abs(np.fft.rfft(frames, axis=1)).argmax(1) * RATE_HZ / FRAME
    return np.clip(np.rint((peak - 300) / 200), 0, len(WORDS) - 1).astype(np.int32)


def spoken(text: str) -> np.ndarray:
    """Codes of a text i32 [F, 1]."""
    return np.array([[WORDS.index(w)] for w in text.split()], dtype=np.int32).reshape(-1, 1)


def example(uid: str, task: str, text: str, split: str = "test", key: str | None = None, **meta: Any) -> Example:
    """An example whose answer is written (not for tts) and spoken."""
    spans = (() if task == "tts" else (Span("text", text),)) + (Span("audio", codes=spoken(text), style="last"),)
    about: dict[str, Any] = {"text_ref": text, "speech_ref": text, "answer_key": key, "split": split, **meta}
    return Example(uid, (Turn("user", (Span("text", "?"),)), Turn("assistant", spans)), task, about)


def answer(ex: Example, text: str, said: str | None = None, **more: Any) -> Generated:
    """A generation: writes ``text``, says ``said``."""
    defaults: dict[str, Any] = {
        "calls": {"ar": 3, "diffusion": 2},
        "seconds": 0.1,
        "first_block_s": 0.05,
        "stopped": "im_end",
    }
    codes = spoken(said or "")
    return Generated(
        ex.uid, ex.task, str(ex.meta["split"]), text, codes, **(defaults | more), where=f"gen.jsonl:{ex.uid}"
    )


METRICS: Mapping[str, Mapping[str, str]] = {
    "asr": {"wer": "wer", "cer": "cer"},
    "tts": {"judged_wer": "judged_wer", "rtf": "rtf", "length_ratio": "length_ratio", "empty_rate": "empty_rate"},
    "qa": {"accuracy": "accuracy", "spoken_accuracy": "spoken_accuracy", "bleu": "bleu"},
}


def _fakes() -> SimpleNamespace:
    return SimpleNamespace(
        WORDS=WORDS,
        METRICS=METRICS,
        codec=ToneCodec(),
        judge=ToneJudge(),
        ToneJudge=ToneJudge,
        example=example,
        answer=answer,
        spoken=spoken,
    )


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """A random causal language model of transformers with a tokenizer of a few words, as published: a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("language_model")
    words = {w: i for i, w in enumerate(("<s>", "<unk>", *WORDS, "the", "sky", "is", "blue"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def fakes() -> SimpleNamespace:
    """The helpers of this module, with a fresh judge."""
    return _fakes()


@pytest.fixture(scope="session")
def shared_fakes() -> SimpleNamespace:
    """The same for fixtures that are made once; also pays for the slow imports once."""
    import matplotlib.figure  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    return _fakes()
