"""Who says what in which split: texts and voices only, no sound.

Promises, kept by construction and tested:

* no text of dev or test occurs in train, in whatever role (an answer that the question decides is the one exception:
  "the sky is blue" answers seen and unseen questions);
* every word of dev and test occurs in train; every fact, operand pair and phrasing asked about in dev and test is asked
  about in train, in other combinations; digit strings to repeat are new;
* `test_unseen_voice` says the texts of test in voices that train never uses: differences are due to the voice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import grammar
from grammar import Asked

SPLITS = ("train", "dev", "test", "test_unseen_voice")
SENTENCE_SHARE = {"digits": 0.20, "sum": 0.20, "command": 0.30, "description": 0.30}
QA_SHARE = {
    "color": 0.13, "opposite": 0.13, "legs": 0.09, "plus": 0.20, "minus": 0.12, "after": 0.08, "before": 0.08,
    "repeat": 0.17,
}  # fmt: skip
OPEN_SHARE = {"train": 0.76, "dev": 0.08, "test": 0.16}  # of the digit strings


@dataclass(frozen=True)
class Size:
    """How much of everything.  ``sentences``: train sentences, each an asr and a tts item; ``phrasings``: train

    phrasings of each instance of a closed family; ``open_questions``: train questions of an open family; ``dev`` and
    ``test``: items per task.
    """

    sentences: int
    phrasings: dict[str, int]
    open_questions: dict[str, int]
    dev: int
    test: int


def _per_family(facts: int, neighbours: int, sums: int) -> dict[str, int]:
    return dict.fromkeys(("color", "opposite", "legs"), facts) | dict.fromkeys(("after", "before"), neighbours) | (
        dict.fromkeys(("plus", "minus"), sums)
    )  # fmt: skip


SIZES = {
    "full": Size(3000, _per_family(20, 14, 11), {"repeat": 400}, 100, 200),
    "quick": Size(1000, _per_family(7, 5, 4), {"repeat": 130}, 100, 200),
    "tiny": Size(40, _per_family(2, 1, 1), {"repeat": 24}, 10, 20),
}


@dataclass(frozen=True)
class Item:
    """One task item before there is sound.  ``voice`` speaks ``text_in`` ("" in tts), the output voice ``text_out``."""

    id: str
    task: str
    split: str
    voice: str
    text_in: str
    text_out: str
    answer_key: str
    kind: str


def make_plan(size: Size, seed: int, voices: Sequence[str], unseen: Sequence[str]) -> list[Item]:
    """All items of the corpus, a function of the arguments alone."""
    asked = _questions(size, random.Random(f"{seed} questions"))
    taken = {text for found in asked.values() for a in found for text in (a.question, a.answer)}
    said = _sentences(size, random.Random(f"{seed} sentences"), taken)
    items: list[Item] = []
    for split in ("train", "dev", "test"):
        items += _asr_tts(said[split], split, voices) + _qa(asked[split], split, voices)
    return items + _in_other_voices([item for item in items if item.split == "test"], unseen)


def _asr_tts(said: list[tuple[str, str]], split: str, voices: Sequence[str]) -> list[Item]:
    asr = [
        Item(f"{split}-asr-{i:05d}", "asr", split, voices[i % len(voices)], text, text, "", kind)
        for i, (text, kind) in enumerate(said)
    ]
    return asr + [replace(item, id=item.id.replace("-asr-", "-tts-"), task="tts", voice="") for item in asr]


def _qa(asked: list[Asked], split: str, voices: Sequence[str]) -> list[Item]:
    return [
        Item(f"{split}-qa-{i:05d}", "qa", split, voices[i % len(voices)], a.question, a.answer, a.key, a.family)
        for i, a in enumerate(asked)
    ]


def _in_other_voices(items: Iterable[Item], unseen: Sequence[str]) -> list[Item]:
    split = "test_unseen_voice"
    found = []
    for i, item in enumerate(items):
        voice = unseen[i % len(unseen)] if item.voice else ""
        found.append(replace(item, id=item.id.replace("test", split, 1), split=split, voice=voice))
    return found


def _sentences(size: Size, rng: random.Random, taken: set[str]) -> dict[str, list[tuple[str, str]]]:
    """Distinct (sentence, kind) by split; none in ``taken``; dev and test use words of the train sentences only."""
    seen = set(taken)
    words: set[str] = set()
    found: dict[str, list[tuple[str, str]]] = {}
    for split, total in (("train", size.sentences), ("dev", size.dev), ("test", size.test)):
        chosen = []
        for kind, count in _shares(total, SENTENCE_SHARE).items():
            while count:
                text = grammar.sentence(kind, rng)
                if text in seen or (split != "train" and not words.issuperset(text.split())):
                    continue
                seen.add(text)
                chosen.append((text, kind))
                count -= 1
        if split == "train":
            words = {word for text, _ in chosen for word in text.split()}
        rng.shuffle(chosen)
        found[split] = chosen
    return found


def _questions(size: Size, rng: random.Random) -> dict[str, list[Asked]]:
    found: dict[str, list[Asked]] = {"train": [], "dev": [], "test": []}
    counts = {split: _shares(getattr(size, split), QA_SHARE) for split in ("dev", "test")}
    for family in grammar.CLOSED_FAMILIES:
        train, rest = _closed(family, size.phrasings[family], rng)
        found["train"] += train
        rng.shuffle(rest)
        for split in ("dev", "test"):
            count = counts[split][family]
            found[split] += rest[:count]
            rest = rest[count:]
    strings = _digit_pools(rng)
    for family in grammar.OPEN_FAMILIES:
        wanted = {"train": size.open_questions[family]} | {split: counts[split][family] for split in counts}
        used: Counter[str] = Counter(dict.fromkeys(grammar.phrasings(family), 0))
        for split, count in wanted.items():
            if split != "train":
                used = +used  # only phrasings that train has used
            for digits in rng.sample(strings[split], count):
                (phrasing,) = _least_used(used, 1, rng)
                found[split].append(grammar.open_question(family, phrasing, digits))
    for split in found:
        rng.shuffle(found[split])
    return found


def _closed(family: str, per_instance: int, rng: random.Random) -> tuple[list[Asked], list[Asked]]:
    """(train questions, all other questions made of instances and phrasings that train uses)."""
    used: Counter[str] = Counter(dict.fromkeys(grammar.phrasings(family), 0))
    train, chosen = [], {}
    for instance in grammar.instances(family):
        chosen[instance] = _least_used(used, per_instance, rng)
        train += [grammar.ask(family, phrasing, *instance) for phrasing in chosen[instance]]
    rest = [
        grammar.ask(family, phrasing, *instance)
        for instance, mine in chosen.items()
        for phrasing in +used
        if phrasing not in mine
    ]
    return train, rest


def _least_used(used: Counter[str], count: int, rng: random.Random) -> list[str]:
    """Take the phrasings used least so far, ties broken by chance, and count them."""
    order = sorted(used, key=lambda phrasing: (used[phrasing], rng.random()))[:count]
    used.update(order)
    return order


def _digit_pools(rng: random.Random) -> dict[str, list[tuple[str, ...]]]:
    """Strings of two and three digits by split."""
    strings = [digits for length in (2, 3) for digits in grammar.digit_strings(length)]
    rng.shuffle(strings)
    pools, start = {}, 0
    for split, count in _shares(len(strings), OPEN_SHARE).items():
        pools[split] = strings[start : start + count]
        start += count
    return pools


def _shares(total: int, share: dict[str, float]) -> dict[str, int]:
    """Whole numbers that add up to the total, each within one of its share.

    >>> _shares(10, {"a": 0.5, "b": 0.26, "c": 0.24})
    {'a': 5, 'b': 3, 'c': 2}
    """
    counts = {name: int(total * part) for name, part in share.items()}
    by_rest = sorted(share, key=lambda name: counts[name] - total * share[name])
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
