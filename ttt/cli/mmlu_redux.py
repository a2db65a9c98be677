"""``ttt eval mmlu-redux FOLDER``: a local folder of questions, letters scored or answers written."""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.cli.lm_eval import finish, prepare, reading_settings, show_card
from ttt.stage import Stage
from ttt.textbench.opening import make_scorer, settings_from


def mmlu_redux(arguments: argparse.Namespace) -> int:
    """Write ``card.json``, ``questions.jsonl`` and ``predictions_MODEL_SUBJECT.csv``; print the table."""
    from ttt.api import decode_settings
    from ttt.textbench.mmlu_redux import Protocol, read_folder, subject_files

    protocol = Protocol(arguments.protocol, arguments.labels, arguments.only_ok, arguments.parse, arguments.instruction)
    config, folder, out = prepare(arguments, f"mmlu-redux-{protocol.name}")
    settings = settings_from(arguments, config)
    chosen = read_folder(arguments.data, arguments.subject, protocol, arguments.limit)
    told = {
        "protocol": vars(protocol), "subjects": sorted({q.subject for q in chosen.questions}), "limit": arguments.limit,
        **reading_settings(config, settings),
    }  # fmt: skip
    stage = Stage(
        f"eval mmlu-redux-{protocol.name}", out / "eval.done.json", [folder, *chosen.files], [out / "card.json"], told
    )
    if not arguments.dry_run and stage.is_done(arguments.overwrite):
        show_card(out / "card.json")
        return 0
    if protocol.name == "generate" and config.objective.canvas == "answer":
        decode_settings(config)
    if arguments.dry_run:
        left = "".join(f"; {n} left out: {reason}" for reason, n in chosen.left_out.items())
        print(
            f"{len(chosen.questions)} questions of {len(told['subjects'])} of {len(subject_files(arguments.data))} subjects{left}"
        )
        return 0
    from ttt.textbench.mmlu_redux import ask, summarize

    started = time.perf_counter()
    scorer = make_scorer(folder, config, settings)
    records = ask(scorer, chosen.questions, protocol)
    seconds = time.perf_counter() - started
    result = {
        "metrics": summarize(records, config.eval.bootstrap, config.run.seed), "items": records, "tasks": told["subjects"],
        "counts": {"items": len(records), **scorer.counts, **{f"left out: {k}": n for k, n in chosen.left_out.items()}},
        "timing": {"mmlu_redux_s": seconds},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    subject = told["subjects"][0] if len(told["subjects"]) == 1 else "all"
    write_predictions(out / f"predictions_{_name(folder)}_{subject}.csv", records)
    finish(stage, config, out, result, told, chosen.files, arguments.limit, seconds)
    return 0


def _name(folder: Path) -> str:
    """A model's name for file names: the run's, not that of its innermost folder."""
    parts = [p for p in folder.resolve().parts if p not in ("model", "checkpoints")]
    return "-".join(parts[-2:]) if parts[-1].startswith("step-") else parts[-1]


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """The published script's columns, and the subject; complete or not at all."""
    from ttt.textbench.mmlu_redux import LETTERS

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(["subject", "question", "choices", "ground_truth", "ground_truth_idx", "predicted_answer", "correct",
                          "corruptions"])  # fmt: skip
            for r in records:
                right = [LETTERS[i] for i in r["answers"]]
                predicted = "" if r["predicted"] is None else LETTERS[r["predicted"]]
                out.writerow([r["task"], r["question"], r["choices"], "|".join(right), "|".join(map(str, r["answers"])), predicted,
                              bool(r["statistics"]["acc"][0]), r["error_type"]])  # fmt: skip
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
