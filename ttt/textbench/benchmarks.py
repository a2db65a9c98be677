"""Whole evaluations: everything that can be refused is refused before a model is loaded; results are text to print."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttt.api import decode_settings
from ttt.config.load import to_plain
from ttt.config.schema import MISSING, RunConfig
from ttt.errors import ConfigError
from ttt.io.outputs import check_file, is_our_json
from ttt.io.threads import choose_threads
from ttt.registry import name_of
from ttt.stage import Stage
from ttt.textbench import guard, mmlu_redux
from ttt.textbench.mmlu_redux import Protocol
from ttt.textbench.opening import checkpoint_folder, make_scorer, read_config
from ttt.textbench.results import CARD, MARKER, QUESTIONS, card_table, write_predictions, write_results
from ttt.textbench.scorer import ScorerSettings

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """What all benchmarks share.  ``model``: run, checkpoint or model folder (default: ``run.dir``); ``out``: default in
    RUN/eval; ``limit``: first items of each task or subject (0: all); ``scorer``: fields of `ScorerSettings` over the
    configuration's ``batch_size`` and ``seed``."""

    model: str = ""
    out: str = ""
    limit: int = 0
    config: Sequence[str] = ()
    overrides: Sequence[str] = ()
    plugins: Sequence[str] = ()
    dry_run: bool = False
    overwrite: bool = False
    scorer: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError(f"--limit: must be >= 0, got {self.limit}")


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Tasks of the harness: names or YAML files, folders with more of them, and how they are asked."""

    names: Sequence[str] = ()
    folders: Sequence[str] = ()
    chat: bool = False
    system: str = ""
    shots: int | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """The model to evaluate: its configuration, the folder of its weights, the folder of the results, how it is asked."""

    config: RunConfig
    folder: Path
    out: Path
    settings: ScorerSettings

    def facts(self) -> dict[str, Any]:
        """What decides how the model reads and writes, for markers and cards."""
        c = self.config
        return {
            "objective": name_of(c.objective),
            "mask": to_plain(getattr(c.objective, "mask", None)), "dtype": c.model.dtype,
            "sampler": to_plain(c.eval.sampler) if c.objective.canvas == "answer" else None,
            **dataclasses.asdict(self.settings),
        }  # fmt: skip


def open_target(options: Options, benchmark: str) -> Target:
    """The model that ``options`` name; ``benchmark``: name of the results' folder in a run.  Loads no weights."""
    model = options.model
    named = [o.partition("=")[2] for o in options.overrides if o.startswith(("run.dir=", "eval.checkpoint="))]
    config = read_config(model or (named or ["."])[-1], options.config, options.overrides, options.plugins)
    if not model:
        model = config.eval.checkpoint or ("" if config.run.dir == MISSING else config.run.dir)
    folder = checkpoint_folder(model, config.eval.weights)
    choose_threads(config.run.threads)
    out = Path(options.out) if options.out else Path(model) / "eval" / benchmark
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--out: missing; {folder} is a model folder, which results do not belong into")
    settings = ScorerSettings(**{"batch_size": config.eval.batch_size, "seed": config.run.seed, **options.scorer})
    return Target(config, folder, out, settings)


def run_harness_tasks(options: Options, tasks: Tasks) -> str:
    """Tasks of lm-evaluation-harness; returns the table, or with ``dry_run`` the tasks."""
    from ttt.textbench.harness_run import evaluate
    from ttt.textbench.harness_tasks import check_documents, choose, harness_version, load, task_digest

    target = open_target(options, "lm-eval")
    config = target.config
    chosen = choose(tasks.names, tasks.folders)
    settings = {
        "tasks": sorted(tasks.names), "chat": tasks.chat, "system": tasks.system, "shots": tasks.shots, "limit": options.limit,
        "harness": harness_version(), **target.facts(),
    }  # fmt: skip
    outputs = [target.out / CARD, target.out / QUESTIONS]
    stage = Stage("eval lm-eval", target.out / MARKER, [target.folder, *chosen.files], outputs, settings)
    if not options.dry_run and stage.is_done(options.overwrite):
        return card_table(target.out)
    loaded, groups = load(chosen)
    check_documents(loaded, options.limit)
    if any(task.OUTPUT_TYPE == "generate_until" for task in loaded.values()) and config.objective.canvas == "answer":
        decode_settings(config)  # refuses a sampler that cannot write answers
    if options.dry_run:
        lines = []
        for name, task in loaded.items():
            total = len(task.eval_docs)
            n = min(options.limit or total, total)
            digest = task_digest(task, itertools.islice(task.eval_docs, n))
            lines.append(f"{name}: {n} of {total} documents, {task.OUTPUT_TYPE}, digest {digest}")
        return "\n".join(lines)
    started = time.perf_counter()
    result = evaluate(
        make_scorer(target.folder, config, target.settings), loaded, groups, limit=options.limit, chat=tasks.chat,
        shots=tasks.shots, system=tasks.system, resamples=config.eval.bootstrap, seed=config.run.seed,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return write_results(stage, config, target.out, result, settings, chosen.files, options.limit, seconds)


def run_mmlu_redux(options: Options, data: str, protocol: Protocol, subjects: Sequence[str] = ()) -> str:
    """MMLU-Redux of the folder ``data``; returns the table, or with ``dry_run`` the number of questions."""
    name = f"mmlu-redux-{protocol.name}"
    target = open_target(options, name)
    config, out = target.config, target.out
    chosen = mmlu_redux.read_folder(data, subjects, protocol, options.limit)
    asked = sorted({q.subject for q in chosen.questions})
    settings = {"protocol": vars(protocol), "subjects": asked, "limit": options.limit, **target.facts()}
    subject = asked[0] if len(asked) == 1 else "all"
    predictions = out / f"predictions_{_model_name(target.folder)}_{subject}.csv"
    also = [out / QUESTIONS, predictions]
    stage = Stage(f"eval {name}", out / MARKER, [target.folder, *chosen.files], [out / CARD], settings, also=also)
    if not options.dry_run and stage.is_done(options.overwrite):
        return card_table(out)
    if protocol.name == "generate" and config.objective.canvas == "answer":
        decode_settings(config)  # refuses a sampler that cannot write answers
    if options.dry_run:
        left = "".join(f"; {n} left out: {reason}" for reason, n in chosen.left_out.items())
        return f"{len(chosen.questions)} questions of {len(asked)} of {len(mmlu_redux.subject_files(data))} subjects{left}"
    started = time.perf_counter()
    scorer = make_scorer(target.folder, config, target.settings)
    records = mmlu_redux.ask(scorer, chosen.questions, protocol)
    seconds = time.perf_counter() - started
    result = {
        "metrics": mmlu_redux.summarize(records, config.eval.bootstrap, config.run.seed), "items": records, "tasks": asked,
        "counts": {"items": len(records), **scorer.counts, **{f"left out: {k}": n for k, n in chosen.left_out.items()}},
        "timing": {"mmlu_redux_s": seconds},
    }  # fmt: skip
    write_predictions(predictions, records)
    return write_results(stage, config, out, result, settings, chosen.files, options.limit, seconds)


def _model_name(folder: Path) -> str:
    """A model's name in file names: its run's, and the step of a checkpoint."""
    parts = [p for p in folder.resolve().parts if p not in ("model", "checkpoints")]
    return "-".join(parts[-2:]) if parts[-1].startswith("step-") else parts[-1]


def run_guard(options: Options, before: str, after: str, tasks: Tasks, margin: float) -> tuple[str, bool]:
    """(Comparison of two evaluations as text, whether nothing is lost); writes ``guard.json`` with ``options.out``.

    ``before``, ``after``: result folders, or models, which are evaluated first; ``margin``: tolerated loss.
    """
    from ttt.io.atomic import write_json

    record_path = Path(options.out) / "guard.json"
    if options.out:
        check_file(record_path, is_ours=is_our_json(record_path, format="ttt-guard-"), mend="name another folder with --out")
    folders = [_evaluated(options, tasks, path, side) for side, path in (("before", before), ("after", after))]
    if options.dry_run:
        return "", True
    first, second = map(guard.read_scored, folders)
    changes = guard.compare(first, second, margin)
    record = guard.guard_record(changes, first, second, margin)
    if options.out:
        write_json(record_path, record)
    limited = first.card["limited"] or second.card["limited"]
    title = f"{before} -> {after}" + (f"  !! {limited} !!" if limited else "")
    return guard.guard_table(changes, title, margin), record["verdict"] != "lost"


def _evaluated(options: Options, tasks: Tasks, path: str, side: str) -> Path:
    """The result folder of one side of a comparison, made first where ``path`` is a model."""
    if guard.is_scored(Path(path)):
        return Path(path)
    if not options.out:
        raise ConfigError(
            f"{path}: no results of 'ttt eval' or 'ttt score' here; to evaluate the model first, give --out DIR and --tasks"
        )
    out = Path(options.out) / side
    print(run_harness_tasks(dataclasses.replace(options, model=path, out=str(out)), tasks))
    return out
