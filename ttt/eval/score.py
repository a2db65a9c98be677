"""What was heard -> the statistics of every item, and metrics with intervals over the items of a group (split, task)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttt.errors import DataError
from ttt.eval.cards import key_prefix, value_to_json
from ttt.eval.generations import Generated, Pair, answer_codes, group_of
from ttt.eval.intervals import bootstrap
from ttt.eval.listen import Heard, Instruments, Metrics
from ttt.eval.metrics import metric_id
from ttt.interfaces import Metric
from ttt.io.json_output import plain
from ttt.types import Example


@dataclass(frozen=True)
class Bootstrap:
    """Intervals: number of resamples, and the seed they are drawn with."""

    resamples: int = 1000
    seed: int = 1


@dataclass(frozen=True)
class Scored:
    """``items``: what `Metric.item` was given, by index of the pair; ``statistics``: what it returned, by metric name.

    ``metrics``: key -> entry of the card; ``by_kind``: key -> kind of item -> value and n; ``counts``: group -> counts.
    """

    items: Sequence[Mapping[str, Any]]
    statistics: Sequence[Mapping[str, np.ndarray]]
    metrics: Mapping[str, Mapping[str, Any]]
    by_kind: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, Mapping[str, Any]]


def score(
    pairs: Sequence[Pair], heard: Heard, metrics: Metrics, instruments: Instruments, recorded: Set[tuple[str, str]],
    intervals: Bootstrap, other_answers: Mapping[str, Sequence[str]],
) -> Scored:  # fmt: skip
    """Metrics of every group.  ``recorded``: as in `listen`; ``other_answers``: `answer_keys` of all examples."""
    items = [_item(pair, i, heard, instruments, other_answers.get(pair[0].task, ())) for i, pair in enumerate(pairs)]
    statistics = [
        {name: s for name, metric in metrics[item["task"]].items() if (s := metric.item(item)) is not None} for item in items
    ]
    groups: dict[tuple[str, str], list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(group_of(pair), []).append(i)
    entries: dict[str, dict[str, Any]] = {}
    by_kind: dict[str, dict[str, Any]] = {}
    counts: dict[str, dict[str, Any]] = {}
    for (split, task), members in groups.items():
        prefix = f"{key_prefix(split)}{task}"
        for name, metric in metrics[task].items():
            place = f"{prefix}/{name}"
            identity = _identity(metric, instruments.names, (split, task) in recorded)
            rows = {i: statistics[i][name] for i in members if name in statistics[i]}
            entries[place] = {**_entry(metric, identity, list(rows.values()), intervals, place), "split": split, "task": task}
            kinds = _values_by_kind(metric, rows, pairs)
            if len(kinds) > 1:
                by_kind[place] = kinds
        counts[prefix] = _counts([pairs[i][1] for i in members], [items[i] for i in members])
    return Scored(items, statistics, entries, by_kind, counts)


def answer_keys(examples: Sequence[Example]) -> dict[str, list[str]]:
    """Task -> all its answer keys: what counts as another answer where an item lists no distractors."""
    keys: dict[str, dict[str, None]] = {}
    for example in examples:
        if example.meta.get("answer_key"):
            keys.setdefault(example.task, {})[str(example.meta["answer_key"])] = None
    return {task: list(of_task) for task, of_task in keys.items()}


def _item(pair: Pair, i: int, heard: Heard, instruments: Instruments, other_answers: Sequence[str]) -> dict[str, Any]:
    """The mapping that `Metric.item` gets (keys: `ttt.eval.metrics`)."""
    example, record = pair
    split, _ = group_of(pair)
    meta, codes, codec, sound = example.meta, answer_codes(example), instruments.codec, heard.comparisons[i]
    has_answer = example.turns[-1].role == "assistant"
    spoken = codes is not None if has_answer else meta.get("speech_ref") is not None
    audio_s = None
    if spoken:
        audio_s = 0.0 if not len(record.codes) else codec.duration_s(record.codes) if codec is not None else float("nan")
    return {
        "uid": example.uid, "task": example.task, "split": split, "text": record.text, "text_ref": meta.get("text_ref"),
        "answer_key": meta.get("answer_key"), "distractors": meta.get("distractors") or other_answers,
        "judged_text": heard.texts[i] if spoken else None, "speech_ref": meta.get("speech_ref"), "audio_s": audio_s,
        "codes": record.codes if spoken else None,
        "ref_audio_s": codec.duration_s(codes) if codes is not None and codec is not None else None,
        "seconds": record.seconds, "first_block_s": record.first_block_s, "calls": record.calls,
        "forced": record.forced, "mel_distance_db": sound.mel_distance_db if spoken else None,
        "speaker_similarity": sound.speaker_similarity if spoken else None, "normalize": instruments.normalizer.normalize,
        "characters": getattr(instruments.normalizer, "characters", instruments.normalizer.normalize),
    }  # fmt: skip


def _identity(metric: Metric, names: Mapping[str, str], recorded: bool) -> str:
    return metric_id(metric, names["judge"], names["normalizer"], names["speaker"], "recording" if recorded else "codec")


def _entry(metric: Metric, identity: str, rows: Sequence[np.ndarray], intervals: Bootstrap, place: str) -> dict[str, Any]:
    """One metric's line of the card; null where no item counts or nothing is there to divide by."""
    better = None if hasattr(metric, "best") else metric.higher_is_better
    about = {"metric_id": identity, "unit": getattr(metric, "unit", "score"), "higher_is_better": better}
    if not rows:
        return {"value": None, "low": None, "high": None, "n": 0, **about}
    try:
        value = bootstrap(np.stack(rows), metric.total, intervals.resamples, intervals.seed)
        return plain({**value_to_json(value), **about})
    except (ValueError, DataError) as error:
        raise DataError(f"metric {place}: {error}") from error


def _values_by_kind(metric: Metric, rows: Mapping[int, np.ndarray], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Value and n by the example's ``meta["kind"]``."""
    kinds: dict[str, list[np.ndarray]] = {}
    for i, row in rows.items():
        kinds.setdefault(str(pairs[i][0].meta.get("kind") or ""), []).append(row)
    return {
        kind: plain({"value": metric.total(np.sum(of_kind, axis=0)), "n": len(of_kind)})
        for kind, of_kind in sorted(kinds.items())
    }


def _counts(records: Sequence[Generated], items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What happened to a group's answers: why they stopped, how many are silent, how many speak though none was asked to."""
    return {
        "items": len(records),
        "stopped": dict(Counter(r.stopped or "unknown" for r in records)),
        "no_text": sum(not r.text.strip() for r in records),
        "no_speech": sum(item["audio_s"] == 0 for item in items),
        "unasked_speech": sum(item["audio_s"] is None and len(r.codes) > 0 for r, item in zip(records, items)),
    }
