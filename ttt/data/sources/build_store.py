"""Building a store: sources are tokenized once, by several processes, in bounded memory.

The parent reads raw records and hands them out in blocks; workers parse and tokenize; the parent writes their blocks in
the order of the files.  So the store has the same bytes for any number of processes, and memory holds a few blocks per
process.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from ttt.config.schema import PromptRule
from ttt.data.read.keep import kept_records, plain_keep
from ttt.data.read.records import Raw, RecordError, raw_records, reason_of
from ttt.data.read.token_ids import stream_of
from ttt.data.sources.mix import Source, check_store
from ttt.data.sources.store import Block, Store, StoreWriter, is_store, pack_streams
from ttt.errors import DataError
from ttt.registry import checked
from ttt.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)
BLOCK = 128  # records a worker gets at a time
IN_FLIGHT = 3  # blocks per process
Item = TypeVar("Item")
Result = TypeVar("Result")
Done = tuple[Block, list[RecordError]]


@checked
@dataclass(frozen=True)
class Settings:
    """What decides the tokens of a record."""

    tokenizer: str  # folder or tokenizer.json
    prompt_rule: PromptRule = "labels"
    literal_specials: bool = False  # text may spell special tokens (as in the reference)
    keep: dict[str, Any] = field(default_factory=dict)  # of the records only these (`ttt.data.read.keep`)


@dataclass
class Report:
    """Counts of a packing run, over all sources."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: dict[str, str] = field(default_factory=dict)  # reason -> first message
    seconds: float = 0.0


def pack(
    sources: Sequence[Source], out: str | Path, settings: Settings, *, jobs: int = 1, skip_bad: bool = False,
    shard_tokens: int = 1 << 26,
) -> tuple[Store, Report]:  # fmt: skip
    """Tokenize every source into one store, complete or not at all.

    Raises the first `RecordError` in file order unless ``skip_bad``; then broken records are counted by reason.
    """
    started = time.perf_counter()
    tokenizer = TextTokenizer.load(settings.tokenizer)
    report = Report()
    with StoreWriter(out, shard_tokens) as writer, Encoders(settings, jobs) as encoders:
        for source in sources:
            before = (len(writer), writer.tokens, sum(report.bad.values()))
            for block, bad in _blocks(source, settings, tokenizer, encoders):
                for error in bad:
                    if not skip_bad:
                        raise error
                    report.bad[error.reason] += 1
                    report.first_bad.setdefault(error.reason, str(error))
                writer.add(block, source.name)
            after = (len(writer), writer.tokens, sum(report.bad.values()))
            counts = dict(zip(("examples", "tokens", "skipped"), (b - a for a, b in zip(before, after)), strict=True))
            log.info("pack: %s: %s", source.name, ", ".join(f"{n} {what}" for what, n in counts.items()))
            # No paths: the same data make the same bytes wherever they lie.
            about = {"name": source.name, "ratio": source.ratio, "data_type": source.data_type}
            report.sources.append({**about, **counts})
        manifest = {
            "sources": report.sources, "skipped": dict(report.bad), "tokenizer": tokenizer.digest,
            "vocab": tokenizer.vocab.digest, "prompt_rule": settings.prompt_rule, "literal_specials": settings.literal_specials,
        }  # fmt: skip
        if settings.keep:
            manifest["keep"] = plain_keep(settings.keep)
        tokenizer.vocab.save(writer.work / "vocab.json")
        store = writer.finish(manifest)
    report.seconds = time.perf_counter() - started
    return store, report


def _blocks(
    source: Source, settings: Settings, tokenizer: TextTokenizer, encoders: Encoders
) -> Iterator[tuple[Block, list[RecordError]]]:
    if is_store(source.path):
        store = Store(source.path)
        check_store(store, tokenizer, settings.prompt_rule)
        if settings.keep:
            raise DataError(f"--keep: {source.path} is a store, which has tokens only; name the examples it was packed of")
        for at in range(0, len(store), BLOCK):
            yield pack_streams(store[at : at + BLOCK]), []
        return
    records = raw_records(source.path)
    if settings.keep:
        records = kept_records(records, settings.keep, source.path)
    yield from encoders.run((source.name, chunk) for chunk in chunks(records, BLOCK))


class Encoders:
    """A pool of tokenizing processes; with one job the work is done in this process."""

    def __init__(self, settings: Settings, jobs: int) -> None:
        self.settings, self.jobs = settings, jobs
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Encoders:
        if self.jobs > 1:
            self.pool = ProcessPoolExecutor(
                self.jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(self.settings,)
            )
        else:
            _start_worker(self.settings)
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def run(self, work: Iterable[tuple[str, list[Raw]]]) -> Iterator[Done]:
        """Blocks of work in, packed blocks and broken records out, in order."""
        return in_order(self.pool, encode_block, work, self.jobs * IN_FLIGHT)


def in_order(
    pool: ProcessPoolExecutor | None, call: Callable[[Item], Result], work: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """``map`` that keeps at most ``ahead`` items in flight (the executor's own reads all of its input at once)."""
    if pool is None:
        yield from map(call, work)
        return
    waiting: deque[Future[Result]] = deque()
    for item in work:
        waiting.append(pool.submit(call, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items; the last may be shorter.

    >>> list(chunks(range(5), 2))
    [[0, 1], [2, 3], [4]]
    """
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


_worker: dict[str, Any] = {}


def _start_worker(settings: Settings) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker["settings"], _worker["tokenizer"] = settings, TextTokenizer.load(settings.tokenizer)


def encode_block(work: tuple[str, list[Raw]]) -> Done:
    """Parse and tokenize some raw records of a source; broken ones come back as errors."""
    name, raws = work
    settings, tokenizer = _worker["settings"], _worker["tokenizer"]
    streams, bad = [], []
    for where, raw in raws:
        try:
            streams.append(stream_of(
                where, raw, name, tokenizer, prompt_rule=settings.prompt_rule, literal_specials=settings.literal_specials,
            ))  # fmt: skip
        except RecordError as error:
            bad.append(error)
        except DataError as error:
            bad.append(RecordError(where, reason_of(error), str(error)))
    return pack_streams(streams), bad
