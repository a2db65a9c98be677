#!/usr/bin/env python3
"""A toy of two codebooks: a codec whose frames are two tones, and melodies that go on as they began.

    python egs/toy/local/chords.py --out DIR --seed 1 --items 1600

As a plug-in file it brings the codec ``chords``.  As a program it makes a corpus of one task, ``continuation``: a recording
repeats a few low tones; its high tones are the low ones moved by an interval of its own.  Who has heard the beginning can
play the rest: the first book from its own past, the second from the first and the prompt.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttt.audio.codecs.checks import check_codes, check_wave
from ttt.audio.streaming import WindowStream
from ttt.audio.wav import write
from ttt.data.manifest import Utterance, write_manifest
from ttt.errors import DataError, TttError
from ttt.interfaces import Codec, StreamDecoder
from ttt.io.atomic import folder_aside
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform

NOTES = 16


@CODEC.register("chords")
@dataclass
class Chords(Codec):
    """Two pure tones a frame, one of each book; no weights, exact round trip.  For tests and the toy recipe."""

    rate_hz: int = 16_000
    frame_rate_hz: float = 50.0

    num_codebooks = 2
    num_codes = NOTES
    codec_id = f"chords-{NOTES}x2"

    def __post_init__(self) -> None:
        self._hop = round(self.rate_hz / self.frame_rate_hz)
        self._bins = np.stack([4 + 4 * np.arange(NOTES), 80 + 4 * np.arange(NOTES)])  # [Q, C], whole periods per frame
        if self._hop <= 2 * int(self._bins.max()):
            raise ValueError(f"frames of {self._hop} samples are too short; raise rate_hz or lower frame_rate_hz")

    def load(self, device: str = "cpu", dtype: str = "float32") -> Chords:
        """Nothing to bring."""
        return self

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """The strongest tone of each book in each frame."""
        made = []
        for wave in waves:
            check_wave(wave, self.rate_hz, "chords")
            frames = -(-len(wave.samples) // self._hop)
            padded = np.zeros(frames * self._hop, dtype=np.float32)
            padded[: len(wave.samples)] = wave.samples
            power = np.abs(np.fft.rfft(padded.reshape(frames, self._hop), axis=1))
            ids = np.stack([power[:, own].argmax(1) for own in self._bins], 1).astype(np.int32)
            made.append(AudioCodes(ids, self.frame_rate_hz, self.codec_id))
        return made

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Two tones per frame."""
        made = []
        for c in codes:
            check_codes(c.ids, NOTES, 2, "chords")
            at = np.arange(self._hop)
            turns = [own[c.ids[:, q]][:, None] * at / self._hop for q, own in enumerate(self._bins)]
            made.append(
                Waveform(sum(0.25 * np.sin(2 * np.pi * t) for t in turns).astype(np.float32).reshape(-1), self.rate_hz)
            )
        return made

    def open_stream(self) -> StreamDecoder:
        """Frame by frame: frames do not touch."""
        return WindowStream(self)


def melody(rng: random.Random) -> np.ndarray:
    """Codes i32 [F, 2] of one recording."""
    period, interval = rng.randint(2, 4), rng.randrange(NOTES)
    low = [rng.randrange(NOTES) for _ in range(period)]
    frames = rng.randint(20, 32)
    book = np.asarray([low[i % period] for i in range(frames)])
    return np.stack([book, (book + interval) % NOTES], 1).astype(np.int32)


def make(out: Path, seed: int, items: int) -> None:
    """Write the corpus to ``out``, complete or not at all."""
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: not empty; remove it to make the corpus again")
    rng, codec = random.Random(seed), Chords()
    with folder_aside(out) as work:
        for split, count in (("train", items), ("dev", 24), ("test", 24)):
            utterances, lines = [], []
            for number in range(count):
                uid = f"{split}-{number:04d}"
                (wave,) = codec.decode([AudioCodes(melody(rng), codec.frame_rate_hz, codec.codec_id)])
                path = work / "wav" / f"{uid}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, wave)
                seconds = round(wave.duration_s, 4)
                utterances.append(Utterance(uid, f"wav/{uid}.wav", "(melody)", seconds, "out", split, {}))
                lines.append({"id": uid, "task": "continuation", "split": split, "kind": "melody", "output": uid})
            write_manifest(work / f"{split}.jsonl", utterances)
            (work / f"{split}.items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (work / "corpus.json").write_text(json.dumps({"corpus": "chords", "seed": seed, "items": items}) + "\n")


def main() -> int:
    """Command line; user errors exit 2 with one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--items", type=int, default=1600, help="training items")
    arguments = parser.parse_args()
    try:
        make(arguments.out, arguments.seed, arguments.items)
    except TttError as error:
        print(f"chords.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
