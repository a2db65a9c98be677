"""Examples -> generation records, and the same in small while a model trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ttt.config.schema import RunConfig
from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.errors import ConfigError
from ttt.eval.evaluator import Generated, score
from ttt.eval.inputs import read_files, recordings_of
from ttt.eval.metrics import rests_on
from ttt.eval.recordings import Recordings
from ttt.interfaces import Codec, Judge, Network, Normalizer, Objective, Task
from ttt.registry.families import METRIC
from ttt.rng import generator
from ttt.sampling.decoder.decoder import Decoder
from ttt.sampling.trace.record import Tracer
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Prompt

log = logging.getLogger(__name__)


def answer(
    decoder: Decoder,
    examples: Sequence[Example],
    tasks: Mapping[str, Task],
    batch_size: int,
    tracer: Tracer | None = None,
) -> list[dict[str, Any]]:
    """Generation records in the order of ``examples``; of each task, ``batch_size`` prompts are in work at a time.

    ``tasks``: label -> task, which makes the prompt.  ``tracer`` writes down every step of decoding.
    """
    prompts: dict[str, Prompt] = {}
    for example in examples:
        stream = encode_example(tasks[example.task].prompt(example), decoder.model.tokenizer, open_answer=True)
        prompts[example.uid] = Prompt.of(stream, example.uid)
    by_task: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda e: (e.task, len(prompts[e.uid].ids), e.uid)):
        by_task.setdefault(example.task, []).append(example)
    by_uid: dict[str, dict[str, Any]] = {}
    for some in by_task.values():
        answers = decoder.generate([prompts[e.uid] for e in some], tracer, batch_size)
        for example, made in zip(some, answers, strict=True):
            by_uid[example.uid] = {
                "uid": example.uid, "task": example.task, "split": example.meta.get("split", ""), "text": made.text,
                "codes": made.codes.tolist(), "calls": dict(made.calls), "seconds": made.seconds,
                "first_block_s": made.first_block_s, "stopped": made.stopped, "n_tokens": len(made.ids),
                "batch": min(batch_size, len(some)),
            }  # fmt: skip
    return [by_uid[e.uid] for e in examples]


def forced_statistics(
    model: Network, objective: Objective, examples: Sequence[Example], tokenizer: TextTokenizer, seed: int
) -> list[dict[str, list[float]]]:
    """The objective's statistics on the true answer of each example, by itself: {name: [sum, count]}.

    The plan is that of validation, its noise a function of (``seed``, the example's uid).
    """
    vocab, found = tokenizer.vocab, []
    with torch.no_grad():
        for example in examples:
            stream = encode_example(example, tokenizer)
            batch = collate([[stream]], len(stream), vocab.pad_id, vocab.mask_id, vocab.code_space)
            plan = objective.clean_plan(batch, generator(seed, f"forced {example.uid}"))
            found.append({name: list(pair) for name, pair in objective.terms(model, plan).stats.items()})
    return found


@dataclass
class AnswersInTraining:
    """A callback of the trainer: answers the same few examples at every validation and scores them like any others.

    Values come back as ``gen/TASK/METRIC``; texts and wavs go to ``folder/step-N`` and to the run's TensorBoard.
    Metrics that need a judge are left out when there is none, those of voices always.  Every rank answers (engines that shard
    weights need all of them), rank zero writes.
    """

    decoder: Decoder
    examples: Sequence[Example]
    tasks: Mapping[str, Task]
    judge: Judge | None
    codec: Codec | None
    normalizer: Normalizer
    folder: Path
    batch_size: int = 16
    samples: int = 2
    tensorboard: Path | None = None
    recordings: Recordings | None = None

    def __post_init__(self) -> None:
        if not self.examples:
            raise ConfigError("train.generate_items: there are no examples in data.dev to answer")
        self._metrics = {
            label: {
                name: node for name, node in task.metrics.items()
                if "speaker" not in (needed := rests_on(METRIC.build(node, f"tasks.{label}.metrics.{name}")))
                and (self.judge is not None or "judge" not in needed)
            }
            for label, task in self.tasks.items()
        }  # fmt: skip

    def __call__(self, trainer: Any, step: int) -> Mapping[str, float] | None:
        """Answer and score; None on other ranks than zero."""
        records = answer(self.decoder, self.examples, self.tasks, self.batch_size)
        if trainer.engine.rank != 0:
            return None
        generated = [Generated.from_json(r, f"step {step}, example {r['uid']}") for r in records]
        result = score(
            generated, self.examples, self.judge, self.codec, self.normalizer, self._metrics, self.folder / f"step-{step:08d}",
            recordings=self.recordings, samples=self.samples, resamples=1, tensorboard=self.tensorboard, step=step,
        )  # fmt: skip
        values = {f"gen/{m['task']}/{key.rpartition('/')[2]}": m["value"] for key, m in result["metrics"].items()}
        return {key: value for key, value in values.items() if value is not None}


def answers_in_training(
    config: RunConfig, decoder: Decoder, judge: Judge | None, codec: Codec | None
) -> AnswersInTraining:
    """The callback that ``train.generate_items`` asks for; ``judge`` and ``codec``: loaded, or None."""
    tasks = {task.label: task for task in config.tasks}
    files = read_files([config.data.dev], config.train.generate_items, set(tasks)) if config.data.dev else {}
    folder = Path(config.run.dir)
    return AnswersInTraining(
        decoder, [example for examples in files.values() for example in examples], tasks, judge, codec,
        config.eval.normalizer, folder / "generated", config.eval.batch_size, config.eval.samples, folder / "tensorboard",
        recordings_of(config),
    )  # fmt: skip
