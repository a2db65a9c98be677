"""What tasks and metrics owe."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ttt.check import world
from ttt.check.core import PREPARE, NotSaid, need, prop
from ttt.data.encode import encode_example
from ttt.data.read.examples import example_from_json, example_to_json
from ttt.interfaces import Metric, Task
from ttt.registry import name_of
from ttt.registry.families import METRIC
from ttt.types import Example

CODES = {u: np.arange(world.NUM_CODES, dtype=np.int32)[:, None] for u in ("u1", "u2")}


def _item(task: Task) -> dict[str, Any]:
    return {
        "id": "i", "task": name_of(task), "input": "u1", "output": "u2", "split": "test",
        "text_in": "what is it", "text_out": "a cat sat", "answer_key": "cat", "kind": "x",
    }  # fmt: skip


def _build(task: Task, item: Any, codes: Any) -> Example:
    return task.with_tokenizer(world.tokenizer()).build(item, codes)


def _ids(example: Example, prompt: bool = False) -> list[int]:
    return encode_example(example, world.tokenizer(), open_answer=prompt).ids.tolist()


@prop("task", "example", "an item becomes an example with an answer to learn, under the task's label")
def _example(task: Task) -> None:
    example = _build(task, _item(task), CODES)
    need(isinstance(example, Example), f"build gives {type(example).__name__}")
    need(example.task == task.label, f"the example's task is {example.task!r}, the label {task.label!r}")
    need(encode_example(example, world.tokenizer()).target.any(), "no token of the example carries loss")


@prop("task", "deterministic", "the same item gives the same example, and stays as it is")
def _task_same(task: Task) -> None:
    item = _item(task)
    kept = copy.deepcopy(item)
    one = _ids(_build(task, item, CODES))
    need(item == kept, f"build changed the item: {[k for k in kept if item.get(k) != kept[k]]}")
    two = _ids(_build(task, item, CODES))
    need(one == two, f"two different examples from one item: {len(one)} and {len(two)} tokens")


@prop("task", "prompt", "the prompt is the example up to the answer, and nothing of the answer")
def _prompt(task: Task) -> None:
    example = _build(task, _item(task), CODES)
    stream = encode_example(example, world.tokenizer())
    asked = encode_example(task.prompt(example), world.tokenizer(), open_answer=True)
    n = len(asked)
    same = asked.ids.tolist() == stream.ids[:n].tolist()
    at = next((i for i, (a, b) in enumerate(zip(asked.ids, stream.ids, strict=False)) if a != b), min(n, len(stream)))
    need(same, f"the prompt leaves the example at token {at}")
    if example.turns[0].role == "document":  # it has no answer, and all of it is learned
        need(n < len(stream), "the prompt is the whole document")
        return
    need(not asked.target.any() and not stream.target[:n].any(), f"{int(stream.target[:n].sum())} answer tokens are in the prompt")


@prop("task", "metrics", "every metric it reports is registered")
def _metrics(task: Task) -> None:
    unknown = sorted({n if isinstance(n, str) else str(n["name"]) for n in task.metrics.values()} - set(METRIC.names()))
    need(not unknown, f"no metric named {', '.join(unknown)}; registered: {', '.join(METRIC.names())}")
    need(task.metrics, "it reports no metric")


@prop("task", "file", "an example written to a file and read again is the same")
def _file(task: Task) -> None:
    example = _build(task, _item(task), CODES)
    again = example_from_json(json.loads(json.dumps(example_to_json(example))), "here")
    need(_ids(again) == _ids(example), "its tokens change")
    lost = [k for k in example.meta if again.meta.get(k) != example.meta[k]]
    need(not lost, f"meta {lost} change")


# ------------------------------------------------------------------------------------------------------- metrics


def _loaded(metric: Metric) -> Metric:
    metric.load()
    return metric


PREPARE["metric"] = _loaded


def _scored(said: str, wanted: str, audio_s: float = 1.0) -> Mapping[str, Any]:
    right = said == wanted
    return {
        "mel_distance_db": 2.0 if right else 9.0, "speaker_similarity": 0.9 if right else 0.2,
        "forced": {"": (1.0 if right else 3.0, 4.0)},
        "uid": "i", "task": "t", "split": "test", "text": said, "text_ref": wanted, "answer_key": wanted.split()[0],
        "distractors": ["dog"], "judged_text": said, "speech_ref": wanted, "audio_s": audio_s, "ref_audio_s": 1.0,
        "codes": np.arange(len(said.split()), dtype=np.int32)[:, None],
        "seconds": 0.5, "first_block_s": 0.1, "calls": {"ar": 3, "diffusion": 5}, "normalize": str.lower,
    }  # fmt: skip


def _statistics(metric: Metric, pairs: list[tuple[str, str]]) -> np.ndarray:
    found = [metric.item(_scored(*p)) for p in pairs]
    kept = [f for f in found if f is not None]
    need(kept, "it applies to no item that has text, speech and references")
    return np.stack(kept)


GOOD = [("cat sat on a mat", "cat sat on a mat"), ("four songs and one more", "four songs and one more")]
BAD = [("dog dog xx", "cat sat on a mat"), ("yy", "four songs and one more")]
MIXED = [GOOD[0], BAD[1], ("cat sat on the mat", "cat sat on a mat")]


@prop("metric", "statistics", "an item gives float64 [k], one k for all items")
def _item_shape(metric: Metric) -> None:
    shapes = set()
    for pair in [*GOOD, *BAD, *MIXED]:
        statistics = metric.item(_scored(*pair))
        if statistics is not None:
            good = isinstance(statistics, np.ndarray) and statistics.dtype == np.float64 and statistics.ndim == 1
            need(good, f"the item {pair} gives {statistics!r}")
            shapes.add(statistics.shape)
    need(len(shapes) == 1, f"items give {sorted(shapes)}")


@prop("metric", "micro", "a corpus written down twice has the same score")
def _micro(metric: Metric) -> None:
    total = _statistics(metric, MIXED).sum(0)
    once, twice = metric.total(total), metric.total(2 * total)
    need(np.isfinite(once), f"the score of three items is {once}")
    need(abs(once - twice) <= 1e-6 * (1 + abs(once)), f"{once:.6g} once, {twice:.6g} twice: the score is no mean")


@prop("metric", "direction", "right answers score no worse than wrong ones")
def _direction(metric: Metric) -> None:
    if not getattr(metric, "needs_reference", True):
        raise NotSaid("it compares an answer with nothing: none is right")
    good, bad = (float(metric.total(_statistics(metric, pairs).sum(0))) for pairs in (GOOD, BAD))
    best = getattr(metric, "best", None)
    if best is not None:
        fine, goal = abs(good - best) <= abs(bad - best), f"{best} is best"
    else:
        fine = good >= bad if metric.higher_is_better else good <= bad
        goal = "higher is better" if metric.higher_is_better else "lower is better"
    need(fine, f"right answers {good:.4g}, wrong ones {bad:.4g}, and {goal}")


@prop("metric", "deterministic", "the same item gives the same statistics, and stays as it is")
def _metric_same(metric: Metric) -> None:
    item = dict(_scored(*MIXED[2]))
    kept = copy.deepcopy({k: v for k, v in item.items() if k != "normalize"})
    one, two = metric.item(item), metric.item(item)
    same = (one is None) == (two is None) and (one is None or np.array_equal(one, two))  # type: ignore[arg-type]
    need(same, f"{one} and then {two}")
    need(all(np.array_equal(item[k], v) for k, v in kept.items()), "it changed the item")
