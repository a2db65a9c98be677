"""Batches as a pure function of (seed, update, index, rank): nothing to save, nothing to restore.

An epoch is a permutation of the examples, computed from (seed, epoch) alone.  It is laid out in batches one window of
`WINDOW` examples at a time.  So resuming at any update costs what starting costs: one permutation (8 bytes an example)
and the layout of one window.  Tokens are read when a batch needs them.  Strategies that change examples (span
truncation) draw from (seed, epoch, example): their draws change every epoch and do not depend on the layout of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ttt.config.schema import LongRows
from ttt.data.batches.by_length import Rows, counts, one_a_row
from ttt.data.batches.long_examples import check_context, context, shortened
from ttt.data.batches.rows import PackingReport, collate, in_samples, longest_first, pack_lengths
from ttt.data.batches.strategies import growths, shaped, shaping
from ttt.data.sources.streams import Streams, as_streams
from ttt.data.sources.streams import streams_digest as streams_digest
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Strategy
from ttt.rng import derive_seed
from ttt.text.vocab import Vocabulary
from ttt.types import PackedBatch, TokenStream

log = logging.getLogger(__name__)
POOL_ROWS = 32  # rows that are filled from one pool of examples, the longest first
WINDOW = 1 << 16


class Loader:
    """Rank-sharded micro-batches.

    ``micro_batch(update, index)`` is the ``index``-th of ``accumulate`` micro-batches of optimiser update ``update`` on
    this rank.

    ``pack``: True fills rows of ``row_tokens`` with several documents (for attention kernels that skip masked blocks).
    False puts one document into a row and rows of similar length into a batch of at most ``batch_tokens`` with padding
    (for dense masks, whose cost grows with the square of the row).  Similar lengths come from sorted pools, or with
    ``buckets`` > 0 from that many buckets; ``quadratic``: see `ttt.data.batches.by_length`.  ``batch_samples`` > 0: so many
    examples a micro-batch instead, drawn without regard to their lengths; packed, in as few rows as they fit into.
    ``long_rows``: what becomes of examples that are longer than a row (`fitting`).

    Windows differ a little in their number of batches.  Each counts as ``updates_per_window`` updates: extra batches
    are skipped, missing ones are taken from the window's start.  An epoch of at most `WINDOW` examples is one window.
    """

    def __init__(
        self, streams: Sequence[TokenStream], vocab: Vocabulary, *, row_tokens: int, batch_tokens: int, seed: int,
        accumulate: int = 1, rank: int = 0, world: int = 1, strategies: Sequence[Strategy] = (),
        max_drop_share: float = 0.01, pack: bool = True, long_rows: LongRows = "drop", buckets: int = 0,
        quadratic: float = 0.0, batch_samples: int = 0,
    ):  # fmt: skip
        check_batch(row_tokens, batch_tokens, batch_samples, pack)
        if batch_samples and (buckets or quadratic):
            raise ConfigError(
                "data.buckets, data.quadratic_tokens: they fill batches of data.batch_tokens; leave them 0 with "
                "data.batch_samples"
            )
        if pack and (buckets or quadratic):
            raise ConfigError(
                "data.buckets, data.quadratic_tokens: they are for one document a row; set data.pack=false"
            )
        self.vocab, self.row_tokens, self.batch_tokens, self.seed, self.pack = (
            vocab,
            row_tokens,
            batch_tokens,
            seed,
            pack,
        )
        self.accumulate, self.rank, self.world, self.strategies = accumulate, rank, world, tuple(strategies)
        self.batch_samples, self.long_rows = batch_samples, long_rows
        self.report = PackingReport()
        source = as_streams(streams)
        self.streams, self.lengths = fitting(
            source, row_tokens, max_drop_share, self.report, self.strategies, long_rows, vocab.columns
        )
        self.buckets, self._cost = buckets, counts(self.lengths, quadratic)
        self._planned: tuple[tuple[int, int], list[Rows]] = ((-1, -1), [])
        self._ordered: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))
        self.digest = self.streams.digest
        self.windows = max(1, -(-len(self._order(0)) // WINDOW))
        batches = self._batches(0, 0)
        self.window = accumulate * world
        self.updates_per_window = len(batches) // self.window
        self.updates_per_epoch = self.updates_per_window * self.windows
        if self.updates_per_epoch == 0:
            key = "batch_samples" if batch_samples else "batch_tokens"
            size = f"{batch_samples} examples" if batch_samples else f"{batch_tokens} tokens"
            raise ConfigError(
                f"data.{key}: one update needs {self.window} batches of {size}, the data fill only {len(batches)}; lower "
                f"{key}, train.accumulate or the number of ranks"
            )
        # Rows and capacity of further windows are taken to be like the first's.
        self.report.tokens = int(np.minimum(self.streams.lengths[self._order(0)], row_tokens).sum(dtype=np.int64))
        self.report.rows = self.windows * sum(map(len, batches))
        self.report.capacity = self.windows * sum(len(rows) * self._width(rows) for rows in batches)

    def epoch_of(self, update: int) -> float:
        """Epochs finished when ``update`` starts."""
        return update / self.updates_per_epoch

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        """The batch of (update, index) on this rank; a pure function of them and the seed."""
        epoch, within = divmod(update, self.updates_per_epoch)
        window, within = divmod(within, self.updates_per_window)
        batches = self._batches(epoch, window)
        rows = batches[(within * self.window + index * self.world + self.rank) % len(batches)]
        return self._collated(epoch, rows)

    def costliest_batch(self, epoch: int) -> tuple[tuple[float, int], PackedBatch]:
        """((cost counted against ``batch_tokens``, tokens), batch) of the most expensive batch of an epoch, over all ranks."""

        def cost(rows: Rows) -> tuple[float, int]:
            widest = self.row_tokens if self.pack else max(self._cost[row[0]] for row in rows)
            return float(len(rows) * widest), int(sum(self.lengths[i] for row in rows for i in row))

        rows = max((max(self._batches(epoch, w), key=cost) for w in range(self.windows)), key=cost)
        return cost(rows), self._collated(epoch, rows)

    def _collated(self, epoch: int, rows: Rows) -> PackedBatch:
        streams = [[self._stream(epoch, i) for i in row] for row in rows]
        v = self.vocab
        return collate(streams, self.row_tokens, v.pad_id, v.mask_id, v.code_space)

    def _stream(self, epoch: int, index: int) -> TokenStream:
        room = int(self.lengths[index])
        made = shaped(self.streams[index], self.strategies, room, self.seed, "stream", epoch, index)
        # After the strategies, as in the official program: span truncation knows the whole span.
        return made.first(room, self.vocab.columns) if self.long_rows == "truncate" else made

    def _width(self, rows: Rows) -> int:
        return self.row_tokens if self.pack else int(max(self.lengths[row[0]] for row in rows))

    def _order(self, epoch: int) -> np.ndarray:
        """Numbers of the examples of an epoch in the order they are shown, i64."""
        if self._ordered[0] != epoch:
            shown = self.streams.epoch(epoch)
            order = self._rng(epoch).permutation(len(self.streams) if shown is None else len(shown))
            self._ordered = (epoch, order if shown is None else shown[order])
        return self._ordered[1]

    def _batches(self, epoch: int, window: int) -> list[Rows]:
        if self._planned[0] != (epoch, window):
            whole = self._order(epoch)
            order = whole[len(whole) * window // self.windows : len(whole) * (window + 1) // self.windows]
            rng = self._rng(epoch)
            rng.permutation(len(whole))
            if window:
                rng = np.random.default_rng(derive_seed(self.seed, "order", epoch, window))
            if self.batch_samples:
                batches = in_samples(order.tolist(), self.lengths, self.row_tokens, self.batch_samples, self.pack)
            elif self.pack:
                batches = self._packed(order, rng)
            else:
                batches = one_a_row(order.tolist(), self._cost, self.batch_tokens, self.buckets)
            self._planned = ((epoch, window), [batches[i] for i in rng.permutation(len(batches))])
        return self._planned[1]

    def _rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, "order", epoch))

    def _packed(self, order: np.ndarray, rng: np.random.Generator) -> list[Rows]:
        numbers = order.tolist()
        lengths = self.lengths[order].tolist()
        first = longest_first(lengths, range(len(numbers)), POOL_ROWS * self.row_tokens)
        places = pack_lengths(lengths, self.row_tokens, first)
        rows = [[numbers[i] for i in row] for row in places]
        # Best-fit closes rows in an order that depends on length; shuffle so that a batch is a fair sample.
        rows = [rows[i] for i in rng.permutation(len(rows))]
        size = self.batch_tokens // self.row_tokens
        return [rows[at : at + size] for at in range(0, len(rows), size)]


def check_batch(row_tokens: int, batch_tokens: int, batch_samples: int, pack: bool) -> None:
    """Raise `ConfigError` for a size of micro-batches that cannot be filled."""
    if batch_samples:
        return
    if not batch_tokens:
        raise ConfigError("data.batch_tokens: 0; give it, or data.batch_samples")
    if pack and batch_tokens % row_tokens:
        raise ConfigError(f"data.batch_tokens: {batch_tokens} must be a multiple of data.row_tokens = {row_tokens}")
    if batch_tokens < row_tokens:
        raise ConfigError(
            f"data.batch_tokens: {batch_tokens} is less than data.row_tokens = {row_tokens}, the longest row; "
            "raise it, or data.batch_s where that is given"
        )


def fitting(
    streams: Streams, row_tokens: int, max_drop_share: float, report: PackingReport, strategies: Sequence[Strategy] = (),
    long_rows: LongRows = "drop", frame: int = 1,
) -> tuple[Streams, np.ndarray]:  # fmt: skip
    """Streams that fit in a row, and the tokens to plan for each [n]: its own and those that strategies may add (`growths`).

    ``long_rows``: ``drop``: examples that are too long, or may become so, are left out and counted in ``report``.  ``cut``:
    long examples are cut after a whole frame of ``frame`` codes, where possible, and strategies fill the row at most.
    ``truncate``: they stay as they are, and the caller ends each where its plan ends (`TokenStream.first`), as TtT's official
    program does.  Raises `DataError` when too many do not fit, and `ConfigError` when not even the shortest does.
    """
    if not len(streams):
        raise DataError("no training examples: the file is empty")
    total = len(streams)
    if long_rows == "truncate":
        costs = context(streams.lengths, row_tokens)
        report.truncated = costs.examples
        if costs.examples:
            log.warning(
                "%d of %d examples are longer than data.row_tokens = %d and end there (data.long_rows): %.2f %% of all tokens "
                "lie behind that place", costs.examples, total, row_tokens, 100 * costs.cut,
            )  # fmt: skip
        lengths = streams.lengths.astype(np.int64)
        return streams, np.minimum(lengths + growths(strategies, streams, total), row_tokens)
    if long_rows == "cut":
        costs = check_context(streams.lengths, row_tokens)
        if costs.examples:
            log.warning(
                "%d of %d examples are longer than data.row_tokens = %d and are cut (data.long_rows): %.2f %% of all tokens "
                "lie behind that place", costs.examples, total, row_tokens, 100 * costs.cut,
            )  # fmt: skip
        streams = cut = shortened(streams, row_tokens, frame)
        report.cut = [cut.uid(number) for number in cut.cuts]
    own = streams.lengths.astype(np.int64)
    rooms = own + growths(strategies, streams, total)
    if long_rows == "cut":
        short = int(((own <= row_tokens) & (rooms > row_tokens)).sum())
        if short:
            log.warning(
                "%d of %d examples have less room in data.row_tokens = %d than objective.strategies may fill; what they add "
                "ends with the row (data.long_rows)", short, total, row_tokens,
            )  # fmt: skip
        rooms = np.where(own <= row_tokens, np.minimum(rooms, row_tokens), own)
    if int(own.min()) <= row_tokens < int(rooms.min()):
        raise ConfigError(
            f"data.row_tokens: {row_tokens} has no room for what objective.strategies add: the shortest example has "
            f"{own.min()} tokens, with it {rooms.min()}; raise it, let them add less, or say data.long_rows=cut"
        )
    costs = check_context(rooms, row_tokens)
    long = np.flatnonzero(rooms > row_tokens)
    if not len(long):
        return streams, rooms
    report.dropped["longer than data.row_tokens"] = [streams.uid(int(i)) for i in long]
    worst = int(long[np.argmax(rooms[long])])
    more = rooms[worst] - own[worst]
    added = f", {more} of them for what objective.strategies may add" if more else ""
    message = (
        f"{len(long)} of {total} examples are longer than data.row_tokens = {row_tokens} "
        f"(longest {streams.uid(worst)!r}: {rooms[worst]} tokens{added}); they hold {costs.dropped:.2%} of the tokens, "
        f"{costs.cut:.2%} behind that place"
    )
    if len(long) > max_drop_share * total:
        mend = ", or say data.long_rows=cut" if more else ""
        raise DataError(f"{message}; raise data.row_tokens or data.max_drop_share{mend}")
    log.warning("%s; they are left out", message)
    kept = np.flatnonzero(rooms <= row_tokens)
    return streams.subset(kept), rooms[kept]


def fixed_batches(
    streams: Sequence[TokenStream], vocab: Vocabulary, row_tokens: int, batch_tokens: int, *, seed: int = 0,
    strategies: Sequence[Strategy] = (), pack: bool = True, long_rows: LongRows = "drop", buckets: int = 0,
    quadratic: float = 0.0, batch_samples: int = 0,
) -> list[PackedBatch]:  # fmt: skip
    """All streams in batches, in file order: validation data, laid out as in training.

    Only ``strategies`` that shape the canvas are applied, with draws from (``seed``, number of the example) alone; the
    other arguments are the `Loader`'s.
    """
    report, acting = PackingReport(), shaping(strategies)
    kept, lengths = fitting(as_streams(streams), row_tokens, 1.0, report, acting, long_rows, vocab.columns)
    if batch_samples:
        batches = in_samples(range(len(kept)), lengths, row_tokens, batch_samples, pack, with_rest=True)
    elif pack:
        rows = pack_lengths(lengths.tolist(), row_tokens, range(len(kept)))
        size = max(1, batch_tokens // row_tokens)
        batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    else:
        batches = one_a_row(list(range(len(kept))), counts(lengths, quadratic), batch_tokens, buckets)

    def stream(index: int) -> TokenStream:
        room = int(lengths[index])
        made = shaped(kept[index], acting, room, seed, "dev stream", index)
        return made.first(room, vocab.columns) if long_rows == "truncate" else made

    return [
        collate([[stream(i) for i in row] for row in rows], row_tokens, vocab.pad_id, vocab.mask_id, vocab.code_space)
        for rows in batches
    ]
