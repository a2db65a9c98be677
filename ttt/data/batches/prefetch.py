"""Batches made ahead, in a thread beside the training loop.

A loader's batches are a pure function of (update, index), so making them early changes nothing: whatever is asked for is
returned, in any order; what comes next in a run is just there already.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from ttt.errors import ConfigError
from ttt.types import PackedBatch


class Source(Protocol):
    """What is read ahead from (`ttt.data.batches.loader.Loader`)."""

    digest: str

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        """Micro-batch ``index`` of update ``update``."""

    def epoch_of(self, update: int) -> float:
        """Epochs done when ``update`` starts."""

    def costliest_batch(self, epoch: int) -> tuple[tuple[float, int], PackedBatch]:
        """The batch of an epoch that costs most."""


class Prefetcher:
    """``source`` with the next ``depth`` micro-batches under way; ``accumulate`` of them make an update.

    The source is only ever called from one thread.  Its errors appear where their batch is asked for.
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
        wanted = self._ahead.pop(at)
        following = at
        for _ in range(self.depth):
            following = self._after(following)
            if following not in self._ahead:
                self._ask(following)
        return wanted.result()

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
