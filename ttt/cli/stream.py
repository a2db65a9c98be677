"""``ttt stream``: answers as they come, their sound in pieces, and how long one waits for it."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.errors import ConfigError

if TYPE_CHECKING:
    from ttt.api import Model
    from ttt.sampling.decoder.stream import StreamEvent

PERCENTILES = (50, 90, 99)


@dataclass
class Timing:
    """One answer.  Times are seconds from the question on, None where there was no such thing.

    Time that went into writing files and printing is not counted.  ``stall_s``: how long playback that began with the
    first sound would have had to wait for later pieces.
    """

    uid: str
    first_text_s: float | None = None
    first_block_s: float | None = None
    first_sound_s: float | None = None
    seconds: float = 0.0
    sound_s: float = 0.0
    stall_s: float | None = None
    pieces: int = 0
    tokens: int = 0
    calls: int = 0
    stopped: str = ""
    _played_until_s: float = field(default=0.0, repr=False)

    @property
    def rtf(self) -> float | None:
        """Real-time factor: time to answer per second of sound."""
        return self.seconds / self.sound_s if self.sound_s else None

    def hear(self, event: StreamEvent, at_s: float) -> None:
        """An event that came at ``at_s``."""
        if event.kind == "text":
            self.first_text_s = at_s if self.first_text_s is None else self.first_text_s
        elif event.kind == "block":
            self.first_block_s = at_s if self.first_block_s is None else self.first_block_s
        elif event.kind == "sound" and event.samples is not None:
            duration_s = len(event.samples) / event.rate_hz
            if self.first_sound_s is None or self.stall_s is None:
                self.first_sound_s = self._played_until_s = at_s
                self.stall_s = 0.0
            wait_s = max(0.0, at_s - self._played_until_s)
            self.stall_s += wait_s
            self._played_until_s += wait_s + duration_s
            self.sound_s += duration_s
            self.pieces += 1
        elif event.kind == "end" and event.generation is not None:
            self.seconds, self.stopped = at_s, event.generation.stopped
            self.tokens, self.calls = len(event.generation.ids), event.calls


def stream(arguments: argparse.Namespace) -> int:
    """Ask a model, one question at a time."""
    from ttt.api import load
    from ttt.audio.streaming import CHUNK_FRAMES
    from ttt.train.environment import collect

    chunks = parse_chunks(arguments.chunks) if arguments.chunks else CHUNK_FRAMES
    if arguments.warmup < 0 or arguments.limit < 0:
        raise ConfigError(f"--warmup and --limit must be >= 0, got {arguments.warmup} and {arguments.limit}")
    if bool(arguments.text) + bool(arguments.wav) + bool(arguments.examples) > 1:
        raise ConfigError("--text, --wav and --examples exclude each other; give one of them")
    if arguments.task and not (arguments.text or arguments.wav):
        raise ConfigError("--task goes with --text or --wav; examples have their own tasks")
    out = Path(arguments.out) if arguments.out else None
    if out is not None and (out / "stream.json").exists() and not arguments.overwrite:
        raise ConfigError(f"{out}: holds the answers of an earlier call; give --overwrite, or another --out")
    sound = not arguments.no_sound
    model = load(
        arguments.run, *arguments.overrides, config=arguments.config, plugins=arguments.plugins, sound=sound or bool(arguments.wav)
    )  # fmt: skip
    questions = _questions(arguments, model)

    def ask(number: int) -> Iterator[StreamEvent]:
        uid, question = questions[number]
        return model.stream(question, task=arguments.task, uid=uid, chunk_frames=chunks, sound=sound)

    for number in range(min(arguments.warmup, len(questions))):
        for _ in ask(number):
            pass
    timings = []
    for number, (uid, _) in enumerate(questions):
        timings.append(_answer(uid, ask(number), out, quiet=arguments.report))
    environment = collect()
    found = report(timings, _conditions(model, chunks if sound else (), arguments.warmup, environment), environment)
    print(table(found))
    if out is not None:
        _write_json(out / "stream.json", found)
    return 0


def parse_chunks(spelled: str) -> tuple[int, ...]:
    """``"25,50,100"`` -> (25, 50, 100).  Raises `ConfigError`."""
    from ttt.audio.streaming import check_chunks

    try:
        return check_chunks([int(part) for part in spelled.split(",")])
    except ValueError:
        raise ConfigError(f"--chunks: expected numbers of codes like 25,50,100, got {spelled!r}") from None


def _questions(arguments: argparse.Namespace, model: Model) -> list[tuple[str, Any]]:
    if arguments.text:
        return [("text", arguments.text)]
    if arguments.wav:
        return [(Path(arguments.wav).stem, Path(arguments.wav))]
    from ttt.eval.inputs import read_files

    paths = arguments.examples or model.config.eval.examples
    if not paths:
        raise ConfigError("nothing to ask: give --examples FILE, --text or --wav, or set eval.examples")
    found = [e for read in read_files(paths, arguments.limit, set(model.tasks)).values() for e in read]
    names = [e.uid for e in found]
    twice = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ConfigError(f"--examples: {twice!r} is in several files; stream them one by one")
    return [(e.uid, e) for e in found]


def _answer(uid: str, events: Iterable[StreamEvent], out: Path | None, quiet: bool) -> Timing:
    """Take one answer as it comes: print it, write it, time it."""
    timing = Timing(uid)
    folder = None if out is None else out / (re.sub(r"[^A-Za-z0-9._-]+", "_", uid) or "_")
    if folder is not None:
        for old in [*folder.glob("[0-9][0-9][0-9].wav"), folder.with_name(folder.name + ".wav")]:
            old.unlink(missing_ok=True)
    say: Callable[[str], Any] = (lambda words: None) if quiet else _say
    say(f"{uid}: ")
    heard: list[np.ndarray] = []
    rate_hz = 0
    spent_s = 0.0
    for event in events:
        began = time.perf_counter()
        timing.hear(event, event.elapsed_s - spent_s)
        if event.kind == "text":
            say(event.text)
        elif event.kind == "sound" and event.samples is not None:
            heard.append(event.samples)
            rate_hz = event.rate_hz
            say(f"[sound {len(event.samples) / rate_hz:.2f} s]")
            if folder is not None:
                _write_wav(folder / f"{len(heard):03d}.wav", event.samples, rate_hz)
        spent_s += time.perf_counter() - began
    if folder is not None and heard:
        _write_wav(folder.with_name(folder.name + ".wav"), np.concatenate(heard), rate_hz)
    say(f"  ({timing.tokens} tokens, {timing.calls} calls, {timing.seconds:.3f} s, {timing.stopped})\n")
    return timing


def _say(words: str) -> None:
    sys.stdout.write(words)
    sys.stdout.flush()


def _write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    from ttt.audio.wav import write
    from ttt.types import Waveform

    write(path, Waveform(samples, rate_hz))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all do not exceed (nearest rank): always one that was measured.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 50), percentile([3.0, 1.0, 2.0, 4.0], 99)
    (2.0, 4.0)
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


# name -> (what the table calls it, digits)
_MEASURES = {
    "first_text_s": ("first text, s", 3), "first_block_s": ("first audio block, s", 3),
    "first_sound_s": ("first sound, s", 3), "seconds": ("whole answer, s", 3), "sound_s": ("sound, s", 2),
    "rtf": ("real-time factor", 3), "stall_s": ("playback stalls, s", 3),
}  # fmt: skip


def report(timings: Sequence[Timing], conditions: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Percentiles of every measure over the answers that have it, the answers themselves, and the conditions."""
    measures = {}
    for name in _MEASURES:
        values = [v for t in timings if (v := getattr(t, name)) is not None and (name != "sound_s" or v)]
        if values:
            measures[name] = {
                "n": len(values), **{f"p{p}": percentile(values, p) for p in PERCENTILES}, "max": max(values),
            }  # fmt: skip
    rows = [{k: v for k, v in asdict(t).items() if not k.startswith("_")} | {"rtf": t.rtf} for t in timings]
    return {"measures": measures, "conditions": dict(conditions), "answers": rows, "environment": dict(environment)}


def table(found: Mapping[str, Any]) -> str:
    """`report` as text."""
    heads = ("n", *(f"p{p}" for p in PERCENTILES), "max")
    lines = [f"{'':22}" + "".join(f"{h:>9}" for h in heads)]
    for name, (title, digits) in _MEASURES.items():
        if name in found["measures"]:
            cells = found["measures"][name]
            numbers = "".join(f"{cells[h]:>9.{digits}f}" for h in heads[1:])
            lines.append(f"{title:22}{cells['n']:>9}{numbers}")
    least = min((m["n"] for m in found["measures"].values()), default=0)
    if least < 100:
        lines.append("nearest rank; below 100 answers p99 is the maximum")
    c, e = found["conditions"], found["environment"]
    lines.append(f"{c['answers_at_a_time']} answer at a time after {c['warmup']} for warming up; sampler {c['sampler']}; pieces of "
                 f"{','.join(map(str, c['chunk_frames'])) or 'no'} codes; codec {c['codec']}")  # fmt: skip
    lines.append(
        f"model {c['parameters'] / 1e6:.2f} M parameters, {c['dtype']} on {c['device']}; {e['threads']} thread(s), "
        f"{c['hardware']}; torch {e['packages'].get('torch', '?')}"
    )
    return "\n".join(lines)


def _conditions(model: Model, chunks: Sequence[int], warmup: int, e: Mapping[str, Any]) -> dict[str, Any]:
    from ttt.config.load import to_plain

    device = str(model.lm.device)
    hardware = ", ".join(e["gpus"]) if device.startswith("cuda") else f"{e['cpu']}, {e['cpus']} cores"
    sampler = to_plain(model.config.eval.sampler)
    return {
        "answers_at_a_time": 1, "warmup": warmup, "chunk_frames": list(chunks),
        "sampler": sampler["name"] if isinstance(sampler, dict) else str(sampler), "sampler_settings": sampler,
        "codec": model.codec.codec_id if model.codec is not None else "none",
        "frame_rate_hz": model.codec.frame_rate_hz if model.codec is not None else None,
        "parameters": sum(p.numel() for p in model.lm.parameters()), "dtype": str(model.lm.dtype).removeprefix("torch."),
        "device": device, "hardware": hardware, "max_tokens": model.config.eval.max_tokens,
    }  # fmt: skip


def _write_json(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
