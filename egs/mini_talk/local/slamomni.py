"""Items for text-then-speech models from the corpus of mini_talk: written questions, and text alone to learn a language from.

    python local/slamomni.py --corpus exp/full/corpus --out exp/slamomni/items

Two folders of ``{split}.items.jsonl``:

* ``talk``: the questions of the spoken families in writing and sentences to read aloud (task ``text_then_speech``); in
  dev and test also questions of the families in `TEXT_ONLY`, as task ``text_qa``.
* ``text``: questions of *all* families in many phrasings, and the sentences, all as ``text_qa``: what a small text model is
  trained on.  No question of any dev or test split is among them.

So `TEXT_ONLY` is known from text and is never spoken about: what is left of it after learning to speak is the text guard.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grammar

from ttt.io.atomic import write_json_lines

TEXT_ONLY = ("legs", "minus", "before")
READ = "read aloud {}"
GUARD = {"dev": 40, "test": 200}  # questions of TEXT_ONLY that are asked
STRINGS = 600  # digit strings to repeat in the text data


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of one split."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def talk_items(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Written question or order -> spoken answer, of one split."""
    found = []
    for item in items:
        spoken = item["task"] == "qa" and item["kind"] not in TEXT_ONLY
        if spoken or item["task"] == "tts":
            asked = item["text_in"] if spoken else READ.format(item["text_in"])
            found.append({**item, "task": "text_then_speech", "input": None, "text_in": asked})
    return found


def questions(families: Sequence[str], rng: random.Random) -> list[grammar.Asked]:
    """Every instance of the closed families in every phrasing, and digit strings to repeat."""
    found = []
    for family in families:
        if family in grammar.CLOSED_FAMILIES:
            asked = [grammar.ask(family, p, *i) for i in grammar.instances(family) for p in grammar.phrasings(family)]
        else:
            strings = [s for n in (2, 3) for s in grammar.digit_strings(n)]
            ways = grammar.phrasings(family)
            asked = [grammar.open_question(family, rng.choice(ways), s) for s in rng.sample(strings, STRINGS)]
        found += asked
    return found


def text_item(number: int, split: str, question: str, answer: str, key: str, kind: str) -> dict[str, Any]:
    """A written question with a written answer."""
    return {
        "id": f"{split}-text-{number:05d}", "task": "text_qa", "input": None, "output": None, "text_in": question,
        "text_out": answer, "answer_key": key, "kind": kind, "split": split,
    }  # fmt: skip


def plan(corpus: Path, seed: int, most: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Folder -> split -> items.  ``most``: text-only questions per family."""
    rng = random.Random(seed)
    items = {split: read_items(corpus / f"{split}.items.jsonl") for split in ("train", "dev", "test")}
    held = {i["text_in"] for split in ("dev", "test") for i in items[split] if i["task"] == "qa"}
    talk = {split: talk_items(found) for split, found in items.items()}
    kept = []  # questions of TEXT_ONLY that no training sees
    text: list[grammar.Asked] = []
    for family in (*grammar.CLOSED_FAMILIES, *grammar.OPEN_FAMILIES):
        asked = questions([family], rng)
        rng.shuffle(asked)
        if family in TEXT_ONLY:
            share = sum(GUARD.values()) // len(TEXT_ONLY) + 1
            kept += asked[:share]
            asked = asked[share:]
        text += [a for a in asked if a.question not in held][:most]
    rng.shuffle(kept)
    for split, count in GUARD.items():
        guard, kept = kept[:count], kept[count:]
        talk[split] += [text_item(n, split, a.question, a.answer, a.key, a.family) for n, a in enumerate(guard)]
    read = [(READ.format(i["text_in"]), i["text_in"], "", "read") for i in items["train"] if i["task"] == "tts"]
    asked_all = [(a.question, a.answer, a.key, a.family) for a in text] + read
    rng.shuffle(asked_all)
    made = [text_item(n, "train", *a) for n, a in enumerate(asked_all)]
    return {"talk": talk, "text": {"train": made[200:], "dev": [{**i, "split": "dev"} for i in made[:200]]}}


def main() -> None:
    """Write both folders, complete or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of mini_talk's corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, default=700, help="text-only questions per family")
    given = parser.parse_args()
    for folder, splits in plan(given.corpus, given.seed, given.most).items():
        for split, items in splits.items():
            path = given.out / folder / f"{split}.items.jsonl"
            write_json_lines(path, items, ensure_ascii=True)
            print(f"{path}: {len(items)}")


if __name__ == "__main__":
    main()
