"""Generations and examples -> metrics, ``items.jsonl`` and samples: `pair_up`, `listen`, `score`, `write`, in this order."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttt.errors import ConfigError
from ttt.eval.generations import Generated, Pair, answer_codes, group_of, pair_up
from ttt.eval.listen import Heard, Instruments, Metrics, groups_with_recordings, listen
from ttt.eval.sample_files import log_to_tensorboard, write_samples
from ttt.eval.score import Bootstrap, Scored, answer_keys, score
from ttt.interfaces import Metric
from ttt.io.atomic import write_json_lines
from ttt.io.json_output import plain
from ttt.registry.families import METRIC
from ttt.types import Example

log = logging.getLogger(__name__)
_DEFAULT_INTERVALS = Bootstrap()
_NOT_WRITTEN = ("normalize", "characters", "distractors", "forced", "codes")  # of a scored item


@dataclass(frozen=True)
class Evaluation:
    """``result`` is what `ttt.eval.cards.make_card` takes; ``files``: paths of samples below ``out``, by index of the item."""

    result: Mapping[str, Any]
    heard: Heard
    scored: Scored
    files: Mapping[int, Mapping[str, str]]
    out: Path

    def log_to_tensorboard(self, folder: Path, step: int) -> None:
        """Metrics and samples as scalars, sounds, pictures and texts of one step."""
        log_to_tensorboard(folder, step, self.result["metrics"], self.scored.items, self.heard.waves, self.files, self.out)


def evaluate(
    records: Sequence[Generated], examples: Sequence[Example], metrics_by_task: Mapping[str, Mapping[str, Any]],
    instruments: Instruments, out: str | Path, *, floor: bool = False, samples: int = 10, intervals: Bootstrap = _DEFAULT_INTERVALS,
    limited: str = "",
) -> Evaluation:  # fmt: skip
    """Score generations against their examples, one to one; metrics are averages over groups (split, task).

    ``metrics_by_task``: task label -> {name in the report: registered metric, or a block of one}.  Writes
    ``out/items.jsonl`` (every item: texts, what was heard, statistics) and, of the first ``samples`` spoken items of each
    group, ``out/samples/{split}/{task}/{uid}.wav`` and ``.png``.  With ``floor``, metrics of sound are also given for the true
    answers through the codec (``asr/floor_judged_wer``): what a perfect model would get.  Metrics that compare with the true
    sound take it from ``instruments.recordings`` where these hold all answers of a group, else from the true codes through
    the codec; `metric_id` says which.

    The result: {"metrics": {"asr/wer": {value, low, high, n, metric_id, ...}}, "by_kind", "counts", "judge", "codec",
    "normalizer", "speaker", "limited", "timing"}.
    """
    started = time.perf_counter()
    out = Path(out)
    pairs = pair_up(records, examples)
    metrics = _build(metrics_by_task, {e.task for e in examples})
    instruments = instruments.ready_for(pairs, metrics)
    recorded = groups_with_recordings(pairs, metrics, instruments.recordings)
    heard = listen(pairs, metrics, instruments, recorded, _first_spoken(pairs, samples))
    scored = score(pairs, heard, metrics, instruments, recorded, intervals, answer_keys(examples))
    _warn_of_empty_answers(pairs)
    values = dict(scored.metrics)
    if floor:
        values |= _true_answers(pairs, metrics, instruments, recorded, intervals)
    files = write(out, pairs, heard, scored, metrics, instruments)
    timing = {**heard.timing, "items": len(pairs), "score_s": time.perf_counter() - started}
    result = {
        "metrics": values, "by_kind": scored.by_kind, "counts": scored.counts, **instruments.names, "limited": limited,
        "timing": {k: round(v, 3) for k, v in timing.items()},
    }  # fmt: skip
    log.info("score: %d items in %.1f s -> %s", len(pairs), timing["score_s"], out)
    return Evaluation(result, heard, scored, files, out)


def write(
    out: Path, pairs: Sequence[Pair], heard: Heard, scored: Scored, metrics: Metrics, instruments: Instruments
) -> dict[int, dict[str, str]]:
    """Samples and ``items.jsonl``: every item with its texts, statistics and own scores.  Returns the samples' paths."""
    examples = [e for e, _ in pairs]
    files = write_samples(out, heard.waves, examples, scored.items, instruments.codec) if heard.waves else {}

    def line(i: int, example: Example, record: Generated) -> dict[str, Any]:
        item = {k: v for k, v in scored.items[i].items() if k not in _NOT_WRITTEN}
        item["calls"] = dict(record.calls)
        item |= {"kind": example.meta.get("kind", ""), "stopped": record.stopped, "n_tokens": record.n_tokens}
        item["scores"] = {name: metrics[example.task][name].total(s) for name, s in scored.statistics[i].items()}
        item["statistics"] = dict(scored.statistics[i])
        return plain({**item, **files.get(i, {})})

    write_json_lines(out / "items.jsonl", (line(i, *pair) for i, pair in enumerate(pairs)))
    return files


def _build(metrics_by_task: Mapping[str, Mapping[str, Any]], tasks: Set[str]) -> dict[str, dict[str, Metric]]:
    for task in sorted(tasks):
        if task not in metrics_by_task:
            raise ConfigError(f"tasks: examples are of task {task!r}, known are {', '.join(metrics_by_task) or 'none'}")
    return {
        task: {name: METRIC.build(node, f"tasks.{task}.metrics.{name}") for name, node in metrics_by_task[task].items()}
        for task in sorted(tasks)
    }


def _warn_of_empty_answers(pairs: Sequence[Pair]) -> None:
    """One line for every group in which no answer holds anything: its numbers say nothing about a model."""
    groups: dict[tuple[str, str], list[Generated]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair), []).append(pair[1])
    for (split, task), records in groups.items():
        if not any(record.text.strip() or len(record.codes) for record in records):
            where = f"{task!r} in {split!r}" if split else repr(task)
            log.warning("score: task %s: not one of the %d answers holds text or speech", where, len(records))


def _first_spoken(pairs: Sequence[Pair], number: int) -> set[int]:
    """Indices of the first spoken answers of each group."""
    chosen: dict[tuple[str, str], list[int]] = {}
    for i, pair in enumerate(pairs):
        if len(pair[1].codes):
            chosen.setdefault(group_of(pair), []).append(i)
    return {i for indices in chosen.values() for i in indices[:number]}


def _true_answers(
    pairs: Sequence[Pair], metrics: Metrics, instruments: Instruments, recorded: Set[tuple[str, str]], intervals: Bootstrap
) -> Mapping[str, Mapping[str, Any]]:
    """Metrics of sound of the true answers through the codec, as ``floor_NAME``."""
    true = [(e, replace(r, codes=c)) for e, r in pairs if (c := answer_codes(e)) is not None]
    of_sound = {task: {f"floor_{name}": m for name, m in own.items() if m.needs_audio} for task, own in metrics.items()}
    heard = listen(true, metrics, instruments, recorded)
    return score(true, heard, of_sound, instruments, recorded, intervals, answer_keys([e for e, _ in pairs])).metrics
