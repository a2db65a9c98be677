"""Recordings of a manifest -> codes, for corpora of any size: in parts, by several processes, going on after a kill.

A manifest is cut into parts of at most `PART_ITEMS` utterances and `PART_S` seconds.  Each part is written whole to
``SPLIT.parts-DIGEST/NUMBER.jsonl`` beside the result; its first line counts what was read.  A part that is there is not
encoded again.  When all are there they are joined to ``SPLIT.jsonl`` in the order of the manifest, so the result does not
depend on how many processes made it, nor on how often they were stopped.  The digest stands for what decides the codes:
codec, manifest and settings.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ttt.audio.loading import half_precision
from ttt.audio.recordings import Recordings
from ttt.data.manifest import Utterance, read_lines_between, scan_manifest
from ttt.errors import ConfigError, DataError, TttError
from ttt.interfaces import Codec
from ttt.io.atomic import file_aside, temporary_name, write_json, write_json_lines
from ttt.io.digests import digest_of_bytes, digest_of_file
from ttt.io.json_input import load, read_json_lines
from ttt.io.outputs import is_our_json
from ttt.types import AudioCodes, Waveform

log = logging.getLogger(__name__)
FORMAT = "ttt-tokenize-parts"
PLAN = "plan.json"
PART_ITEMS = 256
PART_S = 600.0  # ten minutes: 58 MB of samples at 24,000 Hz


@dataclass(frozen=True)
class Part:
    """Consecutive lines of a manifest: bytes [start, stop), the first of them on line ``line``."""

    number: int
    line: int
    start: int
    stop: int
    items: int
    duration_s: float


@dataclass(frozen=True)
class Work:
    """What the processes of one corpus share.  ``skip_bad``: leave unusable recordings out and count them."""

    codec: Codec  # loaded in each process
    manifest: Path
    folder: Path  # of the parts
    skip_bad: bool = False

    def target(self, part: Part) -> Path:
        """Where a part is written."""
        return self.folder / f"{part.number:06d}.jsonl"


def encode_manifest(
    manifest: Path, codec: Codec, out: Path, jobs: int = 1, *, parts: Sequence[Part] = (), shard: tuple[int, int] = (0, 1),
    skip_bad: bool = False, overwrite: bool = False,
) -> dict[str, Any] | None:  # fmt: skip
    """Encode the utterances of a manifest with a loaded codec; JSONL lines {id, codes, duration_s, speaker} with a header line.

    Lines of a codec that removes runs of equal codes also hold ``durations``, the frames that each code lasts.
    Recordings at another rate, or of several channels, are converted; the result says how many (``converted``).

    ``jobs``: processes, each with one torch thread.  ``parts``: what `cut_into_parts` gave.
    ``shard``: (i, n): encode every n-th part from number i on; a call without it joins them.  The result is None.
    ``skip_bad``: recordings that cannot be encoded are listed in ``SPLIT.skipped.jsonl`` and left out; else the first is
    a `DataError`.  ``overwrite``: parts that are there are made again.  Returns counts and speed.
    """
    started = time.perf_counter()
    settings = {
        "format": FORMAT, "codec": codec.codec_id, "manifest": digest_of_file(manifest), "skip_bad": skip_bad,
        "part": [PART_ITEMS, PART_S], **half_precision(codec),
    }  # fmt: skip
    digest = digest_of_bytes(json.dumps(settings, sort_keys=True).encode(), 4)
    work = Work(codec, manifest, out.with_name(f"{out.stem}.parts-{digest}"), skip_bad)
    if work.folder.exists() and not is_our_json(work.folder / PLAN, format=FORMAT):
        raise ConfigError(f"{work.folder}: was not made by ttt; move it away")
    parts = parts or cut_into_parts(manifest)
    write_json(work.folder / PLAN, {**settings, "parts": len(parts)})
    mine = parts[shard[0] :: shard[1]]
    if overwrite:
        for part in mine:
            work.target(part).unlink(missing_ok=True)
    waiting = [part for part in mine if not work.target(part).is_file()]
    if len(waiting) < len(mine):
        log.info("%s: %d of %d parts are there already; going on", manifest.name, len(mine) - len(waiting), len(mine))
    with _Progress(manifest.stem, mine, waiting) as progress:
        for part in _encode(work, waiting, jobs):
            progress.done(part)
    if shard[1] > 1:
        done = sum(work.target(part).is_file() for part in parts)
        then = (
            "run the same command without --shard to join them" if done == len(parts) else "other shards make the rest"
        )
        log.info("%s: %d of %d parts are there; %s", manifest.name, done, len(parts), then)
        return None
    counts = _join(work, parts, out)
    seconds = time.perf_counter() - started
    audio_s = sum(part.duration_s for part in waiting)
    return {**counts, "seconds": seconds, "encoded_s": audio_s, "audio_s_per_s": audio_s / max(seconds, 1e-9)}


@contextlib.contextmanager
def one_at_a_time(folder: Path, together: bool) -> Iterator[None]:
    """While one call works in ``folder`` others of this machine wait; ``together``: only for calls that are not (shards)."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH if together else fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: no file locks here (%s); do not start two calls at once", folder, error)
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # nothing was written
            folder.rmdir()


def remove_parts(out: Path) -> None:
    """Remove the folders of parts beside a finished result, those of earlier settings too."""
    for folder in out.parent.glob(f"{out.stem}.parts-*"):
        if is_our_json(folder / PLAN, format=FORMAT):
            aside = temporary_name(folder)
            with contextlib.suppress(FileNotFoundError):  # another call has done it
                folder.rename(aside)  # gone in one step for other calls
            shutil.rmtree(aside, ignore_errors=True)


def cut_into_parts(manifest: Path) -> list[Part]:
    """The parts of a manifest; every line is checked.  Memory: some ten bytes per utterance."""
    parts: list[Part] = []
    line, start, stop, items, duration_s = 1, 0, 0, 0, 0.0
    for number, end, utterance in scan_manifest(manifest):
        if items and (items == PART_ITEMS or duration_s + utterance.duration_s > PART_S):
            parts.append(Part(len(parts), line, start, stop, items, duration_s))
            line, start, items, duration_s = number, stop, 0, 0.0
        stop, items, duration_s = end, items + 1, duration_s + utterance.duration_s
    return [*parts, Part(len(parts), line, start, stop, items, duration_s)]


def _encode(work: Work, parts: Sequence[Part], jobs: int) -> Iterator[Part]:
    """Encode parts, in this process or in ``jobs`` others; each as it is done."""
    if jobs == 1 or len(parts) < 2:
        for part in parts:
            yield encode_part(work, part)
        return
    with ProcessPoolExecutor(
        min(jobs, len(parts)), mp_context=get_context("spawn"), initializer=_start_worker, initargs=(work,)
    ) as pool:
        futures: list[Future[Part]] = [pool.submit(_encode_in_worker, part) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{work.manifest}: a process that encodes was ended from outside (out of memory?); finished parts are kept: "
                "run the same command again, with fewer data.jobs"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_work: Work | None = None  # of a worker process


def _start_worker(work: Work) -> None:
    import torch

    torch.set_num_threads(1)
    global _work
    _work = work


def _encode_in_worker(part: Part) -> Part:
    assert _work is not None
    return encode_part(_work, part)


def encode_part(work: Work, part: Part) -> Part:
    """Encode one part and write it; returns it."""
    recordings = Recordings(work.codec.encode_rate_hz)
    utterances = list(read_lines_between(work.manifest, part.line, part.start, part.stop))
    waves: list[tuple[Utterance, Waveform]] = []
    skipped: list[dict[str, Any]] = []

    def refuse(line: int, utterance: Utterance, error: Exception) -> None:
        if not work.skip_bad:
            raise DataError(
                f"{work.manifest}:{line}: id {utterance.id!r}: {error} (or give --skip-bad to leave such recordings out)"
            ) from error
        skipped.append({"id": utterance.id, "wav": utterance.wav, "reason": str(error)})

    for line, utterance in utterances:
        try:
            waves.append((utterance, recordings.read(work.manifest.parent / utterance.wav)))
        except DataError as error:
            refuse(line, utterance, error)
    try:
        encoded = list(zip(waves, work.codec.encode([wave for _, wave in waves]), strict=True))
    except TttError:  # one of them: find it
        encoded = []
        line_of = {utterance.id: line for line, utterance in utterances}
        for utterance, wave in waves:
            try:
                encoded.append(((utterance, wave), work.codec.encode([wave])[0]))
            except DataError as error:
                refuse(line_of[utterance.id], utterance, error)
    head = {
        "part": part.number, "utterances": len(encoded), "files": recordings.files, "mixed": recordings.mixed,
        "resampled": sorted(recordings.resampled.items()), "skipped": skipped,
    }  # fmt: skip
    if not (work.folder / PLAN).is_file():
        raise _removed(work)
    lines = (_record(utterance, codes) for (utterance, _), codes in encoded)
    write_json_lines(work.target(part), [head, *lines], ensure_ascii=True)
    return part


def _record(utterance: Utterance, codes: AudioCodes) -> dict[str, Any]:
    ids = codes.ids[:, 0] if codes.ids.shape[1] == 1 else codes.ids
    lasts = {} if codes.durations is None else {"durations": codes.durations.tolist()}
    return {
        "id": utterance.id, "codes": ids.tolist(), **lasts, "duration_s": utterance.duration_s, "speaker": utterance.speaker,
    }  # fmt: skip


def _join(work: Work, parts: Iterable[Part], out: Path) -> dict[str, Any]:
    """Write the result from its parts, and the list of what was skipped; -> counts."""
    codec, total = work.codec, Recordings(work.codec.encode_rate_hz)
    header = {"codec": codec.codec_id, "frame_rate_hz": codec.frame_rate_hz, "num_codebooks": codec.num_codebooks}
    skipped: list[dict[str, Any]] = []
    utterances, duration_s = 0, 0.0
    with file_aside(out, sync=True) as temporary, temporary.open("wb") as lines:
        lines.write(json.dumps(header).encode() + b"\n")
        for part in parts:
            try:
                with work.target(part).open("rb") as source:
                    head: Any = load(source.readline())
                    shutil.copyfileobj(source, lines)
            except FileNotFoundError as error:
                raise _removed(work) from error
            read = Recordings(codec.encode_rate_hz, head["files"], Counter(dict(head["resampled"])), head["mixed"])
            total.add(read)
            skipped += head["skipped"]
            utterances += head["utterances"]
            duration_s += part.duration_s
    if not utterances:
        raise DataError(f"{work.manifest}: no recording can be encoded; the first: {skipped[0]['reason']}")
    if skipped:
        write_json_lines(skipped_path(out), skipped)
    else:
        skipped_path(out).unlink(missing_ok=True)
    counts: dict[str, Any] = {"utterances": utterances, "hours": round(duration_s / 3600, 4), "skipped": len(skipped)}
    return {**counts, "converted": total.summary()} if total.summary() else counts


def _removed(work: Work) -> DataError:
    return DataError(
        f"{work.folder}: parts are gone: another call has finished the same work, or they were removed; run the same "
        "command again"
    )


def skipped_path(codes: Path) -> Path:
    """Where the recordings are listed that `encode_manifest` left out of ``codes``."""
    return codes.with_suffix(".skipped.jsonl")


def read_skipped(codes: Path) -> set[str]:
    """Ids of the utterances that were left out of ``codes``."""
    path = skipped_path(codes)
    return {record["id"] for _, record in read_json_lines(path, "run 'ttt tokenize' again")} if path.is_file() else set()


class _Progress:
    """Hours of audio done, hours of audio per hour and the time left: a bar on a terminal, elsewhere a line every minute."""

    def __init__(self, name: str, mine: Sequence[Part], waiting: Sequence[Part]) -> None:
        self._name, self._total = name, sum(part.duration_s for part in mine)
        self._before = self._total - sum(part.duration_s for part in waiting)
        self._done, self._started, self._said = 0.0, time.monotonic(), time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        from tqdm import tqdm

        if sys.stderr.isatty():
            hours = self._total / 3600
            self._bar = tqdm(
                total=hours, initial=self._before / 3600, desc=self._name, file=sys.stderr, dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio [{elapsed}<{remaining}{postfix}]",
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def done(self, part: Part) -> None:
        """One more part."""
        self._done += part.duration_s
        now = time.monotonic()
        speed = self._done / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{speed:.1f} h of audio per hour", refresh=False)
            self._bar.update(part.duration_s / 3600)
        elif now - self._said >= 60:
            self._said = now
            left = (self._total - self._before - self._done) / speed
            log.info(
                "%s: %.2f of %.2f h of audio, %.1f h per hour, %.0f min left", self._name,
                (self._before + self._done) / 3600, self._total / 3600, speed, left / 60,
            )  # fmt: skip
