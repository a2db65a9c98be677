"""How long the examples of files, stores and mixes are."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttt.data.batches.long_examples import context
from ttt.data.read.records import RecordError, raw_records
from ttt.data.sources.build_store import BLOCK, Encoders, Settings, chunks
from ttt.data.sources.mix import Source, sources_of
from ttt.data.sources.store import TARGET, Block, Store, is_store, pack_streams
from ttt.errors import ConfigError, DataError


@dataclass
class Lengths:
    """Per example, i64 [n]: ``tokens``, ``targets`` (tokens that carry loss), ``speech`` (codes); and what could not be read."""

    tokens: np.ndarray
    targets: np.ndarray
    speech: np.ndarray
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: dict[str, str] = field(default_factory=dict)  # reason -> first message

    def as_json(self, contexts: Sequence[int], codes_hz: float = 0.0) -> dict[str, Any]:
        """Plain values: a summary of each, and how each of ``contexts`` fits.  ``codes_hz``: codes per second of speech."""
        speech = summary(self.speech)
        seconds = {k: v if k == "n" else v / codes_hz for k, v in speech.items()} if codes_hz else {}
        return {
            "tokens": summary(self.tokens), "targets": summary(self.targets), "speech": speech,
            **({"seconds": seconds} if seconds else {}),
            "contexts": [vars(context(self.tokens, c)) for c in contexts], "unreadable": dict(self.bad),
        }  # fmt: skip


def measure(paths: Sequence[str | Path], settings: Settings, *, jobs: int = 1, limit: int = 0) -> Lengths:
    """Lengths of the examples in files, stores and mixes (whole sources, whatever their ratio).

    12 bytes an example are kept.  ``limit``: of each source, the first examples only (0: all).  Records that cannot be
    used are counted; raises `DataError` when none is left, or for what cannot be read at all.
    """
    sources = [s for p in paths for s in sources_of(p)]
    plain = [s for s in sources if not is_store(s.path)]
    if plain and not settings.tokenizer:
        raise ConfigError(
            f"--tokenizer: {plain[0].path} holds examples, not tokens; name the tokenizer that makes them"
        )
    columns = [array("I") for _ in range(3)]
    reasons: Counter[str] = Counter()
    first_bad: dict[str, str] = {}
    with Encoders(settings, jobs) if plain else nullcontext() as encoders:
        for source in sources:
            seen = 0
            for block, bad in _blocks(source, encoders):
                for error in bad:
                    reasons[error.reason] += 1
                    first_bad.setdefault(error.reason, str(error))
                rows = [values[: limit - seen] if limit else values for values in _lengths(block)]
                for column, values in zip(columns, rows, strict=True):
                    column.extend(values.tolist())
                seen += len(rows[0])
                if limit and seen >= limit:
                    break
    tokens, targets, speech = (np.asarray(c, dtype=np.int64) for c in columns)
    if not len(tokens):
        first = "; ".join(first_bad.values())
        raise DataError(f"{paths[0]}: no usable example{f' ({first})' if first else ''}")
    return Lengths(tokens, targets, speech, reasons, first_bad)


def _blocks(source: Source, encoders: Encoders | None) -> Iterator[tuple[Block, list[RecordError]]]:
    if is_store(source.path):
        store = Store(source.path)
        yield from ((pack_streams(store[at : at + BLOCK]), []) for at in range(0, len(store), BLOCK))
    else:
        assert encoders is not None
        yield from encoders.run((source.name, chunk) for chunk in chunks(raw_records(source.path), BLOCK))


def _lengths(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, targets and codes of each example of a block, i64 [n]."""
    index, segments = block.arrays["index"], block.arrays["segments"]

    def sums(values: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return total[first + count] - total[first]

    targets = sums((block.arrays["flags"] & TARGET) > 0, index["token"], index["length"])
    speech = sums(segments[:, 1] - segments[:, 0], index["segment"], index["segments"])
    return index["length"].astype(np.int64), targets, speech


def summary(lengths: np.ndarray) -> dict[str, float]:
    """Count, mean, spread and percentiles."""
    if not len(lengths):
        return {"n": 0}
    percentiles = {f"p{p}": float(np.percentile(lengths, p)) for p in (5, 25, 50, 75, 95, 99)}
    return {
        "n": len(lengths), "sum": int(lengths.sum()), "mean": float(lengths.mean()), "std": float(lengths.std()),
        "min": int(lengths.min()), **percentiles, "max": int(lengths.max()),
    }  # fmt: skip


def histogram(lengths: np.ndarray, bins: int = 16) -> list[tuple[int, int, int]]:
    """(from, up to, examples): equal bins up to the 99th percentile, and one bin for what is longer.

    >>> histogram(np.array([1, 2, 2, 9]), bins=2)
    [(1, 5, 3), (6, 9, 1)]
    """
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    usual = int(np.percentile(lengths, 99, method="higher"))
    width = -(-(usual - low + 1) // bins)
    counts = np.bincount(np.minimum((lengths - low) // width, bins))
    edges = [low + i * width for i in range(len(counts))]
    return [
        (a, high if i == len(edges) - 1 else a + width - 1, int(n))
        for i, (a, n) in enumerate(zip(edges, counts, strict=True))
    ]
