"""Tasks and metrics that break one property each."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from tests.unit.check.faults import exactly, planted
from ttt.eval.metrics import ExactMatch
from ttt.tasks.speech import Asr
from ttt.types import Example

FAULTS, fault = planted()


COUNTER = itertools.count()


@fault("task", "example")
@dataclass(frozen=True)
class OtherLabel(Asr):
    @property
    def label(self):
        return f"asr{next(COUNTER)}"


@fault("task", "deterministic")
@dataclass(frozen=True)
class ChangesItems(Asr):
    def build(self, item, codes):
        item["text_out"] = "changed"
        return super().build(item, codes)


@fault("task", "prompt")
@dataclass(frozen=True)
class TellsTheAnswer(Asr):
    def prompt(self, example):
        return Example(example.uid, example.turns, example.task, example.meta)


@fault("task", "metrics")
@dataclass(frozen=True)
class UnknownMetric(Asr):
    @property
    def metrics(self):
        return {"wer": "word_error"}


@fault("task", "file")
@dataclass(frozen=True)
class NotJson(Asr):
    def build(self, item, codes):
        example = super().build(item, codes)
        return dataclasses.replace(example, meta={**example.meta, "pair": (1, 2)})


@fault("metric", "statistics")
@dataclass(frozen=True)
class Ints(ExactMatch):
    def item(self, scored):
        return super().item(scored).astype(np.int64)


@fault("metric", "micro")
@dataclass(frozen=True)
class Sum(ExactMatch):
    def total(self, statistics):
        return float(statistics[0])


@fault("metric", "direction")
@dataclass(frozen=True)
class UpsideDown(ExactMatch):
    higher_is_better = False


@fault("metric", "deterministic")
@dataclass(frozen=True)
class WritesItems(ExactMatch):
    def item(self, scored):
        found = super().item(scored)
        scored["text"] = scored["text_ref"]
        return found


@pytest.mark.parametrize("family, breaks, cls", FAULTS)
def test_exactly_the_right_property_names_the_fault(family, breaks, cls):
    exactly(family, breaks, cls)
