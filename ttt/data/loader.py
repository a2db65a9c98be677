"""Batches as a pure function of (seed, update, index, rank): nothing to save, nothing to restore.

An epoch is a permutation of the examples packed into rows, computed from (seed, epoch) alone; a micro-batch is a slice of
its rows.  Strategies that act on streams (span truncation) are drawn per (seed, epoch, example), so they change every
epoch and do not depend on how rows were packed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from ttt.data.packing import PackingReport, collate, pack_lengths
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Strategy
from ttt.rng import derive_seed
from ttt.text.vocab import Vocabulary
from ttt.types import PackedBatch, TokenStream

log = logging.getLogger(__name__)


class Loader:
    """Rank-sharded, packed micro-batches.

    ``micro_batch(update, index)`` is the ``index``-th of ``accumulate`` micro-batches of optimiser update ``update`` on
    this rank.  Every rank sees equally many rows; the rows left over at an epoch's end (fewer than one window) are
    skipped that epoch and counted in ``report``.
    """

    def __init__(
        self, streams: Sequence[TokenStream], vocab: Vocabulary, *, row_tokens: int, batch_tokens: int, seed: int,
        accumulate: int = 1, rank: int = 0, world: int = 1, strategies: Sequence[Strategy] = (),
        max_drop_share: float = 0.01,
    ):  # fmt: skip
        if batch_tokens < row_tokens or batch_tokens % row_tokens:
            raise ConfigError(f"data.batch_tokens: {batch_tokens} must be a multiple of data.row_tokens = {row_tokens}")
        self.vocab, self.row_tokens, self.seed = vocab, row_tokens, seed
        self.rows_per_batch = batch_tokens // row_tokens
        self.accumulate, self.rank, self.world, self.strategies = accumulate, rank, world, tuple(strategies)
        self.report = PackingReport()
        self.streams = fitting(streams, row_tokens, max_drop_share, self.report)
        self.lengths = [len(s) for s in self.streams]
        self._plan: tuple[int, list[list[int]]] = (-1, [])
        self.digest = streams_digest(self.streams)
        rows = self._rows(0)
        self.window_rows = self.rows_per_batch * accumulate * world
        self.updates_per_epoch = len(rows) // self.window_rows
        if self.updates_per_epoch == 0:
            raise ConfigError(
                f"data.batch_tokens: one update needs {self.window_rows} rows of {row_tokens} tokens, the data fill "
                f"only {len(rows)}; lower batch_tokens, train.accumulate or the number of ranks"
            )
        self.report.rows, self.report.tokens = len(rows), sum(self.lengths)
        self.report.capacity = len(rows) * row_tokens

    def epoch_of(self, update: int) -> float:
        """Epochs finished when ``update`` starts."""
        return update / self.updates_per_epoch

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        """The batch of (update, index) on this rank; a pure function of them and the seed."""
        epoch, within = divmod(update, self.updates_per_epoch)
        rows = self._rows(epoch)
        first = within * self.window_rows + (index * self.world + self.rank) * self.rows_per_batch
        chosen = rows[first : first + self.rows_per_batch]
        return collate(
            [[self._stream(epoch, i) for i in row] for row in chosen],
            self.row_tokens,
            self.vocab.pad_id,
            self.vocab.mask_id,
        )

    def _stream(self, epoch: int, index: int) -> TokenStream:
        stream = self.streams[index]
        for number, strategy in enumerate(self.strategies):
            stream = strategy.on_stream(
                stream, np.random.default_rng(derive_seed(self.seed, "stream", epoch, index, number))
            )
        return stream

    def _rows(self, epoch: int) -> list[list[int]]:
        if self._plan[0] != epoch:
            rng = np.random.default_rng(derive_seed(self.seed, "order", epoch))
            order = rng.permutation(len(self.streams))
            rows = pack_lengths(self.lengths, self.row_tokens, order)  # type: ignore[arg-type]
            # Best-fit closes rows in an order that depends on length; shuffle so that a batch is a fair sample.
            self._plan = (epoch, [rows[i] for i in rng.permutation(len(rows))])
        return self._plan[1]


def fitting(
    streams: Sequence[TokenStream], row_tokens: int, max_drop_share: float, report: PackingReport
) -> list[TokenStream]:
    """Streams that fit in a row; the others are counted in ``report``.  Raises when too many do not."""
    if not streams:
        raise DataError("no training examples: the file is empty")
    long = [s for s in streams if len(s) > row_tokens]
    if long:
        report.dropped["longer than data.row_tokens"] = [s.uid for s in long]
        worst = max(long, key=len)
        message = (
            f"{len(long)} of {len(streams)} examples are longer than data.row_tokens = {row_tokens} "
            f"(longest {worst.uid!r}: {len(worst)} tokens)"
        )
        if len(long) > max_drop_share * len(streams):
            raise DataError(f"{message}; raise data.row_tokens or data.max_drop_share")
        log.warning("%s; they are left out", message)
    return [s for s in streams if len(s) <= row_tokens]


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
