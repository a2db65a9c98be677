"""Audio continuation: the first part of a recording is the prompt, the rest the answer; there is no text."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.data.cut import Cut
from ttt.errors import DataError
from ttt.interfaces import Task
from ttt.registry import nested
from ttt.registry.families import TASK
from ttt.tasks.speech import _codes
from ttt.types import Example, Span, Turn


@TASK.register("continuation")
@dataclass(frozen=True)
class Continuation(Task):
    """Cut every recording in two (specification of AudioLM, section 7).

    ``utterance``: the item's field that names it.  Drawn cuts (``cut`` uniform or seconds) depend on the item's id only.
    Training may cut anew (``objective.cut``); what is tested stays as it was built here.
    """

    utterance: str = "output"
    cut: Cut = nested(Cut)

    def __post_init__(self) -> None:
        if self.cut.mode == "stored":
            object.__setattr__(self, "cut", Cut("fixed", least=self.cut.least, share=self.cut.share))

    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """User: the prompt's codes.  Assistant: the rest."""
        ids = _codes(codes, item, self.utterance)
        if len(ids) < 2:
            raise DataError(f"item {item.get('id')!r}: {len(ids)} frames are too few to cut; leave it out")
        draw = zlib.crc32(str(item["id"]).encode()) / 2**32
        (prompt,) = self.cut.prompts([len(ids)], [draw])
        turns = (
            Turn("user", (Span("audio", codes=ids[:prompt], style="user"),)),
            Turn("assistant", (Span("audio", codes=ids[prompt:], style="last"),)),
        )
        meta = {"split": item.get("split", ""), "kind": item.get("kind", ""), "utterance": item.get(self.utterance)}
        return Example(str(item["id"]), turns, self.label, meta)

    def prompt(self, example: Example) -> Example:
        """Everything before the last turn."""
        if example.turns[-1].role != "assistant":
            raise DataError(f"example {example.uid!r}: the last turn must be the assistant's, got {example.turns[-1].role!r}")
        return Example(example.uid, example.turns[:-1], example.task, example.meta)

    @property
    def metrics(self) -> Mapping[str, str]:
        """How long answers are beside the recordings, how many are silent, what they cost."""
        return {
            "length_ratio": "length_ratio", "empty_rate": "empty_rate", "rtf": "rtf",
            "first_block_latency": "first_block_latency", "calls_per_second": "calls_per_second",
        }  # fmt: skip
