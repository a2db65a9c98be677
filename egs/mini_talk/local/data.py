#!/usr/bin/env python3
"""Make the mini_talk corpus: synthesized wavs, a manifest and a list of task items per split, and a report.

    python egs/mini_talk/local/data.py --out DIR --seed 1 --size full --jobs 2

DIR/wav/VOICE/HASH.wav   16 kHz, 16 bit, mono
DIR/SPLIT.jsonl          utterances (`ttt.data.manifest`); an id means the same wav in every manifest
DIR/SPLIT.items.jsonl    {"id", "task", "input", "output", "text_in", "text_out", "answer_key", "kind", "split"}
DIR/corpus.json          seed, counts, what was dropped and why, hours, versions, digest

Splits: train, dev, test, test_unseen_voice (see plan.py).  ``input`` and ``output`` are utterance ids: asr has speech
and its copy in the output voice, tts only an output, qa a spoken question and the spoken answer.  The same seed gives
the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plan
import synth
from corpus_files import digest, made_aside, utterance_id, wav_name, write_report, write_split
from plan import Item
from synth import OUT, Voice

import ttt
from ttt.audio import wav
from ttt.data.manifest import Utterance
from ttt.errors import DataError, TttError

log = logging.getLogger("mini_talk")

CHUNK = 256  # texts that one engine says before a fresh one takes over: fixed, so that --jobs changes nothing
MAX_DROPPED_SHARE = 0.01


@dataclass(frozen=True)
class Rendered:
    """What became of one (voice, text): seconds and digest of its wav, or the reason why it was dropped."""

    voice: str
    text: str
    duration_s: float = 0.0
    sha256: str = ""
    reason: str = ""


def make_corpus(
    out: Path, size: str = "full", seed: int = 1, jobs: int = 1, flite: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Build in a temporary folder, then rename to ``out``; returns what corpus.json holds."""
    if jobs < 1:
        raise TttError(f"--jobs: {jobs} processes cannot work: give 1 or more")
    unseen = synth.UNSEEN + (synth.FLITE_UNSEEN if flite else ())
    voices = {voice.name: voice for voice in (*synth.TRAINED, *unseen, OUT)}
    with made_aside(out, overwrite) as building:
        items = plan.make_plan(plan.SIZES[size], seed, [v.name for v in synth.TRAINED], [v.name for v in unseen])
        rendered = {(r.voice, r.text): r for r in _render_all(items, voices, building, jobs)}
        corpus = _write(building, items, rendered, voices)
        corpus |= {"seed": seed, "size": size, "versions": _versions(flite)}
        write_report(building, corpus)
    return corpus


def _spoken(item: Item) -> list[tuple[str, str]]:
    """The (voice, text) pairs an item needs."""
    return ([(item.voice, item.text_in)] if item.voice else []) + [(OUT.name, item.text_out)]


def _render_all(items: Iterable[Item], voices: dict[str, Voice], folder: Path, jobs: int) -> Iterator[Rendered]:
    """Synthesize what the items need, each (voice, text) once."""
    texts: dict[str, dict[str, None]] = {name: {} for name in voices}
    for item in items:
        for voice, text in _spoken(item):
            texts[voice][text] = None
    work = [
        (voices[name], list(said)[start : start + CHUNK], folder)
        for name, said in texts.items()
        for start in range(0, len(said), CHUNK)
    ]
    started_s, done, total = time.monotonic(), 0, sum(len(said) for said in texts.values())
    with _mapper(jobs) as run:
        for chunk in run(_render, work):
            yield from chunk
            done += len(chunk)
            log.info("synthesized %d of %d utterances, %.0f s", done, total, time.monotonic() - started_s)


@contextmanager
def _mapper(jobs: int) -> Iterator[Callable[..., Iterable[list[Rendered]]]]:
    """`map` in this process, or over ``jobs`` others; both keep the order."""
    if jobs == 1:
        yield map
    else:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            yield pool.imap


def _render(work: tuple[Voice, list[str], Path]) -> list[Rendered]:
    """Synthesize and write one chunk; one thread, so that sums run in one order."""
    import torch

    voice, texts, folder = work
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    try:
        for text, spoken in zip(texts, synth.speak(voice, texts)):
            if spoken.waveform is None:
                log.warning("dropped: voice %s, %r: %s", voice.name, text, spoken.reason)
                found.append(Rendered(voice.name, text, reason=spoken.reason))
                continue
            path = folder / wav_name(voice.name, text)
            wav.write(path, spoken.waveform)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found.append(Rendered(voice.name, text, round(spoken.waveform.duration_s, 4), digest))
    finally:
        torch.set_num_threads(threads)
    return found


def _write(
    folder: Path, items: Sequence[Item], rendered: dict[tuple[str, str], Rendered], voices: dict[str, Voice]
) -> dict[str, Any]:
    """Manifests and item lists; returns counts and digest."""
    dropped = Counter(r.reason for r in rendered.values() if r.reason)
    if sum(dropped.values()) > MAX_DROPPED_SHARE * len(rendered):
        raise DataError(
            f"synthesis: {sum(dropped.values())} of {len(rendered)} utterances are unusable ({dict(dropped)}), more "
            f"than {MAX_DROPPED_SHARE:.0%}: check the espeak-ng installation and the voices in synth.py"
        )
    kept = [item for item in items if not any(rendered[key].reason for key in _spoken(item))]
    counts: dict[str, Any] = {}
    for split in plan.SPLITS:
        mine = [item for item in kept if item.split == split]
        utterances = list(_utterances(mine, rendered).values())
        write_split(folder, split, utterances, map(_record, mine))
        counts[split] = _counts(mine, utterances)
        counts[split]["dropped_items"] = sum(item.split == split for item in items) - len(mine)
    return {
        "corpus": "mini_talk",
        "counts": counts,
        "digest": digest(folder, plan.SPLITS, (rendered[key].sha256 for key in sorted(rendered))),
        "dropped": dict(sorted(dropped.items())),
        "hours": round(sum(r.duration_s for r in rendered.values()) / 3600, 4),
        "rate_hz": synth.RATE_HZ,
        "utterances": sum(not r.reason for r in rendered.values()),
        "voices": {name: asdict(voice) for name, voice in voices.items()},
    }


def _utterances(items: Iterable[Item], rendered: dict[tuple[str, str], Rendered]) -> dict[str, Utterance]:
    """The utterances of some items by id; a spoken answer that several questions share is one utterance."""
    found: dict[str, Utterance] = {}
    for item in items:
        source = utterance_id(item.voice, item.text_in) if item.voice else None
        answer = utterance_id(OUT.name, item.text_out)
        names = ("qa_question", "qa_answer") if item.task == "qa" else ("asr", "tts")
        if source is not None:
            found[source] = _utterance(item, item.voice, item.text_in, rendered, names[0], answer)
        if answer not in found:  # a shared answer names the first question as its pair
            found[answer] = _utterance(item, OUT.name, item.text_out, rendered, names[1], source)
    return found


def _utterance(
    item: Item, voice: str, text: str, rendered: dict[tuple[str, str], Rendered], kind: str, pair: str | None
) -> Utterance:
    return Utterance(
        id=utterance_id(voice, text),
        wav=wav_name(voice, text),
        text=text,
        duration_s=rendered[voice, text].duration_s,
        speaker=voice,
        split=item.split,
        meta={"kind": kind, "grammar": item.kind, "pair": pair},
    )


def _record(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "task": item.task,
        "input": utterance_id(item.voice, item.text_in) if item.voice else None,
        "output": utterance_id(OUT.name, item.text_out),
        "text_in": item.text_in,
        "text_out": item.text_out,
        "answer_key": item.answer_key,
        "kind": item.kind,
        "split": item.split,
    }


def _counts(items: Sequence[Item], utterances: Sequence[Utterance]) -> dict[str, Any]:
    return {
        "items": dict(sorted(Counter(item.task for item in items).items())),
        "items_by_kind": dict(sorted(Counter(f"{item.task}/{item.kind}" for item in items).items())),
        "utterances": len(utterances),
        "utterances_by_kind": dict(sorted(Counter(u.meta["kind"] for u in utterances).items())),
        "utterances_by_speaker": dict(sorted(Counter(u.speaker for u in utterances).items())),
        "hours": round(sum(u.duration_s for u in utterances) / 3600, 4),
    }


def _versions(flite: bool) -> dict[str, str]:
    packages = ("numpy", "soundfile", "torch", "torchaudio")
    found = {"ttt": ttt.__version__} | {name: importlib.metadata.version(name) for name in packages}
    found["espeak-ng"] = synth.Espeak().version
    return found | ({"flite": synth.Flite().version} if flite else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the mini_talk corpus.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=1, help="seed of texts and voices (default 1)")
    parser.add_argument("--size", choices=sorted(plan.SIZES), default="full", help="how much (default full)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, at no change of the result (default 1)")
    parser.add_argument("--flite", action="store_true", help="add flite's voices to test_unseen_voice")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is already there")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        corpus = make_corpus(args.out, args.size, args.seed, args.jobs, args.flite, args.overwrite)
    except TttError as error:
        log.error("%s", error)
        return error.exit_code
    for split, counts in corpus["counts"].items():
        n, hours = counts["utterances"], counts["hours"]
        log.info("%s: %s, %d utterances, %.2f h", split, counts["items"], n, hours)
    dropped = corpus["dropped"] or "nothing"
    log.info("dropped: %s; digest %s; wrote %s", dropped, corpus["digest"][:12], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
