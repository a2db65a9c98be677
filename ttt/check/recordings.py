"""The small world of frame models: recordings of three codebooks cut in two, a small ``valle`` of the form an objective trains."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.types import Example, PackedBatch, Span, Turn

BOOKS, NUM_CODES = 3, 12


@lru_cache(maxsize=1)
def tokenizer() -> TextTokenizer:
    """Three codebooks of twelve codes."""
    return train_bpe(["system user assistant"] * 3, 300, NUM_CODES, BOOKS)


def recording(rng: np.random.Generator, uid: str) -> Example:
    """A prompt of 4 to 7 frames, an answer of 3 to 9."""
    parts = [rng.integers(0, NUM_CODES, (int(rng.integers(*n)), BOOKS)).astype(np.int32) for n in ((4, 8), (3, 10))]
    spans = [(Span("audio", codes=codes, style=style),) for codes, style in zip(parts, ("user", "last"), strict=True)]
    return Example(uid, (Turn("user", spans[0]), Turn("assistant", spans[1])), "continuation")


def batch(seed: int = 0) -> PackedBatch:
    """Three recordings in two rows."""
    rng = np.random.default_rng(seed)
    s = [encode_example(recording(rng, f"r{i}"), tokenizer()) for i in range(3)]
    v = tokenizer().vocab
    rows = [s[:2], s[2:]]
    return collate(rows, max(sum(map(len, row)) for row in rows), v.pad_id, v.mask_id, v.code_space)


def network(objective: Any) -> Any:
    """A fresh random network, in evaluation mode; its second decoder has the form that ``objective`` trains."""
    from ttt.config.schema import ModelSection
    from ttt.model.valle.arch import Valle

    nar: Any = {"upper": "masked", "all": "masked_all"}.get(getattr(objective, "codebooks", ""), "stages")
    arch = Valle(dim=16, heads=2, layers=2, nar=nar)
    return arch.start(ModelSection(), tokenizer(), 0).eval()
