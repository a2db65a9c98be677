#!/usr/bin/env python3
"""A corpus of series, whose end the beginning determines: what an audio language model can be tested on.

    python egs/mini_talk/local/series.py --out DIR --seed 1 --size full

    again   one word, five times                                cat cat cat | cat cat
    count   five to seven numbers in a row, up or down          three four five | six seven
    twice   two words in turn                                   red cat red cat | red cat
    echo    three words, and again                              red cat nine red | cat nine
    talk    the sentences of mini_talk; their end is open       turn on the | red light

Every item is cut at a word (``|``): ``cut`` is the share of the recording before it, ``text_out`` the words behind it (empty
for ``talk``: any end will do).  Files are those of `data.py`: DIR/wav, DIR/SPLIT.jsonl, DIR/SPLIT.items.jsonl,
DIR/corpus.json.  Train has eight voices in several manners, and a crowd of others: eight alone are too few to go on in one
never heard.  ``test`` has texts that train never says, in the eight voices; ``test_unseen_voice`` has the same texts in others.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grammar
import synth
from corpus_files import digest, made_aside, utterance_id, wav_name, write_report, write_split
from synth import Voice

from ttt.audio import wav
from ttt.data.manifest import Utterance
from ttt.errors import DataError, TttError

log = logging.getLogger("series")

WORDS = (*grammar.NUMBERS, *grammar.COLORS, *grammar.LEGS_OF, *grammar.PLACES, *grammar.SWITCHED, *grammar.OPENED,
         "sky", "sea", "grass", "leaf", "snow", "milk", "sun", "rose", "fire", "night")  # fmt: skip
KINDS = ("again", "count", "twice", "echo", "talk")
SIZES = {
    "full": {
        "train": {"again": 30, "count": 38, "twice": 1700, "echo": 4400, "talk": 1200},
        "dev": {"again": 3, "count": 2, "twice": 20, "echo": 15, "talk": 15},
        "test": {"again": 10, "count": 8, "twice": 40, "echo": 30, "talk": 30},
    },
    "tiny": {
        "train": {"again": 2, "count": 4, "twice": 10, "echo": 6, "talk": 12},
        "dev": {"again": 1, "count": 2, "twice": 2, "echo": 2, "talk": 2},
        "test": {"again": 1, "count": 2, "twice": 2, "echo": 2, "talk": 2},
    },
}  # fmt: skip
# Pitch and words per minute that train adds to a voice.
MANNERS = ((0, 0), (-12, -10), (-6, 8), (6, -5), (12, 10))
FEW = ("again", "count")  # kinds of few texts, which many voices say
FEW_MANNERS = 3  # manners in which every trained voice says them
FEW_CROWD = 12  # voices of the crowd that say them
SPLITS = ("train", "dev", "test", "test_unseen_voice")
LARGEST_DROPPED_SHARE = 0.05
TRIES = 10_000  # random series that are none of use, one after another, before there are no more


@dataclass(frozen=True)
class Series:
    """A text, its kind, and how many of its words are the prompt."""

    text: str
    kind: str
    given: int


def counts() -> list[Series]:
    """All rows of five to seven numbers, up and down; the prompt is all but two or three."""
    found = []
    for numbers in (grammar.NUMBERS, grammar.NUMBERS[::-1]):
        for n in (5, 6, 7):
            found += [Series(" ".join(numbers[a : a + n]), "count", 3 if n < 7 else 4) for a in range(len(numbers) - n + 1)]
    return found


def make(kind: str, rng: random.Random) -> Series:
    """A random series of a kind other than count.

    >>> make("twice", random.Random(1)).given
    4
    """
    if kind == "again":
        return Series(" ".join([rng.choice(WORDS)] * 5), kind, 3)
    if kind == "twice":
        a, b = rng.sample(WORDS, 2)
        return Series(f"{a} {b} {a} {b} {a} {b}", kind, 4)
    if kind == "echo":
        a, b, c = rng.sample(WORDS, 3)
        return Series(f"{a} {b} {c} {a} {b} {c}", kind, 4)
    text = grammar.sentence(rng.choice(grammar.SENTENCE_KINDS), rng)
    return Series(text, kind, max(1, len(text.split()) // 2))


def plan(size: str, seed: int) -> dict[str, list[Series]]:
    """Texts by split; none of dev or test is said in train, and all their words are."""
    rng = random.Random(f"{seed} series")
    rows = counts()
    rng.shuffle(rows)
    seen: set[str] = set()
    words: set[str] = set()
    found: dict[str, list[Series]] = {}
    for split in SPLITS[:3]:
        chosen: list[Series] = []
        for kind, count in SIZES[size][split].items():
            if kind == "count":
                chosen += rows[:count]
                rows = rows[count:]
            vain = 0
            while kind != "count" and count:
                one = make(kind, rng)
                vain += 1
                if vain > TRIES:
                    raise DataError(f"series: {count} more texts of kind {kind!r} are asked of {split}, and there are none")
                if one.text not in seen and (split == "train" or words.issuperset(one.text.split())):
                    chosen.append(one)
                    seen.add(one.text)
                    count, vain = count - 1, 0
        if split == "train":
            words = {word for one in chosen for word in one.text.split()}
        rng.shuffle(chosen)
        found[split] = chosen
    return found


def manner(voice: Voice, number: int) -> Voice:
    """The voice speaking higher or lower, faster or slower; 0: as it is."""
    pitch, rate = MANNERS[number]
    name = f"{voice.name}_{number}" if number else voice.name
    return replace(voice, name=name, pitch=min(99, max(0, voice.pitch + pitch)), rate_wpm=voice.rate_wpm + rate)


def spoken(texts: dict[str, list[Series]], seed: int) -> dict[str, list[tuple[Series, Voice]]]:
    """Who says what, in some manner.

    In train every voice of the eight, and some of the crowd, say the kinds of few texts; all else is said by one voice, of
    the eight and of the crowd in turn.  Dev and test have the eight as they are; the unseen voices repeat the test.
    """
    rng = random.Random(f"{seed} manners")
    voices, crowd = synth.TRAINED, synth.CROWD
    found: dict[str, list[tuple[Series, Voice]]] = {}
    for split, some in texts.items():
        rows: list[tuple[Series, Voice]] = []
        for i, one in enumerate(some):
            if split != "train":
                rows.append((one, voices[i % len(voices)]))
            elif one.kind in FEW:
                rows += [(one, manner(v, m)) for v in voices for m in rng.sample(range(len(MANNERS)), FEW_MANNERS)]
                rows += [(one, manner(v, rng.randrange(len(MANNERS)))) for v in rng.sample(crowd, FEW_CROWD)]
            else:
                among, turn = (voices, crowd)[i % 2], i // 2
                rows.append((one, manner(among[turn % len(among)], rng.randrange(len(MANNERS)))))
        found[split] = rows
    found["test_unseen_voice"] = [(one, synth.UNSEEN[i % len(synth.UNSEEN)]) for i, one in enumerate(texts["test"])]
    return found


def make_corpus(out: Path, size: str, seed: int, overwrite: bool = False) -> dict[str, Any]:
    """Build beside ``out``, then rename; returns what corpus.json holds."""
    with made_aside(out, overwrite) as building:
        said = spoken(plan(size, seed), seed)
        rendered, dropped = _render(said, building)
        total = sum(map(len, said.values()))
        # A sentence whose words espeak joins is no fault of the installation: `talk` loses many.
        faults = sum(n for reason, n in dropped.items() if reason != "words not timed")
        if faults > LARGEST_DROPPED_SHARE * total:
            raise DataError(f"synthesis: {faults} of {total} recordings are unusable ({dict(dropped)}): check espeak-ng")
        corpus = _write(building, said, rendered) | {
            "corpus": "series", "seed": seed, "size": size, "dropped": dict(sorted(dropped.items())),
        }  # fmt: skip
        write_report(building, corpus)
    return corpus


Rendered = dict[tuple[str, str], tuple[float, list[float]]]  # (voice, text) -> (seconds, where its words begin)


def _render(said: dict[str, list[tuple[Series, Voice]]], folder: Path) -> tuple[Rendered, Counter[str]]:
    texts: dict[str, dict[str, None]] = {}
    voices: dict[str, Voice] = {}
    for rows in said.values():
        for one, voice in rows:
            voices[voice.name] = voice
            texts.setdefault(voice.name, {})[one.text] = None
    found: Rendered = {}
    dropped: Counter[str] = Counter()
    for name, mine in texts.items():
        for text, (result, starts) in zip(mine, synth.speak_timed(voices[name], list(mine)), strict=True):
            if result.waveform is None:
                dropped[result.reason] += 1
                continue
            wav.write(folder / wav_name(name, text), result.waveform)
            found[name, text] = (result.waveform.duration_s, starts)
        log.info("voice %s: %d texts", name, len(mine))
    return found, dropped


def _write(folder: Path, said: dict[str, list[tuple[Series, Voice]]], rendered: Rendered) -> dict[str, Any]:
    counted: dict[str, Any] = {}
    for split in SPLITS:
        utterances: dict[str, Utterance] = {}
        items = []
        for number, (one, voice) in enumerate(said[split]):
            if (voice.name, one.text) not in rendered:
                continue
            duration_s, starts = rendered[voice.name, one.text]
            name, words = utterance_id(voice.name, one.text), one.text.split()
            utterances[name] = Utterance(
                name, wav_name(voice.name, one.text), one.text, round(duration_s, 4), voice.name.partition("_")[0], split,
                {"kind": one.kind, "manner": voice.name.partition("_")[2] or "0"},
            )
            items.append({
                "id": f"{split}-{one.kind}-{number:05d}", "task": "continuation", "input": name, "output": name,
                "text_in": " ".join(words[: one.given]), "text_out": " ".join(words[one.given :]) if one.kind != "talk" else "",
                "cut": round(starts[one.given] / duration_s, 5), "kind": one.kind, "split": split, "answer_key": "",
            })  # fmt: skip
        write_split(folder, split, utterances.values(), items)
        counted[split] = {
            "items": len(items), "by_kind": dict(sorted(Counter(i["kind"] for i in items).items())),
            "hours": round(sum(u.duration_s for u in utterances.values()) / 3600, 4),
        }  # fmt: skip
    return {"counts": counted, "digest": digest(folder, SPLITS)}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the corpus of series.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=1, help="seed of texts and voices (default 1)")
    parser.add_argument("--size", choices=sorted(SIZES), default="full", help="how much (default full)")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is already there")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        corpus = make_corpus(args.out, args.size, args.seed, args.overwrite)
    except TttError as error:
        log.error("%s", error)
        return error.exit_code
    for split, found in corpus["counts"].items():
        log.info("%s: %d items %s, %.2f h", split, found["items"], found["by_kind"], found["hours"])
    log.info("dropped: %s; digest %s; wrote %s", corpus["dropped"] or "nothing", corpus["digest"][:12], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
