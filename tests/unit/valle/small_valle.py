"""A small vocabulary of three codebooks, small networks and batches of continuations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from ttt.config.schema import ModelSection
from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.model.valle.arch import Valle
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.types import Example, PackedBatch, Span, Turn

BOOKS, CODES = 3, 12


@lru_cache(maxsize=4)
def tokenizer(codebooks: int = BOOKS) -> TextTokenizer:
    return train_bpe(["system user assistant"] * 3, 300, CODES, codebooks)


def network(codebooks: int = BOOKS, seed: int = 0, spread: float = 3.0, **fields):
    """In evaluation mode, with heads that are not indifferent."""
    arch = Valle(**{"dim": 16, "heads": 2, "layers": 2, **fields})
    made = arch.start(ModelSection(), tokenizer(codebooks), seed).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "predict" in name and not arch.share_embeddings:
                p.mul_(spread)
    return made


def recording(rng: np.random.Generator, frames: int, codebooks: int = BOOKS) -> np.ndarray:
    return rng.integers(0, CODES, size=(frames, codebooks)).astype(np.int32)


def example(uid: str, prompt: np.ndarray, rest: np.ndarray | None = None, words: str = "") -> Example:
    said = (Span("text", words),) if words else ()
    turns = [Turn("user", (*said, Span("audio", codes=prompt, style="user")))]
    if rest is not None:
        turns.append(Turn("assistant", (Span("audio", codes=rest, style="last"),)))
    return Example(uid, tuple(turns), "continuation")


def examples(seed: int = 0, sizes: Sequence[tuple[int, int]] = ((5, 7), (4, 3), (6, 9)), codebooks: int = BOOKS):
    rng = np.random.default_rng(seed)
    return [example(f"e{i}", recording(rng, s, codebooks), recording(rng, t, codebooks)) for i, (s, t) in enumerate(sizes)]


def batch(seed: int = 0, sizes=((5, 7), (4, 3), (6, 9)), codebooks: int = BOOKS) -> PackedBatch:
    """The first two recordings share a row."""
    streams = [encode_example(e, tokenizer(codebooks)) for e in examples(seed, sizes, codebooks)]
    rows = [streams[:2], *([s] for s in streams[2:])]
    v = tokenizer(codebooks).vocab
    return collate(rows, max(sum(map(len, r)) for r in rows), v.pad_id, v.mask_id, v.code_space)
