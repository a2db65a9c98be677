"""Token streams -> rows -> `PackedBatch`.  Documents are never cut and never attend to each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ttt.types import CodeSpace, Kind, PackedBatch, TokenStream


@dataclass
class PackingReport:
    """What packing did: rows, real tokens, capacity, dropped examples by reason, and examples that were cut."""

    rows: int = 0
    tokens: int = 0
    capacity: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)  # examples that end early, at a frame's border
    truncated: int = 0  # examples that end with the row

    @property
    def fill(self) -> float:
        """Share of the rows' positions that hold real tokens."""
        return self.tokens / self.capacity if self.capacity else 0.0

    def summary(self) -> str:
        """One line for the log."""
        lost = "".join(f", {len(v)} dropped ({k})" for k, v in self.dropped.items())
        short = f", {len(self.cut)} cut at a frame" if self.cut else ""
        short += f", {self.truncated} truncated" if self.truncated else ""
        return f"{self.rows} rows, {self.tokens} tokens, fill {self.fill:.1%}{short}{lost}"


def pack_lengths(lengths: Sequence[int] | np.ndarray, row_tokens: int, order: Sequence[int]) -> list[list[int]]:
    """Rows of indices: best-fit, in the given order; every length must be <= row_tokens.

    Best-fit keeps the open rows sorted by free space through buckets, so the cost is O(n * distinct free spaces).

    >>> pack_lengths([3, 2, 2], 5, [0, 1, 2])
    [[0, 1], [2]]
    """
    open_rows: dict[int, list[int]] = defaultdict(list)  # by free space
    rows: list[list[int]] = []
    free_spaces = np.zeros(row_tokens + 1, dtype=np.int64)
    for index in order:
        length = int(lengths[index])
        fits = np.flatnonzero(free_spaces[length:])
        if len(fits):
            free = length + int(fits[0])
            row = open_rows[free].pop()
            free_spaces[free] -= 1
        else:
            free, row = row_tokens, len(rows)
            rows.append([])
        rows[row].append(int(index))
        open_rows[free - length].append(row)
        free_spaces[free - length] += 1
    return rows


def in_samples(
    order: Sequence[int], lengths: np.ndarray, row_tokens: int, samples: int, pack: bool, with_rest: bool = False
) -> list[list[list[int]]]:
    """Batches of ``samples`` examples each, in the given order, one a row or (``pack``) in as few rows as they fit into.

    ``lengths`` i64 [all examples].  The last examples, too few for a batch, are left out unless ``with_rest``.

    >>> in_samples([2, 0, 1], np.array([3, 2, 2]), 5, 2, pack=True, with_rest=True)
    [[[0, 2]], [[1]]]
    """
    batches = []
    for at in range(0, len(order) if with_rest else len(order) - samples + 1, samples):
        chosen = sorted(order[at : at + samples], key=lambda i: -int(lengths[i])) if pack else order[at : at + samples]
        batches.append(pack_lengths(lengths, row_tokens, chosen) if pack else [[i] for i in chosen])
    return batches


def longest_first(lengths: Sequence[int], order: Sequence[int], pool_tokens: int) -> list[int]:
    """``order`` in pools of about ``pool_tokens`` tokens, each with its longest first (ties in the given order).

    Best-fit fills rows better when long examples come first; in pools, so that who shares a row still changes with the
    order.

    >>> longest_first([1, 3, 2, 4], [0, 1, 2, 3], pool_tokens=5)
    [1, 2, 0, 3]
    """
    ordered: list[int] = []
    pool: list[int] = []
    tokens = 0
    for index in order:
        pool.append(int(index))
        tokens += int(lengths[index])
        if tokens >= pool_tokens:
            ordered += sorted(pool, key=lambda i: -int(lengths[i]))
            pool, tokens = [], 0
    return ordered + sorted(pool, key=lambda i: -int(lengths[i]))


def collate(
    rows: Sequence[Sequence[TokenStream]], row_tokens: int, pad_id: int, mask_id: int, space: CodeSpace | None = None
) -> PackedBatch:
    """Rows of streams -> one `PackedBatch` [B, T]; T is the longest row, at most ``row_tokens``.

    A preference pair is two documents of the same name, which cannot see each other.
    """
    width = min(row_tokens, max(sum(len(s) for s in row) for row in rows))
    shape = (len(rows), width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    kind = np.zeros(shape, dtype=np.uint8)
    run_id, doc = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    position = np.zeros(shape, dtype=np.int64)
    target, noisable, visible = (np.zeros(shape, dtype=bool) for _ in range(3))
    uids: list[str] = []
    tasks: list[str] = []
    pairs: list[tuple[int, int]] = []
    voices: list[np.ndarray | None] = []
    for b, row in enumerate(rows):
        at = 0
        for stream in row:
            n = len(stream)
            if at + n > width:
                raise ValueError(f"row {b} holds more than {width} tokens")
            here = slice(at, at + n)
            ids[b, here], kind[b, here], run_id[b, here] = stream.ids, stream.kind, stream.run_id
            doc[b, here], position[b, here] = len(uids), np.arange(n)
            if stream.rejected:
                second = slice(at + stream.rejected, at + n)
                doc[b, second], position[b, second] = len(uids) + 1, np.arange(n - stream.rejected)
                pairs.append((len(uids), len(uids) + 1))
                uids.append(stream.uid)
                tasks.append(stream.task)
                voices.append(stream.voice)
            target[b, here], noisable[b, here], visible[b, here] = stream.target, stream.noisable, True
            uids.append(stream.uid)
            tasks.append(stream.task)
            voices.append(stream.voice)
            at += n
    assert Kind.PAD == 0
    t = torch.from_numpy
    known = [v for v in voices if v is not None]
    told = len(known) == len(voices) and len({len(v) for v in known}) == 1
    return PackedBatch(
        ids=t(ids), kind=t(kind), run_id=t(run_id), doc=t(doc), position=t(position), target=t(target), noisable=t(noisable),
        visible=t(visible), n_docs=len(uids), mask_id=mask_id, uids=tuple(uids),
        tasks=tuple(tasks), space=space, pairs=tuple(pairs),
        voices=t(np.stack(known)) if told else None,
    )  # fmt: skip
