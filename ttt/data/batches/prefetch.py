"""The next batches, made in a thread while the training loop uses the current one.

A loader's batches are a pure function of (update, index), so making them early changes nothing.  Batches may be asked
for in any order; only the usual order is faster.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from ttt.errors import ConfigError
from ttt.types import PackedBatch


class Source(Protocol):
    """What a `Prefetcher` reads from (`ttt.data.batches.loader.Loader`)."""

    digest: str

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        """Micro-batch ``index`` of update ``update``."""

    def epoch_of(self, update: int) -> float:
        """Epochs done when ``update`` starts."""

    def costliest_batch(self, epoch: int) -> tuple[tuple[float, int], PackedBatch]:
        """The batch of an epoch that costs most."""


class Prefetcher:
    """``source`` with the next ``depth`` micro-batches in preparation; ``accumulate`` of them make an update.

    The source is called from one thread only.  Its errors are raised when their batch is asked for.
    """

    def __init__(self, source: Source, accumulate: int, depth: int = 4) -> None:
        if depth < 1:
            raise ConfigError(f"data.prefetch: must be >= 1 to read ahead, got {depth}")
        self.source, self.accumulate, self.depth = source, accumulate, depth
        self.digest = source.digest
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ttt-loader")
        self._ahead: dict[tuple[int, int], Future[PackedBatch]] = {}

    def epoch_of(self, update: int) -> float:
        """That of the source."""
        return self.source.epoch_of(update)

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        """The source's batch of (update, index)."""
        at = (update, index)
        if at not in self._ahead:  # the start, or a jump
            self._forget()
            self._ask(at)
        batch = self._ahead.pop(at)
        following = at
        for _ in range(self.depth):
            following = self._after(following)
            if following not in self._ahead:
                self._ask(following)
        return batch.result()

    def costliest_batch(self, epoch: int) -> tuple[tuple[float, int], PackedBatch]:
        """That of the source."""
        return self._worker.submit(self.source.costliest_batch, epoch).result()

    def close(self) -> None:
        """Stop reading ahead."""
        self._forget()
        self._worker.shutdown(wait=True)

    def _ask(self, at: tuple[int, int]) -> None:
        self._ahead[at] = self._worker.submit(self.source.micro_batch, *at)

    def _after(self, at: tuple[int, int]) -> tuple[int, int]:
        update, index = at
        return (update, index + 1) if index + 1 < self.accumulate else (update + 1, 0)

    def _forget(self) -> None:
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()
