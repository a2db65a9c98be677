"""One tiny tokenizer, tiny random models and example builders for the whole suite."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import pytest
import torch

from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.types import Example, Kind, Layout, PackedBatch, Span, TokenStream, Turn

SENTENCES = (
    "the quick brown fox jumps over the lazy dog", "a cat sat on the mat", "what is the capital of france",
    "one two three four five six seven eight nine ten", "write what you hear", "read this aloud", "system user assistant",
)  # fmt: skip
NUM_CODES = 32


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory):
    """What the toolkit keeps for a user (`ttt.io.user_cache`) lies in a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@lru_cache(maxsize=1)
def tiny_tokenizer():
    from ttt.text.tokenizer import train_bpe

    return train_bpe(SENTENCES * 3, 300, NUM_CODES)


@cache
def tiny_hf(kind: str = "qwen2", layers: int = 2, seed: int = 0, attention: str = "sdpa", spread: float = 0.15):
    """A random causal LM over the tiny vocabulary; treat it as read-only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=tiny_tokenizer().vocab.size, max_position_embeddings=1024,
        tie_word_embeddings=False, initializer_range=spread, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def tiny_model(kind: str = "qwen2", layers: int = 2, seed: int = 0, attention: str = "sdpa", bias: dict | None = None):
    """`SpeechTextLM` on `tiny_hf`; ``bias`` {id: b} is added to the logits, so that rare ids are drawn."""
    from ttt.model.lm import SpeechTextLM

    class Biased(SpeechTextLM):
        def head(self, hidden, ids=None):
            logits = super().head(hidden)
            for token, b in (bias or {}).items():
                logits[..., token] += b
            return logits if ids is None else logits[..., ids]

        def forward(self, x):
            if x.targets is None or not bias:
                return super().forward(x)
            logits = super().forward(dataclasses.replace(x, targets=None, weight=None))
            return torch.nn.functional.cross_entropy(logits, x.targets, reduction="none")

    return Biased(tiny_hf(kind, layers, seed, attention), tiny_tokenizer())


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def vocab(tokenizer):
    return tokenizer.vocab


@pytest.fixture(scope="session")
def model():
    """Tiny Qwen2; read-only."""
    return tiny_model()


def text(words: str) -> Span:
    return Span("text", words)


def audio(codes: Sequence[int], style: str = "span") -> Span:
    return Span("audio", codes=np.asarray(codes, dtype=np.int32).reshape(-1, 1), style=style)


def chat(uid: str, user: Sequence[Span], answer: Sequence[Span], system: str = "") -> Example:
    turns = (Turn("system", (text(system),)), Turn("user", tuple(user)), Turn("assistant", tuple(answer)))
    return Example(uid, turns, "chat")


def random_example(rng: np.random.Generator, uid: str, max_codes: int = 14) -> Example:
    """A chat with 0 to 2 ordinary spans, often a last one, in a random order of text and audio."""

    def words() -> Span:
        return text(" ".join(rng.choice(SENTENCES[1].split(), size=rng.integers(1, 4))))

    def codes(style: str) -> Span:
        return audio(rng.integers(0, NUM_CODES, size=rng.integers(1, max_codes + 1)), style)

    user = [words()] if rng.random() < 0.5 else [codes("user")]
    answer = []
    for _ in range(rng.integers(0, 3)):
        answer += [words(), codes("span")]
    answer.append(words())
    if rng.random() < 0.7:
        answer.append(codes("last"))
    return chat(uid, user, answer)


def random_streams(seed: int, n: int, max_codes: int = 14) -> list[TokenStream]:
    rng = np.random.default_rng(seed)
    return [encode_example(random_example(rng, f"e{seed}_{i}", max_codes), tiny_tokenizer()) for i in range(n)]


def pack(rows: Sequence[Sequence[TokenStream]]) -> PackedBatch:
    """Rows of streams as one batch, as wide as the longest."""
    v = tiny_tokenizer().vocab
    return collate(rows, max(sum(map(len, row)) for row in rows), v.pad_id, v.mask_id, v.code_space)


def random_batch(seed: int = 0) -> PackedBatch:
    """Three rows of 2, 1 and 3 documents."""
    s = random_streams(seed, 6)
    return pack([s[:2], s[2:3], s[3:]])


def layout_of(ids: Sequence[int], audio_start: int = 100, prompt_length: int = 0) -> Layout:
    """One visible document."""
    x = torch.tensor([list(ids)])
    is_audio = x >= audio_start
    column = torch.arange(x.shape[1])[None]
    return Layout(
        kind=torch.where(is_audio, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8), run_id=torch.cumsum(~is_audio, 1),
        doc=torch.zeros_like(x), position=column, prompt=column < prompt_length,
        visible=torch.ones_like(is_audio), stream=torch.zeros_like(x),
    )  # fmt: skip


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def small_lm():
    """The module ``examples/plugin/ttt_example/archs.py``; its architecture is registered by `registered_small_lm` only."""
    import importlib.util
    from pathlib import Path

    from ttt.registry.families import ARCH

    ARCH.names()  # the built-in ones first
    path = Path(__file__).parents[1] / "examples/plugin/ttt_example/archs.py"
    spec = importlib.util.spec_from_file_location("small_lm_for_tests", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.entry = ARCH._entries.pop("small_lm")
    return module


@pytest.fixture
def registered_small_lm(monkeypatch):
    """`small_lm`, with its architecture registered until the test is over."""
    from ttt.registry.families import ARCH

    module = small_lm()
    monkeypatch.setattr(ARCH, "_entries", {**ARCH._entries, "small_lm": module.entry})
    return module
