"""What an evaluation leaves: ``card.json``, ``questions.jsonl`` and, for MMLU-Redux, the table of predictions."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.config.load import to_plain
from ttt.config.schema import RunConfig
from ttt.io.atomic import file_aside, write_json_lines
from ttt.io.json_output import plain
from ttt.stage import Stage

log = logging.getLogger(__name__)

CARD, QUESTIONS, MARKER = "card.json", "questions.jsonl", "eval.done.json"


def write_results(
    stage: Stage, config: RunConfig, out: Path, result: Mapping[str, Any], settings: Mapping[str, Any], files: Sequence[Path],
    limit: int, seconds: float,
) -> str:  # fmt: skip
    """Write questions, card and marker, in this order; returns the table.

    ``result``: metrics, items, tasks, counts and timing; ``settings``: how the model was asked; ``files``: of the questions.
    """
    from ttt.eval.cards import make_card, write_card

    write_json_lines(out / QUESTIONS, map(plain, result["items"]))
    metrics = {key: {"task": key.rpartition("/")[0], "split": "", **entry} for key, entry in result["metrics"].items()}
    card = make_card(
        {"normalizer": "each task's own", **result, "metrics": metrics, "counts": {}},
        name=stage.name.removeprefix("eval "), config=to_plain(config), seeds={"run": config.run.seed}, data=files,
        decode={**settings, "tasks": result["tasks"], "counts": result["counts"]},
        limited=f"first {limit} items of each task" if limit else "",
    )  # fmt: skip
    if "harness" in result:
        card["versions"]["lm_eval"] = result["harness"]
    write_card(out / CARD, card)
    stage.finish({"items": len(result["items"])}, seconds)
    log.info("eval: %d items in %.1f s -> %s", len(result["items"]), seconds, out / CARD)
    return card_table(out)


def card_table(out: Path) -> str:
    """The card of a result folder as a table."""
    from ttt.eval.cards import read_card
    from ttt.eval.report_tables import Row, text_table

    card = read_card(out / CARD)
    rows = []
    for key, entry in card["metrics"].items():
        task, _, name = key.rpartition("/")
        rows.append(Row(task, name, entry.get("unit", "score"), {" ": entry}, entry.get("higher_is_better")))
    notes = [f"{name}: {count}" for name, count in card["decode"]["counts"].items() if count and "cut" in name]
    return text_table(rows, f"{out}", notes, card["limited"])


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """MMLU-Redux's answers with the columns of its published evaluation script, and the subject."""
    from ttt.textbench.mmlu_redux import LETTERS

    with file_aside(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["subject", "question", "choices", "ground_truth", "ground_truth_idx", "predicted_answer", "correct",
                        "corruptions"])  # fmt: skip
        for r in records:
            right = [LETTERS[i] for i in r["answers"]]
            predicted = "" if r["predicted"] is None else LETTERS[r["predicted"]]
            table.writerow([r["task"], r["question"], r["choices"], "|".join(right), "|".join(map(str, r["answers"])), predicted,
                            bool(r["statistics"]["acc"][0]), r["error_type"]])  # fmt: skip
