"""Answers to files of examples: the work of ``ttt generate``, by one process or by several that torchrun starts.

Examples are read window by window, and answers stay on the disk (`ttt.eval.partial`) until they are put into one file, in
the order of the examples: memory grows by some 1 KB an example, for its uid and the place of its answer.  Each process
decodes every n-th group of prompts (`ttt.eval.generate.groups_of`), so that the answers do not depend on how many
processes there are.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt.api import decode_settings, model_folder, open_codec, open_model
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError
from ttt.eval.generate import BATCHES, Asked, answers, forced_statistics, groups_of
from ttt.eval.inputs import iter_file, settings_of
from ttt.eval.partial import PartialAnswers
from ttt.interfaces import Codec, Network, Task
from ttt.io.atomic import write_json_lines
from ttt.io.names import file_names
from ttt.sampling.decoder.checks import check_prompts
from ttt.sampling.decoder.decoder import Decoder
from ttt.sampling.trace.record import Tracer, TraceRecord, header, write_trace
from ttt.stage import Stage
from ttt.tasks.records import by_label
from ttt.train.engines.ranks import RankLostError, Ranks, is_lost_rank, pick_device
from ttt.types import AudioCodes

log = logging.getLogger(__name__)
WINDOW = 4096  # examples in memory, at least
PATIENCE_S = 7 * 86_400.0  # ranks that are done wait for the others; one that dies ends the connection at once


@dataclass
class File:
    """One file of examples, and what is written for it: the generations (``target``), every step of decoding (``trace``), and
    the spoken answers (the folder ``wavs``).  ``uids``: of its examples, in order.
    """

    path: Path
    target: Path
    trace: Path
    wavs: Path
    stage: Stage
    answers: PartialAnswers = field(init=False)
    uids: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: RunConfig, path: Path, target: Path, model: Path, traced: bool, wav: bool) -> File:
        """``model``: the folder of the model; ``traced``, ``wav``: are traces, are sounds to be written?"""
        trace, wavs = (target.with_name(f"{path.stem}.{kind}") for kind in ("trace.jsonl", "wavs"))
        makes = [target, *([trace] if traced else []), *([wavs] if wav else [])]
        marker = target.with_suffix(".done.json")
        stage = Stage("generate", marker, [path, model], makes, settings_of(config), also=[trace, wavs])
        return cls(path, target, trace, wavs, stage)


@dataclass(frozen=True)
class Answering:
    """What all files share.  ``codec``: loaded, if spoken answers are written as wavs; ``traced``: write traces."""

    config: RunConfig
    ranks: Ranks
    model: Network
    decoder: Decoder
    codec: Codec | None
    traced: bool

    @property
    def tasks(self) -> dict[str, Task]:
        """By label."""
        return by_label(self.config.tasks)

    def windows(self, file: File) -> Iterator[list[Asked]]:
        """The prompts of a file, so many at a time as are sorted by their lengths together."""
        tasks, e = self.tasks, self.config.eval
        examples = iter_file(file.path, e.limit, tasks)
        while window := list(itertools.islice(examples, max(WINDOW, BATCHES**2 * e.batch_size))):
            yield [Asked.of(example, tasks[example.task], self.model.tokenizer) for example in window]

    def check(self, file: File) -> None:
        """Read all of a file before the first answer: no prompt in it stops the work later."""
        alone, bound = 0, self.config.eval.batch_tokens
        for window in self.windows(file):
            check_prompts(self.model, [one.prompt for one in window], self.decoder.sampler, self.config.eval.max_tokens)
            alone += sum(bound < len(one.prompt.ids) + self.config.eval.max_tokens for one in window)
        if bound and alone and not self.ranks.rank:
            log.info("%s: %d prompts with room for their answers have more than eval.batch_tokens=%d tokens; each is decoded alone",
                     file.path, alone, bound)  # fmt: skip

    def answer(self, file: File) -> None:
        """Decode this rank's groups."""
        names = file_names(file.uids) if self.codec is not None else {}
        number = itertools.count()
        left = len(file.uids) - len(file.answers)
        rate_hz = getattr(self.config.codec, "code_rate_hz", 0.0) or 0.0
        with _Progress(file.path.stem, -(-left // self.ranks.size), rate_hz, quiet=self.ranks.rank > 0) as progress:
            for window in self.windows(file):
                for group in groups_of(window, self.decoder, self.config.eval.batch_size):
                    if next(number) % self.ranks.size == self.ranks.rank:
                        self._answer_group(file, group, names, progress)

    def _answer_group(self, file: File, group: Sequence[Asked], names: Mapping[str, str], progress: _Progress) -> None:
        """Decode those of a group that have no answer yet; each is written down as soon as it has ended."""
        kept, tracer = file.answers, Tracer() if self.traced else None
        waiting = [one for one in group if one.example.uid not in kept]
        if waiting:
            for _, record in answers(self.decoder, waiting, self.config.eval.batch_size, tracer):
                if self.codec is not None:
                    record["wav"] = self._sound(file, record["codes"], names[record["uid"]])
                if kept.is_new:
                    file.stage.reopen()  # older generations are no longer the result
                kept.add(record, tracer.records.pop(record["uid"]) if tracer is not None else None)
                progress.done(len(record["codes"]))
            kept.add_more(
                {one.example.uid: {"seconds": self.decoder.seconds_of(row)} for row, one in enumerate(waiting)}
            )
        lacking = [one.example for one in group if kept.lacks(one.example.uid, "forced")] if self.config.eval.forced else []
        if lacking:
            config, tokenizer = self.config, self.model.tokenizer
            found = forced_statistics(self.model, config.objective, lacking, tokenizer, config.run.seed)
            kept.add_more({e.uid: {"forced": f} for e, f in zip(lacking, found, strict=True)})

    def _sound(self, file: File, codes: Sequence[Sequence[int]], name: str) -> str:
        """Write the sound of an answer; -> its path from the folder of the generations, empty without codes."""
        from ttt.audio.wav import write

        assert self.codec is not None
        if not codes:
            return ""
        spoken = AudioCodes(np.asarray(codes, dtype=np.int32), self.codec.frame_rate_hz, self.codec.codec_id)
        (wave,) = self.codec.decode([spoken])
        file.wavs.mkdir(parents=True, exist_ok=True)
        write(file.wavs / f"{name}.wav", wave)
        return f"{file.wavs.name}/{name}.wav"

    def join(self, file: File, seconds: float) -> None:
        """All answers are there: write the result, in the order of the examples."""
        file.answers.read()
        write_json_lines(file.target, file.answers.records(file.uids))
        file.trace.unlink(missing_ok=True)  # an older one would be of other answers
        if self.traced:
            head = header(self.model.tokenizer, self.config.eval.sampler, settings_of(self.config))
            traces = (TraceRecord.from_json(t, str(file.answers.path)) for t in file.answers.traces(file.uids))
            write_trace(file.trace, head, traces)
        if self.codec is None:
            shutil.rmtree(file.wavs, ignore_errors=True)
        else:
            file.wavs.mkdir(exist_ok=True)  # also when no answer is spoken: a missing folder is made again by the next call
        file.stage.finish({"items": len(file.uids), "seconds": seconds}, seconds)
        file.answers.remove()
        log.info("generate: %s: %d answers in %.1f s", file.path.stem, len(file.uids), seconds)


def answer_files(
    config: RunConfig, targets: Mapping[Path, Path], *, trace: bool = False, wav: bool = False, overwrite: bool = False
) -> None:
    """Answer the files of ``eval.examples`` that are not answered yet; ``targets``: where the answers of each go.

    ``trace``: write every step of decoding too; ``wav``: and the sound of each spoken answer; ``overwrite``: answer all again.
    """
    ranks = Ranks(torch.device("cpu"), PATIENCE_S)
    try:
        with contextlib.ExitStack() as opened:
            with ranks.all_or_none():
                folder = model_folder(config.eval.checkpoint or config.run.dir, config.eval.weights)
                files = [File.of(config, path, target, folder, trace, wav) for path, target in targets.items()]
                done = [file.stage.is_done(overwrite) for file in files] if not ranks.rank else []
            done = ranks.all_gather(done)[0]
            files = [file for file, is_done in zip(files, done, strict=True) if not is_done]
            if not files:
                return
            with ranks.all_or_none():
                tasks = by_label(config.tasks)
                for file in files:
                    file.uids = [example.uid for example in iter_file(file.path, config.eval.limit, tasks)]
                    needs = ["trace"] * trace + ["wav"] * wav
                    file.answers = opened.enter_context(
                        PartialAnswers(file.target, file.stage.state, restart=overwrite, needs=needs, rank=ranks.rank)
                    )
                if ranks.size > 1:
                    pick_device(config.run.device)  # refuses one GPU for all, and makes this rank's own the current one
                model = open_model(config, folder)
                codec = open_codec(config, model.tokenizer) if wav else None
                if wav and codec is None:
                    raise ConfigError("--wav: there is no codec to make sound with; configure codec=")
                decoder = Decoder(model, config.objective.mask, config.eval.sampler, decode_settings(config))
                work = Answering(config, ranks, model, decoder, codec, trace)
                for file in files:
                    work.check(file)
            with ranks.all_or_none():
                for file in files:
                    file.answers.begin(ranks.size)
                    if overwrite and not ranks.rank:
                        shutil.rmtree(file.wavs, ignore_errors=True)
            for file in files:
                started = time.perf_counter()
                work.answer(file)
                _wait(ranks, file)
                with ranks.all_or_none():
                    if not ranks.rank:
                        work.join(file, time.perf_counter() - started)
    finally:
        ranks.close()


def _wait(ranks: Ranks, file: File) -> None:
    """Until the answers of all ranks are there."""
    try:
        ranks.barrier()
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise RankLostError(
            f"{file.path}: another process of this call is gone; look for the first error of the other ranks.  All answers so far "
            "are kept: the same command goes on from there"
        ) from error


class _Progress:
    """Answers, seconds of speech per second and the time left: a bar on a terminal, elsewhere a line every minute.

    ``total``: answers of this rank, about; ``rate_hz``: frames of codes per second, 0: not known.
    """

    def __init__(self, name: str, total: int, rate_hz: float, quiet: bool) -> None:
        self._name, self._total, self._rate_hz, self._quiet = name, total, rate_hz, quiet
        self._items, self._frames, self._started, self._said = 0, 0, time.monotonic(), time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        from tqdm import tqdm

        if sys.stderr.isatty() and not self._quiet:
            self._bar = tqdm(total=self._total, desc=self._name, unit="answer", file=sys.stderr, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def done(self, frames: int) -> None:
        """One more answer, with so many frames of codes."""
        self._items, self._frames, now = self._items + 1, self._frames + frames, time.monotonic()
        spent = max(now - self._started, 1e-9)
        speech = f"{self._frames / self._rate_hz / spent:.2f} s of speech per second" if self._rate_hz else ""
        if self._bar is not None:
            self._bar.set_postfix_str(speech, refresh=False)
            self._bar.update()
        elif now - self._said >= 60 and not self._quiet:
            self._said = now
            left = spent / self._items * max(self._total - self._items, 0)
            log.info("%s: %d of %d answers%s, %.0f min left", self._name, self._items, self._total, f", {speech}" * bool(speech),
                     left / 60)  # fmt: skip
