"""Batches as a pure function of (seed, update, index, rank): nothing to save, nothing to restore.

An epoch is a permutation of the examples laid out in batches, computed from (seed, epoch) alone.
Strategies that act on streams (span truncation) are drawn per (seed, epoch, example), so they change every epoch and do
not depend on how rows were laid out.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence

import numpy as np

from ttt.data.packing import PackingReport, collate, pack_lengths
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Strategy
from ttt.rng import derive_seed
from ttt.text.vocab import Vocabulary
from ttt.types import PackedBatch, TokenStream

log = logging.getLogger(__name__)
Rows = list[list[int]]  # rows of example numbers
POOL_BATCHES = 8


class Loader:
    """Rank-sharded micro-batches.

    ``micro_batch(update, index)`` is the ``index``-th of ``accumulate`` micro-batches of optimiser update ``update`` on
    this rank.  ``pack``: rows of ``row_tokens`` filled with several documents (right for kernels that skip masked blocks);
    otherwise one document a row and rows of similar length together, ``batch_tokens`` at most with padding (right for
    dense masks, whose cost grows with the square of the row).  Epochs differ a little in their number of batches: an
    epoch counts as ``updates_per_epoch`` updates, what is left over is skipped, what is missing is taken from its start.
    """

    def __init__(
        self, streams: Sequence[TokenStream], vocab: Vocabulary, *, row_tokens: int, batch_tokens: int, seed: int,
        accumulate: int = 1, rank: int = 0, world: int = 1, strategies: Sequence[Strategy] = (),
        max_drop_share: float = 0.01, pack: bool = True,
    ):  # fmt: skip
        if batch_tokens < row_tokens or (pack and batch_tokens % row_tokens):
            raise ConfigError(f"data.batch_tokens: {batch_tokens} must be a multiple of data.row_tokens = {row_tokens}")
        self.vocab, self.row_tokens, self.batch_tokens, self.seed, self.pack = (
            vocab,
            row_tokens,
            batch_tokens,
            seed,
            pack,
        )
        self.accumulate, self.rank, self.world, self.strategies = accumulate, rank, world, tuple(strategies)
        self.report = PackingReport()
        self.streams = fitting(streams, row_tokens, max_drop_share, self.report, self._room)
        self.lengths = [self._room(s) for s in self.streams]
        self._planned: tuple[int, list[Rows]] = (-1, [])
        self.digest = streams_digest(self.streams)
        batches = self._batches(0)
        self.window = accumulate * world
        self.updates_per_epoch = len(batches) // self.window
        if self.updates_per_epoch == 0:
            raise ConfigError(
                f"data.batch_tokens: one update needs {self.window} batches of {batch_tokens} tokens, the data fill "
                f"only {len(batches)}; lower batch_tokens, train.accumulate or the number of ranks"
            )
        self.report.rows, self.report.tokens = sum(map(len, batches)), sum(map(len, self.streams))
        self.report.capacity = sum(len(rows) * self._width(rows) for rows in batches)

    def epoch_of(self, update: int) -> float:
        """Epochs finished when ``update`` starts."""
        return update / self.updates_per_epoch

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        """The batch of (update, index) on this rank; a pure function of them and the seed."""
        epoch, within = divmod(update, self.updates_per_epoch)
        batches = self._batches(epoch)
        rows = batches[(within * self.window + index * self.world + self.rank) % len(batches)]
        return collate(
            [[self._stream(epoch, i) for i in row] for row in rows],
            self.row_tokens,
            self.vocab.pad_id,
            self.vocab.mask_id,
        )

    def _room(self, stream: TokenStream) -> int:
        """Tokens to plan for: the example's own and what strategies may add."""
        return len(stream) + sum(strategy.growth(stream) for strategy in self.strategies)

    def _stream(self, epoch: int, index: int) -> TokenStream:
        stream = self.streams[index]
        for number, strategy in enumerate(self.strategies):
            stream = strategy.on_stream(
                stream, np.random.default_rng(derive_seed(self.seed, "stream", epoch, index, number))
            )
        return stream

    def _width(self, rows: Rows) -> int:
        return self.row_tokens if self.pack else max(self.lengths[row[0]] for row in rows)

    def _batches(self, epoch: int) -> list[Rows]:
        if self._planned[0] != epoch:
            rng = np.random.default_rng(derive_seed(self.seed, "order", epoch))
            order = rng.permutation(len(self.streams))
            batches = self._packed(order, rng) if self.pack else self._bucketed(order)
            self._planned = (epoch, [batches[i] for i in rng.permutation(len(batches))])
        return self._planned[1]

    def _packed(self, order: np.ndarray, rng: np.random.Generator) -> list[Rows]:
        rows = pack_lengths(self.lengths, self.row_tokens, order.tolist())
        # Best-fit closes rows in an order that depends on length; shuffle so that a batch is a fair sample.
        rows = [rows[i] for i in rng.permutation(len(rows))]
        size = self.batch_tokens // self.row_tokens
        return [rows[at : at + size] for at in range(0, len(rows), size)]

    def _bucketed(self, order: np.ndarray) -> list[Rows]:
        # Sorting inside pools of a few batches keeps rows of a batch alike and batches still a mixture.
        pool = max(1, POOL_BATCHES * self.batch_tokens * len(self.lengths) // sum(self.lengths))
        batches: list[Rows] = []
        for at in range(0, len(order), pool):
            rows: Rows = []
            for index in sorted(order[at : at + pool].tolist(), key=lambda i: -self.lengths[i]):
                if rows and (len(rows) + 1) * self.lengths[rows[0][0]] > self.batch_tokens:
                    batches.append(rows)
                    rows = []
                rows.append([index])
            batches.append(rows)
        return batches


def fitting(
    streams: Sequence[TokenStream],
    row_tokens: int,
    max_drop_share: float,
    report: PackingReport,
    room: Callable[[TokenStream], int] = len,
) -> list[TokenStream]:
    """Streams that fit in a row; the others are counted in ``report``.  Raises when too many do not.

    ``room``: tokens to plan for a stream (its length, and what strategies may add).
    """
    if not streams:
        raise DataError("no training examples: the file is empty")
    long = [s for s in streams if room(s) > row_tokens]
    if long:
        report.dropped["longer than data.row_tokens"] = [s.uid for s in long]
        worst = max(long, key=room)
        message = (
            f"{len(long)} of {len(streams)} examples are longer than data.row_tokens = {row_tokens} "
            f"(longest {worst.uid!r}: {room(worst)} tokens)"
        )
        if len(long) > max_drop_share * len(streams):
            raise DataError(f"{message}; raise data.row_tokens or data.max_drop_share")
        log.warning("%s; they are left out", message)
    return [s for s in streams if room(s) <= row_tokens]


def fixed_batches(
    streams: Sequence[TokenStream], vocab: Vocabulary, row_tokens: int, batch_tokens: int
) -> list[PackedBatch]:
    """All streams in packed batches, in file order: validation data."""
    report = PackingReport()
    kept = fitting(streams, row_tokens, 1.0, report)
    rows = pack_lengths([len(s) for s in kept], row_tokens, range(len(kept)))
    size = max(1, batch_tokens // row_tokens)
    return [
        collate([[kept[i] for i in row] for row in rows[at : at + size]], row_tokens, vocab.pad_id, vocab.mask_id)
        for at in range(0, len(rows), size)
    ]


def streams_digest(streams: Sequence[TokenStream]) -> str:
    """Digest of uids and ids: two runs with one digest saw the same data."""
    digest = hashlib.blake2b(digest_size=8)
    for stream in streams:
        digest.update(stream.uid.encode())
        digest.update(stream.ids.astype("<i4").tobytes())
        digest.update(stream.target.tobytes())
    return digest.hexdigest()
