"""The small world properties are tried in: a tokenizer, random chats and documents, batches, a random network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.types import Example, PackedBatch, Span, TokenStream, Turn

if TYPE_CHECKING:
    from ttt.model.lm import SpeechTextLM

NUM_CODES = 32
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "sang", "one", "two", "three", "four", "songs")


@lru_cache(maxsize=1)
def tokenizer() -> TextTokenizer:
    """Some 300 text ids, the official audio tokens, 32 codes."""
    return train_bpe([" ".join(WORDS), "system user assistant read this aloud"] * 3, 300, NUM_CODES)


def gen(seed: int = 0) -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def words(rng: np.random.Generator) -> Span:
    """One to three words."""
    return Span("text", " ".join(rng.choice(WORDS, size=int(rng.integers(1, 4)))))


def codes(rng: np.random.Generator, style: str, most: int) -> Span:
    """A span of 1 to ``most`` codes."""
    ids = rng.integers(0, NUM_CODES, size=(int(rng.integers(1, most + 1)), 1)).astype(np.int32)
    return Span("audio", codes=ids, style=style)


def chat(rng: np.random.Generator, uid: str, most: int, turns: int = 1) -> Example:
    """Spoken or written questions; answers of up to two ordinary spans and mostly a last one."""
    made = [Turn("system", (words(rng),))]
    for _ in range(turns):
        made.append(Turn("user", (words(rng) if rng.random() < 0.5 else codes(rng, "user", most),)))
        answer: list[Span] = []
        for _ in range(int(rng.integers(0, 3))):
            answer += [words(rng), codes(rng, "span", most)]
        answer.append(words(rng))
        if rng.random() < 0.8:
            answer.append(codes(rng, "last", most))
        made.append(Turn("assistant", tuple(answer)))
    return Example(uid, tuple(made), "chat")


def document(rng: np.random.Generator, uid: str, most: int) -> Example:
    """Pre-training data: text and speech in turn, everything a target."""
    spans = [s for _ in range(int(rng.integers(1, 3))) for s in (words(rng), codes(rng, "span", most))]
    return Example(uid, (Turn("document", (*spans, words(rng))),), "document")


def streams(seed: int, n: int, most: int = 10) -> list[TokenStream]:
    """Chats, every fourth of two turns, and every fifth example a document."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        uid = f"e{seed}_{i}"
        example = document(rng, uid, most) if i % 5 == 4 else chat(rng, uid, most, turns=2 if i % 4 == 3 else 1)
        made.append(encode_example(example, tokenizer()))
    return made


def pack(rows: Sequence[Sequence[TokenStream]]) -> PackedBatch:
    """Rows of streams, as wide as the longest."""
    v = tokenizer().vocab
    return collate(rows, max(sum(map(len, row)) for row in rows), v.pad_id, v.mask_id, v.code_space)


def batch(seed: int = 0, most: int = 10) -> PackedBatch:
    """Three rows of 2, 1 and 2 documents, with padding."""
    s = streams(seed, 5, most)
    return pack([s[:2], s[2:3], s[3:]])


def pairs(seed: int = 0, n: int = 4, most: int = 6) -> PackedBatch:
    """Two rows of preference pairs: chats with a rejected answer each."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        one, other = (chat(rng, f"p{seed}_{i}", most) for _ in range(2))
        made.append(encode_example(dataclasses.replace(one, rejected=other.turns[-1]), tokenizer()))
    return pack([made[: n // 2], made[n // 2 :]])


def quiet_batch() -> PackedBatch:
    """Text only."""
    rng = np.random.default_rng(0)
    turns = (Turn("user", (words(rng),)), Turn("assistant", (words(rng),)))
    return pack([[encode_example(Example(f"q{i}", turns, "chat"), tokenizer())] for i in range(2)])


def network() -> SpeechTextLM:
    """A fresh random two-layer network over the small vocabulary, in evaluation mode."""
    from ttt.config.schema import ModelSection
    from ttt.model.causal_lm import build_lm
    from ttt.registry.families import INITIALIZER

    shape = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2}
    section = ModelSection(preset="toy", overrides=shape, init=INITIALIZER.build("normal", "init"))
    return build_lm(section, tokenizer(), seed=0).eval()
