#!/usr/bin/env python3
"""Make the toy corpus: words are tones.  ``wK`` is a run of frames of code K; no speech, no weights, seconds to make.

    python egs/toy/local/data.py --out DIR --seed 1 --items 400

The same folder as any corpus: SPLIT.jsonl manifests, SPLIT.items.jsonl items (asr, tts, qa), wav/.  A question is a row
of tones, its answer the same row backwards.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np

from ttt.audio.codecs.toy import Toy
from ttt.audio.wav import write
from ttt.data.manifest import Utterance, write_manifest
from ttt.errors import DataError, TttError
from ttt.io.atomic import folder_aside
from ttt.types import AudioCodes

FRAMES_PER_WORD = 3
WORDS = 8


def main() -> int:
    """Command line; user errors exit 2 with one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--items", type=int, default=400, help="training items")
    arguments = parser.parse_args()
    try:
        make(arguments.out, arguments.seed, arguments.items)
    except TttError as error:
        print(f"data.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def make(out: Path, seed: int, items: int) -> None:
    """Write the corpus to ``out``, complete or not at all."""
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: not empty; remove it to make the corpus again")
    rng = random.Random(seed)
    seen: set[tuple[int, ...]] = set()
    with folder_aside(out) as work:
        for split, count in (("train", items), ("dev", 24), ("test", 30)):
            utterances: dict[str, Utterance] = {}
            lines = []
            for number in range(count):
                while (row := tuple(rng.choices(range(WORDS), k=rng.randint(2, 4)))) in seen and split != "train":
                    pass
                seen.add(row)
                task = ("asr", "tts", "qa")[number % 3]
                answer = row[::-1] if task == "qa" else row
                spoken = [_say(work, utterances, split, text) for text in (row, answer)]
                lines.append(
                    {"id": f"{split}-{task}-{number:04d}", "task": task, "split": split, "kind": "tones",
                     "input": None if task == "tts" else spoken[0], "output": spoken[1],
                     "text_in": _text(row), "text_out": _text(answer),
                     "answer_key": _text(answer) if task == "qa" else ""}
                )  # fmt: skip
            write_manifest(work / f"{split}.jsonl", list(utterances.values()))
            (work / f"{split}.items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (work / "corpus.json").write_text(json.dumps({"corpus": "toy", "seed": seed, "items": items}) + "\n")


def _text(row: tuple[int, ...]) -> str:
    return " ".join(f"w{k}" for k in row)


def _say(folder: Path, utterances: dict[str, Utterance], split: str, row: tuple[int, ...]) -> str:
    uid = "tone-" + "-".join(map(str, row))
    if uid not in utterances:
        codec = Toy().load()
        frames = []
        for k in row:  # one frame of the last code between words, so that equal neighbours stay two words
            frames += [k] * FRAMES_PER_WORD + [codec.num_codes - 1]
        codes = AudioCodes(np.asarray(frames, dtype=np.int32)[:, None], codec.frame_rate_hz, codec.codec_id)
        (wave,) = codec.decode([codes])
        path = folder / "wav" / f"{uid}.wav"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, wave)
        utterances[uid] = Utterance(
            id=uid, wav=f"wav/{uid}.wav", text=_text(row), duration_s=round(wave.duration_s, 4), speaker="out", split=split,
            meta={},
        )  # fmt: skip
    return uid


if __name__ == "__main__":
    sys.exit(main())
