"""Audio continuation: the first part of a recording is the prompt, the rest the answer; there is no text."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ttt.data.batches.prompt_cut import Cut
from ttt.errors import DataError
from ttt.interfaces import Task
from ttt.registry import nested
from ttt.registry.families import TASK
from ttt.tasks.base import COST, codes_of, final_speech, named, user_speech, without_answer
from ttt.types import Example, Turn


@TASK.register("continuation")
@dataclass(frozen=True)
class Continuation(Task):
    """Cut every recording in two (AudioLM, arXiv 2209.03143).

    ``utterance``: the field of the item that names the recording.  Drawn cuts (``cut`` uniform or seconds) depend on the
    item's id only.
    An item may give its own cut: ``cut``, the share of the recording, and ``text_out``, the words after it (for judged error
    rates; empty: no words are expected), and ``voice_vector``, a list of numbers that says who speaks (for networks with
    ``voice_dim``).  Training may draw other cuts (``objective.cut``); test examples keep this one.
    """

    reads_text: ClassVar[bool] = False
    codec_is_optional: ClassVar[bool] = True

    utterance: str = "output"
    cut: Cut = nested(Cut)
    measure: list[Any] = field(default_factory=list)  # further metrics, names or blocks: judged_wer, mel_distance, gen_ppl, ...
    forced: list[str] = field(default_factory=list)  # statistics of the true answer: top10/ar, ppl/book0, ... (needs eval.forced)

    def __post_init__(self) -> None:
        if self.cut.mode == "stored":
            object.__setattr__(self, "cut", Cut("fixed", least=self.cut.least, share=self.cut.share))

    def at_rate(self, frame_rate_hz: float) -> Continuation:
        """Cuts in seconds count the codec's frames."""
        return dataclasses.replace(self, cut=self.cut.at_rate(frame_rate_hz))

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the prompt's codes.  Assistant: the rest."""
        ids = codes_of(item, self.utterance, codes)
        if len(ids) < 2:
            raise DataError(f"item {item.get('id')!r}: {len(ids)} frames are too few to cut; leave it out")
        draw = zlib.crc32(str(item["id"]).encode()) / 2**32
        if item.get("cut") is None:
            (prompt,) = self.cut.prompts([len(ids)], [draw])
        elif 0 < float(item["cut"]) < 1:
            prompt = min(max(1, round(float(item["cut"]) * len(ids))), len(ids) - 1)
        else:
            raise DataError(f"item {item.get('id')!r}: 'cut' must be a share between 0 and 1, got {item['cut']!r}")
        turns = (
            Turn("user", (user_speech(ids[:prompt]),)),
            Turn("assistant", (final_speech(ids[prompt:]),)),
        )
        # Words are known only where the item itself says where it is cut.
        reference = (item.get("text_out") or None) if item.get("cut") is not None else None
        meta = {
            "split": item.get("split", ""), "kind": item.get("kind", ""), "utterance": item.get(self.utterance),
            "speech_ref": reference,
        }  # fmt: skip
        if item.get("voice_vector") is not None:
            meta["voice_vector"] = item["voice_vector"]
        return Example(str(item["id"]), turns, self.label, meta)

    def prompt(self, example: Example) -> Example:
        """Everything before the last turn."""
        return without_answer(example)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Length against the recordings, share of silent answers, cost; and the metrics of ``measure`` and ``forced``."""
        return {
            **named(*self.measure),
            **{stat.replace("/", "_"): {"name": "forced", "stat": stat} for stat in self.forced},
            **named("length_ratio", "empty_rate", *COST),
        }  # fmt: skip
