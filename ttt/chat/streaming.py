"""Questions asked one at a time, each answer printed, written and timed while it comes.

Files of an answer ``UID``: ``UID/001.wav``, ``UID/002.wav``, ... (the pieces), ``UID.wav`` (all of them), and
``stream.json`` (the times of all answers).  An id that is no safe file name gets another; ``names.json`` says which.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.chat.latency import Timing, report, table
from ttt.config.load import to_plain
from ttt.errors import ConfigError
from ttt.io.atomic import write_json
from ttt.io.names import file_name
from ttt.io.outputs import check_file, index_names, is_our_json

if TYPE_CHECKING:
    from ttt.api import Model, Question
    from ttt.sampling.decoder.stream import StreamEvent

RESULTS = "stream.json"


def stream_questions(
    model: Model, questions: Sequence[tuple[str, Question]], *, task: str = "", system: str = "", chunks: Sequence[int] = (),
    warmup: int = 1, out: Path | None = None, quiet: bool = False,
) -> str:  # fmt: skip
    """Ask (uid, question) after (uid, question); returns the table of latencies.

    ``chunks``: codes of each piece of sound (empty: no sound, so no codec is needed); ``warmup``: first questions asked once
    before, untimed; ``out``: folder for sounds and times; ``quiet``: print no answers.
    """
    from ttt.config.record import command_line
    from ttt.io import provenance

    names: dict[str, str] = {}
    if out is not None:
        older = [file_name(uid) for uid in _answered(out / RESULTS)]
        names = index_names(out, [uid for uid, _ in questions], lambda name: (name, f"{name}.wav"), older)

    def ask(number: int) -> Iterator[StreamEvent]:
        uid, question = questions[number]
        return model.stream(question, task=task, system=system, uid=uid, chunk_frames=chunks or None, sound=bool(chunks))

    for number in range(min(warmup, len(questions))):
        for _ in ask(number):
            pass
    timings = [
        _take(uid, ask(number), None if out is None else out / names[uid], quiet)
        for number, (uid, _) in enumerate(questions)
    ]
    environment = provenance.environment(command_line())
    results = report(timings, _conditions(model, chunks, warmup, environment), environment)
    if out is not None:
        write_json(out / RESULTS, results)
    return table(results)


def questions_of(model: Model, examples: Sequence[str], limit: int) -> list[tuple[str, Question]]:
    """(uid, example) of the files, the first ``limit`` of each task and file (0: all); uids must differ."""
    from ttt.eval.inputs import read_files
    from ttt.tasks.records import by_label

    paths = examples or model.config.eval.examples
    if not paths:
        raise ConfigError("nothing to ask: give --examples FILE, --text or --wav, or set eval.examples")
    questions: dict[str, Question] = {}
    for listed in read_files(paths, limit, by_label(model.config.tasks)).values():
        for example in listed:
            if example.uid in questions:
                raise ConfigError(f"--examples: {example.uid!r} is in several files; stream them one by one")
            questions[example.uid] = example
    return list(questions.items())


def parse_chunks(text: str) -> tuple[int, ...]:
    """``"25,50,100"`` -> (25, 50, 100).  Raises `ConfigError`."""
    from ttt.audio.streaming import check_chunks

    try:
        return check_chunks([int(part) for part in text.split(",")])
    except ValueError:
        raise ConfigError(f"--chunks: expected numbers of codes like 25,50,100, got {text!r}") from None


def check_out(out: Path, overwrite: bool) -> None:
    """Raise `ConfigError` unless answers may be written to the folder ``out``."""
    results = out / RESULTS
    if results.exists() and not overwrite:
        raise ConfigError(f"{out}: holds the answers of an earlier call; give --overwrite, or another --out")
    check_file(results, is_ours=is_our_json(results, measures=None, answers=None), mend="name another folder with --out")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, not a folder; name another with --out")


def _answered(results: Path) -> list[str]:
    """The uids of an earlier ``stream.json``; older versions wrote no index."""
    if not is_our_json(results, measures=None, answers=None):
        return []
    answers = json.loads(results.read_bytes())["answers"]
    return [str(answer.get("uid")) for answer in answers if isinstance(answer, dict)] if isinstance(answers, list) else []


def _take(uid: str, events: Iterable[StreamEvent], folder: Path | None, quiet: bool) -> Timing:
    """Take one answer as it comes: print it, write it to ``folder`` and beside it, time it."""
    timing = Timing(uid)
    if folder is not None:
        pieces_before = [p for p in folder.glob("*.wav") if re.fullmatch(r"[0-9]{3,}", p.stem)]
        for old in [*pieces_before, folder.with_name(folder.name + ".wav")]:
            old.unlink(missing_ok=True)
    show: Callable[[str], Any] = (lambda text: None) if quiet else _print_now
    show(f"{uid}: ")
    pieces: list[np.ndarray] = []
    rate_hz = 0
    own_s = 0.0  # time spent here, not on the answer
    for event in events:
        began = time.perf_counter()
        timing.add(event, event.elapsed_s - own_s)
        if event.kind == "text":
            show(event.text)
        elif event.kind == "sound" and event.samples is not None:
            pieces.append(event.samples)
            rate_hz = event.rate_hz
            show(f"[sound {len(event.samples) / rate_hz:.2f} s]")
            if folder is not None:
                _write_wav(folder / f"{len(pieces):03d}.wav", event.samples, rate_hz)
        own_s += time.perf_counter() - began
    if folder is not None and pieces:
        _write_wav(folder.with_name(folder.name + ".wav"), np.concatenate(pieces), rate_hz)
    show(f"  ({timing.tokens} tokens, {timing.calls} calls, {timing.seconds:.3f} s, {timing.stopped})\n")
    return timing


def _print_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    from ttt.audio.wav import write
    from ttt.types import Waveform

    write(path, Waveform(samples, rate_hz))


def _conditions(model: Model, chunks: Sequence[int], warmup: int, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What the times depend on."""
    device = str(model.lm.device)
    cpu = f"{environment['cpu']}, {environment['cpus']} cores"
    sampler = to_plain(model.config.eval.sampler)
    return {
        "answers_at_a_time": 1, "warmup": warmup, "chunk_frames": list(chunks),
        "sampler": sampler["name"] if isinstance(sampler, dict) else str(sampler), "sampler_settings": sampler,
        "codec": model.codec.codec_id if model.codec is not None else "none",
        "frame_rate_hz": model.codec.code_rate_hz or None if model.codec is not None else None,
        "parameters": sum(p.numel() for p in model.lm.parameters()), "dtype": str(model.lm.dtype).removeprefix("torch."),
        "device": device, "hardware": ", ".join(environment["gpus"]) if device.startswith("cuda") else cpu,
        "max_tokens": model.config.eval.max_tokens,
    }  # fmt: skip
