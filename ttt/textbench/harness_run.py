"""Tasks of the harness on a `TextScorer` -> values with intervals, one line per item."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ttt.eval.intervals import bootstrap, resampled
from ttt.rng import derive_seed
from ttt.textbench.harness_tasks import harness_version, task_digest
from ttt.textbench.scorer import TextScorer

log = logging.getLogger(__name__)
_UNITS = dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1"), "rate")
_SLOW = 2_000_000  # values handed to an aggregation function of the harness in all


def evaluate(
    scorer: TextScorer, tasks: Mapping[str, Any], groups: Mapping[str, Any], *, limit: int = 0, chat: bool = False,
    shots: int | None = None, system: str = "", resamples: int = 1000, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """What `ttt.eval.cards.make_card` takes, with ``items`` (lines of questions.jsonl) and ``tasks`` (digests, sizes) beside.

    ``tasks``, ``groups``: of `ttt.textbench.harness_tasks`.  ``limit``: first documents of each task (0: all).  ``chat``: context
    and shots become a chat of the model's template.
    """
    from lm_eval.evaluator import evaluate as run_harness

    from ttt.textbench.harness_model import HarnessModel

    started = time.perf_counter()
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    for name, task in tasks.items():
        _set_shots(name, task, shots, seed)
    found = run_harness(
        lm=HarnessModel(scorer), task_dict={"tasks": dict(tasks), "groups": dict(groups)}, limit=limit or None,
        bootstrap_iters=0, log_samples=True, apply_chat_template=chat, fewshot_as_multiturn=chat,
        system_instruction=system or None,
    )  # fmt: skip
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    metrics: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []
    for name, task in tasks.items():
        metrics.update(_task_values(name, task, samples[name], found["results"][name], resamples, seed))
        items += _items(name, samples[name], found["results"][name])
    for name, group in groups.items():
        metrics.update(_group_values(name, group, found["results"].get(name, {}), samples, resamples, seed))
    facts = {
        name: {
            "digest": task_digest(task, [s["doc"] for s in _first_filter(samples[name])]),
            "n": len(_first_filter(samples[name])), "of": found["n-samples"][name]["original"],
            "shots": found["n-shot"].get(name, 0), "version": str(found["versions"].get(name, "")),
        }
        for name, task in tasks.items()
    }  # fmt: skip
    mass = scorer.speech_mass()
    if len(mass):
        metrics["text/speech_mass"] = _entry(bootstrap(mass, lambda s: s[0] / s[1], resamples, seed), "rate", False, "speech_mass: "
                                        "mean probability of other ids on scored tokens")  # fmt: skip
    return {
        "metrics": metrics, "items": items, "tasks": facts,
        "counts": {"items": sum(t["n"] for t in facts.values()), **scorer.counts},
        "timing": {"harness_s": time.perf_counter() - started}, "harness": harness_version(),
    }  # fmt: skip


def _set_shots(name: str, task: Any, shots: int | None, seed: int) -> None:
    """Number of examples and the seed they are drawn with; a task that fixes 0 keeps it, as in the harness."""
    own = task.get_config("num_fewshot")
    if shots is not None and own == 0 and shots:
        log.warning("%s: fixes 0 examples in its file; --shots %d does not apply", name, shots)
    elif shots is not None or own is None:
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=seed)


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Every document once: the harness repeats them for each filter."""
    return [s for s in samples if s["filter"] == samples[0]["filter"]]


def _label(task: str, metric: str, filter_: str) -> str:
    """``task/acc``; other filters than the plain one are named: ``task/exact_match[strict]``."""
    return f"{task}/{metric}" + ("" if filter_ in ("none", "default") else f"[{filter_}]")


def _values(samples: Sequence[Mapping[str, Any]], metric: str, filter_: str) -> list[Any]:
    return [s[metric] for s in samples if s["filter"] == filter_ and metric in s]


def _parts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(metric, filter) of every value the harness reports."""
    keys = [key.partition(",") for key in results if "," in key]
    return [(metric, filter_) for metric, _, filter_ in keys if not metric.endswith("_stderr")]


def _task_values(
    name: str, task: Any, samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Values are the harness's own; intervals resample documents."""
    from lm_eval.api.metrics import mean

    better = task.higher_is_better()
    found = {}
    for metric, filter_ in _parts(results):
        values = _values(samples, metric, filter_)
        aggregate = task.aggregation().get(metric, mean)
        if aggregate is mean and all(isinstance(v, (bool, int, float, np.number)) for v in values):
            value = bootstrap(_means(values), _mean, resamples, seed)
        else:
            value = _slow_bootstrap(values, aggregate, resamples, seed)
        value = replace(value, value=float(results[f"{metric},{filter_}"]))
        found[_label(name, metric, filter_)] = _entry(
            value, _UNITS.get(metric, "score"), better.get(metric), f"{metric},{filter_}"
        )
    return found


def _group_values(
    name: str, group: Any, results: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]], resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """A group's mean over its tasks; documents are resampled within each task."""
    weighted = {c.metric: bool(c.weight_by_size) for c in group.aggregate_metric_list or ()}
    found = {}
    for metric, filter_ in _parts(results):
        values = {t.task_name: _values(samples[t.task_name], metric, filter_) for t in group.get_all_tasks()}
        values = {t: v for t, v in values.items() if v}
        sizes = np.array([len(v) if weighted.get(metric, True) else 1 for v in values.values()], dtype=np.float64)
        draws = np.stack([resampled(_means(v), _mean, resamples, derive_seed(seed, t)) for t, v in values.items()])
        low, high = np.quantile(sizes @ draws / sizes.sum(), [0.025, 0.975])
        found[_label(name, metric, filter_)] = {
            "value": float(results[f"{metric},{filter_}"]), "low": float(low), "high": float(high),
            "n": sum(map(len, values.values())), "unit": _UNITS.get(metric, "score"), "higher_is_better": True,
            "metric_id": f"{metric},{filter_}: mean over {len(values)} tasks by {'size' if weighted.get(metric, True) else 'name'}",
        }  # fmt: skip
    return found


def _means(values: Sequence[Any]) -> np.ndarray:
    """Statistics f64 [n, 2] of a mean."""
    return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], 1)


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def _slow_bootstrap(values: Sequence[Any], aggregate: Any, resamples: int, seed: int) -> Any:
    """Percentile bootstrap of any aggregation: items are drawn and handed to it, fewer times where there are many."""
    from ttt.types import Value

    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    times = max(50, min(resamples, _SLOW // max(1, len(values))))
    scores = [float(aggregate([values[i] for i in rng.integers(0, len(values), len(values))])) for _ in range(times)]
    known = [s for s in scores if math.isfinite(s)] or [float("nan")]
    low, high = np.quantile(known, [0.025, 0.975])
    return Value(float(aggregate(list(values))), float(low), float(high), len(values))


def _entry(value: Any, unit: str, better: bool | None, metric_id: str) -> dict[str, Any]:
    return {
        "value": value.value, "low": value.low, "high": value.high, "n": value.n, "unit": unit, "metric_id": metric_id,
        "higher_is_better": better,
    }  # fmt: skip


def _items(name: str, samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record per document: its statistics by metric (those that are means), what was asked and answered."""
    by_document: dict[Any, dict[str, Any]] = {}
    for sample in samples:
        item = by_document.setdefault(sample["doc_id"], {
            "uid": f"{name}/{sample['doc_id']}", "task": name, "split": "test", "statistics": {}, "doc_hash": sample["doc_hash"],
            "target": sample["target"], "prompt": sample["arguments"][0][0], "answers": [],
        })  # fmt: skip
        item["answers"] = item["answers"] or [r[0] for r in sample["resps"]]
        for metric, filter_ in _parts(results):
            value = sample.get(metric)
            if filter_ == sample["filter"] and isinstance(value, (bool, int, float, np.number)):
                item["statistics"][_label("", metric, filter_).removeprefix("/")] = [float(value), 1.0]
    return list(by_document.values())
