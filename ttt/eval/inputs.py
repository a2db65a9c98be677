"""What a run's section ``eval`` names: the example files to answer, the folder of the results, the decoding settings."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.config.load import to_plain
from ttt.config.schema import MISSING, EvalSection, RunConfig
from ttt.errors import ConfigError, DataError
from ttt.registry.core import family

if TYPE_CHECKING:
    from ttt.eval.true_recordings import TrueRecordings
    from ttt.interfaces import Task
    from ttt.types import Example

log = logging.getLogger(__name__)


def generation_files(config: RunConfig) -> dict[Path, Path]:
    """Where the answers of each file of ``eval.examples`` are.  Raises `ConfigError` for two files of one name."""
    out = eval_folder(config)
    files: dict[Path, Path] = {}
    owners: dict[str, Path] = {}
    for path in map(Path, config.eval.examples):
        other = owners.setdefault(path.stem.casefold(), path)  # some file systems do not tell capitals apart
        if path in files or other != path:
            raise ConfigError(
                f"eval.examples: the answers of {other} and {path} would be one file, {out / path.stem}.generations.jsonl; "
                "rename one, or answer them in two calls with an eval.out each"
            )
        files[path] = out / f"{path.stem}.generations.jsonl"
    return files


def read_files(
    paths: Sequence[str], limit: int, tasks: Mapping[str, Task], uids: Collection[str] | None = None
) -> dict[Path, list[Example]]:
    """Examples by file, with their references: the first ``limit`` of each task (0: all), of those in ``uids`` (None: all).

    ``tasks``: by label.  Examples of other tasks and empty files are refused.
    """
    if not paths:
        raise ConfigError("eval.examples: missing; list the example files to answer")
    return {path: list(iter_file(path, limit, tasks, uids)) for path in map(Path, paths)}


def iter_file(
    path: Path, limit: int, tasks: Mapping[str, Task], uids: Collection[str] | None = None
) -> Iterator[Example]:
    """The examples of one file of `read_files`, one at a time, in every form of `ttt.data.read.prompts`."""
    from ttt.data.read.examples import distinct
    from ttt.data.read.prompts import iter_prompts

    seen: dict[str, int] = {}
    for example in distinct(iter_prompts(path, tasks)):
        if example.task not in tasks:
            raise ConfigError(
                f"{path}: example {example.uid!r} is of task {example.task!r}; tasks lists {sorted(tasks)}; add it to tasks"
            )
        if uids is not None and example.uid not in uids:
            continue
        seen[example.task] = seen.get(example.task, 0) + 1
        if not limit or seen[example.task] <= limit:
            yield tasks[example.task].with_reference(example)
    if not seen:
        raise DataError(f"{path}: no examples; make it again, or take it off eval.examples")


def metrics_of(tasks: Mapping[str, Task], examples: Iterable[Example], codec: Any, judge: Any) -> dict[str, dict[str, Any]]:
    """Label -> metrics to report of each task, by name.

    A task whose speech is optional loses those that need a codec or a judge that is not there (None), one whose codec is
    optional those that need a codec.  Lines say so, and which examples have no answer to compare with.
    """
    from ttt.eval.metrics import needs_codec, rests_on
    from ttt.registry.families import METRIC

    listed = list(examples)
    kept = {label: dict(task.metrics) for label, task in tasks.items()}
    for label, task in tasks.items():
        own = [example for example in listed if example.task == label]
        roles = [example.turns[-1].role for example in own]
        if "user" in roles:
            log.info("score: %d of %d examples of task %r have no answer to compare with", roles.count("user"), len(own), label)
        if "document" in roles:
            log.info("score: documents have no answer: the model went on from the beginning of each, and the text is compared "
                     "with the rest; 'ttt likelihood' gives -log p of all of it")  # fmt: skip
        if not own or not (task.speech_is_optional or (task.codec_is_optional and codec is None)):
            continue
        made = {name: METRIC.build(node, f"tasks.{label}.metrics.{name}") for name, node in kept[label].items()}
        lost = [
            name for name, metric in made.items()
            if (codec is None and needs_codec(metric)) or ("judge" in rests_on(metric) and None in (codec, judge))
        ]  # fmt: skip
        if lost:
            missing = " and no ".join(name for name, value in (("codec", codec), ("judge", judge)) if value is None)
            what = "the text" if task.speech_is_optional else "what needs none"
            log.info("score: no %s: of task %r, only %s is scored (not: %s)", missing, label, what, ", ".join(lost))
            kept[label] = {name: node for name, node in kept[label].items() if name not in lost}
    return kept


def check_words(files: Mapping[Path, Sequence[Example]], tasks: Mapping[str, Task]) -> None:
    """Raise `DataError` for a metric of what a judge hears, when no example of the task says what is to be heard."""
    from ttt.eval.metrics import rests_on
    from ttt.registry.families import METRIC

    for label, task in tasks.items():
        examples = [e for listed in files.values() for e in listed if e.task == label]
        if not examples or any(e.meta.get("speech_ref") or e.meta.get("answer_key") for e in examples):
            continue
        if task.speech_is_optional:  # answers in text alone are answers
            continue
        for name, node in task.metrics.items():
            metric = METRIC.build(node, f"tasks.{label}.metrics.{name}")
            if "judge" in rests_on(metric) and getattr(metric, "needs_reference", True):
                raise DataError(
                    f"eval.examples: metric {name!r} of task {label!r} compares what is heard with words, and example "
                    f"{examples[0].uid!r} has none, nor has any other; give the corpus' items their text, or leave the metric out"
                )


def recordings_of(config: RunConfig) -> TrueRecordings:
    """The recordings of ``data.corpus``, for metrics that compare sounds."""
    from ttt.eval.true_recordings import TrueRecordings

    return TrueRecordings(None if config.data.corpus == MISSING else config.data.corpus)


def eval_folder(config: RunConfig) -> Path:
    """Where generations and cards go."""
    return Path(config.eval.out) if config.eval.out else Path(config.run.dir) / "eval"


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Everything that decides a generation, for markers and cards."""
    e = config.eval
    names = (
        "batch_size", "max_tokens", "strict", "cache", "temperature", "top_k", "top_p", "min_text_tokens_after_audio", "limit",
        "forced",
    )  # fmt: skip
    return {
        "sampler": to_plain(e.sampler), "length": to_plain(e.length), "mask": to_plain(getattr(config.objective, "mask", None)),
        "seed": config.run.seed, **{n: getattr(e, n) for n in names}, **dtype_of(config),
        # Only where they are set: results of before these keys stay current.
        **{n: to_plain(getattr(e, n)) for n in ("batch_tokens", "speak", "constraint") if getattr(e, n) != getattr(EvalSection, n)},
    }  # fmt: skip


def dtype_of(config: RunConfig) -> dict[str, str]:
    """``model.dtype`` as a setting that decides results; nothing for float32, the only one that older results know."""
    return {} if config.model.dtype == "float32" else {"dtype": config.model.dtype}


def with_canvas(config: RunConfig, section: Mapping[str, Any]) -> dict[str, Any]:
    """Keys over the section ``eval``: another sampler keeps the run's canvas if it has this field and ``section`` is silent.

    A model that learned to write whole answers can write nothing else, whatever the sampler.
    """
    node = section.get("sampler")
    block = {"name": node} if isinstance(node, str) else node
    canvas = getattr(config.eval.sampler, "canvas", "span")
    if not isinstance(block, Mapping) or "name" not in block or "canvas" in block or canvas == "span":
        return dict(section)
    names = {f.name for f in dataclasses.fields(family("sampler").get(str(block["name"]), "eval.sampler"))}
    return {**section, "sampler": {**block, "canvas": canvas}} if "canvas" in names else dict(section)
