"""Finding examples with the same text or the same sound, by hashes that fit in memory for millions of examples.

*Words*: text in NFKC, case folded, letters and digits only; Chinese and Japanese characters are words of their own.
*Duplicates*: all turns but the system's have the same words (``text``), or all audio spans the same codes (``codes``),
or both. *Overlap* of a test example with training data: a turn shares ``WORDS`` consecutive words with a turn of it, or
an audio span ``CODES`` consecutive frames with a span of it.  A turn (span) that is shorter counts when it is equal as
a whole and has at least `SHORT_WORDS` words (`SHORT_CODES` frames).  Runs of frames that hardly change (silence) do not
count: they need a change at a quarter of their frames.

Runs are compared by 64-bit polynomial hashes: with 10^8 training runs and 10^6 test runs a false hit is a 5 in 10^6
event.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ttt.io.digests import hash64

WORDS, CODES = 13, 26
SHORT_WORDS, SHORT_CODES = 4, 8
_CHARACTERS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Han
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)


def words(text: str) -> list[str]:
    """Words that are compared.

    >>> words("It's 3 o'clock, OK? 你好")
    ['it', 's', '3', 'o', 'clock', 'ok', '你', '好']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def word_runs(text: str, n: int = WORDS) -> np.ndarray:
    """Hashes u64 of all runs of ``n`` words; of a shorter text, of the whole."""
    values = np.asarray([_word_hash(w) for w in words(text)], dtype=np.uint64)
    return runs(values, n, SHORT_WORDS)


def code_runs(codes: np.ndarray, n: int = CODES) -> np.ndarray:
    """Hashes u64 of all runs of ``n`` frames of codes [F, Q]; of a shorter span, of the whole."""
    frames = np.zeros(len(codes), dtype=np.uint64)
    for codebook in codes.astype(np.uint64).T:
        frames = (frames << np.uint64(16)) ^ (frames >> np.uint64(48)) ^ (codebook + np.uint64(1))
    n_here = min(n, len(frames))
    hashes = runs(frames, n, SHORT_CODES)
    changes = np.cumsum(np.concatenate([[0], frames[1:] != frames[:-1]]))
    moving = changes[n_here - 1 :] - changes[: len(changes) - n_here + 1] >= n_here // 4
    return hashes[moving[: len(hashes)]]


def runs(values: np.ndarray, n: int, short: int) -> np.ndarray:
    """Polynomial hashes of all windows of ``n`` values u64; of the whole if it is shorter, but at least ``short`` long.

    A whole that is shorter is hashed together with its length, so that it meets only others of this length.
    """
    if len(values) < short:
        return np.zeros(0, dtype=np.uint64)
    length = min(n, len(values))
    with np.errstate(over="ignore"):
        powers, inverses = _powers(len(values) + 1)
        prefix = np.concatenate([[np.uint64(0)], np.cumsum(_mix(values) * powers[: len(values)], dtype=np.uint64)])
        hashes = (prefix[length:] - prefix[:-length]) * inverses[: len(prefix) - length]
    return _mix(hashes + np.uint64(length))


def text_key(turns: Sequence[str]) -> int:
    """Hash of the words of all turns; 0 without any."""
    texts = [" ".join(words(t)) for t in turns]
    return hash64("\0".join(texts).encode()) if any(texts) else 0


def codes_key(spans: Sequence[np.ndarray]) -> int:
    """Hash of the codes of all audio spans; 0 without any."""
    data = b"".join(len(s).to_bytes(4, "little") + s.astype("<i4").tobytes() for s in spans)
    return hash64(data) if any(len(s) for s in spans) else 0


class Table:
    """Runs of test examples, to look training runs up in: memory grows with the test set only."""

    def __init__(self, hashes: np.ndarray, owners: np.ndarray) -> None:
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.owners = hashes[order], owners[order]

    @classmethod
    def empty(cls) -> Table:
        """Nothing to look up."""
        return cls(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))

    @classmethod
    def of(cls, hashes: Sequence[np.ndarray], owners: Sequence[np.ndarray]) -> Table:
        """All runs of several test examples; ``owners`` [n] beside ``hashes`` [n] of each."""
        none = cls.empty()
        return cls(np.concatenate([none.hashes, *hashes]), np.concatenate([none.owners, *owners]))

    def hits(self, hashes: np.ndarray) -> np.ndarray:
        """Owners i64 (test examples) that share one of these runs, each once."""
        if not len(self.hashes) or not len(hashes):
            return np.zeros(0, dtype=np.int64)
        first = np.searchsorted(self.hashes, hashes)
        known = self.hashes[np.minimum(first, len(self.hashes) - 1)] == hashes
        if not known.any():  # nearly always
            return np.zeros(0, dtype=np.int64)
        last = np.searchsorted(self.hashes, hashes[known], side="right")
        return np.unique(np.concatenate([self.owners[a:b] for a, b in zip(first[known], last, strict=True)]))


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return hash64(word.encode())


def _mix(x: np.ndarray) -> np.ndarray:
    """Spread u64 values over all bits (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


_cached: list[np.ndarray] = [np.ones(1, dtype=np.uint64), np.ones(1, dtype=np.uint64)]


def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """First ``n`` powers of the base and of its inverse, modulo 2^64."""
    if len(_cached[0]) < n:
        size = 1 << (n - 1).bit_length()
        with np.errstate(over="ignore"):
            for i, base in enumerate((_BASE, _INVERSE)):
                steps = np.full(size, base, dtype=np.uint64)
                steps[0] = 1
                _cached[i] = np.cumprod(steps, dtype=np.uint64)
    return _cached[0][:n], _cached[1][:n]
