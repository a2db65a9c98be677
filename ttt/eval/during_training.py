"""Answers that are generated and scored while a model trains (``train.generate_items``)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt.config.schema import RunConfig
from ttt.errors import ConfigError
from ttt.eval.evaluate import evaluate
from ttt.eval.generate import generate
from ttt.eval.generations import Generated
from ttt.eval.inputs import metrics_of, read_files, recordings_of
from ttt.eval.listen import Instruments
from ttt.eval.metrics import needs_codec, rests_on
from ttt.eval.score import Bootstrap
from ttt.interfaces import Codec, Judge, Task
from ttt.io.metrics_log import ANSWERS_FILE
from ttt.registry.families import METRIC
from ttt.sampling.decoder.decoder import Decoder
from ttt.tasks.records import by_label
from ttt.types import Example


@dataclass
class AnswersInTraining:
    """A callback of the trainer: at every validation, answers the same few examples and scores them as `evaluate` does.

    Values come back as ``gen/TASK/METRIC``; texts and wavs go to ``folder/step-N`` and to the run's TensorBoard, where
    ``answers/TASK`` is a table of prompts, references and answers.  ``log`` gets a line of each answer:
    {step, task, uid, prompt, reference, answer, codes, heard}; ``codes``: how many, ``heard``: by the judge, or null.
    Metrics that need a codec or a judge are left out when there is none; those of voices always are.  Every rank generates
    (engines that shard weights need all of them), rank zero scores and writes.
    """

    decoder: Decoder
    examples: Sequence[Example]
    tasks: Mapping[str, Task]
    instruments: Instruments
    folder: Path
    batch_size: int = 16
    samples: int = 2
    tensorboard: Path | None = None
    log: Path | None = None

    def __post_init__(self) -> None:
        if not self.examples:
            raise ConfigError("train.generate_items: there are no examples in data.dev to answer")
        codec, judge = self.instruments.codec, self.instruments.judge
        self._metrics = {
            label: {
                name: node for name, node in of_task.items()
                if "speaker" not in (needed := rests_on(metric := METRIC.build(node, f"tasks.{label}.metrics.{name}")))
                and (judge is not None or "judge" not in needed) and (codec is not None or not needs_codec(metric))
            }
            for label, of_task in metrics_of(self.tasks, self.examples, codec, judge).items()
        }  # fmt: skip
        for label, of_task in self._metrics.items():  # what cannot be opened is said before the first step
            for name, node in of_task.items():
                METRIC.build(node, f"tasks.{label}.metrics.{name}").load()

    def __call__(self, trainer: Any, step: int) -> Mapping[str, float] | None:
        """Answer and score; None on other ranks than zero."""
        records = generate(self.decoder, self.examples, self.tasks, self.batch_size)
        if trainer.engine.rank != 0:
            return None
        generated = [Generated.from_json(r, f"step {step}, example {r['uid']}") for r in records]
        evaluation = evaluate(
            generated, self.examples, self._metrics, self.instruments, self.folder / f"step-{step:08d}", samples=self.samples,
            intervals=Bootstrap(resamples=1),
        )  # fmt: skip
        rows = [
            {
                "step": step, "task": r["task"], "uid": r["uid"], "prompt": r["prompt"],
                "reference": item["text_ref"] or item["speech_ref"], "answer": r["text"], "codes": len(r["codes"]),
                "heard": item["judged_text"],
            } for r, item in zip(records, evaluation.scored.items, strict=True)
        ]  # fmt: skip
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if self.tensorboard is not None:
            evaluation.log_to_tensorboard(self.tensorboard, step)
            log_tables(self.tensorboard, step, rows)
        values = {f"gen/{m['task']}/{key.rpartition('/')[2]}": m["value"] for key, m in evaluation.result["metrics"].items()}
        return {key: value for key, value in values.items() if value is not None}


def log_tables(folder: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """A Markdown table of the answers of each task, as the text ``answers/TASK`` of TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    columns = ("uid", "prompt", "reference", "answer", "codes", "heard")

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join("" if c is None else " ".join(str(c).replace("|", "\\|").split()) for c in cells) + " |"

    with SummaryWriter(str(folder)) as writer:
        for task in dict.fromkeys(row["task"] for row in rows):
            body = [line(row[c] for c in columns) for row in rows if row["task"] == task]
            writer.add_text(f"answers/{task}", "\n".join([line(columns), line("-" for _ in columns), *body]), step)


def answers_in_training(
    config: RunConfig, decoder: Decoder, judge: Judge | None, codec: Codec | None, uids: Collection[str] | None = None
) -> AnswersInTraining:
    """The callback for ``train.generate_items``; ``judge`` and ``codec``: loaded, or None; ``uids``: answer these only."""
    tasks = by_label(config.tasks)
    files = read_files([config.data.dev], config.train.generate_items, tasks, uids) if config.data.dev else {}
    instruments = Instruments(judge, codec, config.eval.normalizer, recordings=recordings_of(config))
    folder = Path(config.run.dir)
    return AnswersInTraining(
        decoder, [example for examples in files.values() for example in examples], tasks, instruments, folder / "generated",
        config.eval.batch_size, config.eval.samples, folder / "tensorboard" if config.train.tensorboard else None,
        folder / ANSWERS_FILE,
    )
