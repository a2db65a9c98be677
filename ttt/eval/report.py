"""One report of a run from its result cards, floor and training log: Markdown, JSON, PNG; the table is printed last.

``report.json``: the flat keys of the cards and of the floor ("asr/wer", "unseen_voice/asr/wer", "codec/floor_wer", ..),
each {value, low, high, n, metric_id, unit}, and ``about``: what the numbers rest on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import DataError
from ttt.eval import plots
from ttt.eval.cards import key_prefix, read_card
from ttt.eval.measure_floor import read_floor
from ttt.eval.report_page import markdown_page
from ttt.eval.report_tables import Row, text_table
from ttt.io.atomic import write_json, write_text
from ttt.io.metrics_log import read_metrics
from ttt.io.outputs import check_file, check_folder, holds_only, is_our_json

FORMAT = "ttt-report-1"
REPORT_FILES = (r"(loss|metrics|mask)\.png", r"table\.txt")  # patterns of all names in ``report/``
_FLOOR_NAMES = {
    "judge/wer": "judge, original speech, all",
    "judge/wer_out": "judge, original, output voice",
    "codec/floor_wer": "codec floor, output voice",
    "codec/floor_wer_all": "codec floor, all voices",
}


def build_report(
    run: str | Path,
    *,
    cards: Sequence[str | Path] = (),
    floor: str | Path | None = None,
    log: str | Path | None = None,
    mask: tuple[np.ndarray, np.ndarray] | None = None,
    title: str = "",
    out: str | Path | None = None,
) -> str:
    """Write ``report.md``, ``report.json`` and ``report/*.png`` to ``out`` (default: the run); return the table.

    Where they are not given they are searched: ``cards`` as ``run/eval/**/card.json``, ``floor`` as ``run/eval/floor.json`` or
    ``run/floor.json``, ``log`` as ``run/**/metrics.jsonl``.  ``mask``: bool [T, T] and kinds u8 [T] for the picture.
    The caller prints the returned text, last.
    """
    run = Path(run)
    out = Path(out) if out is not None else run
    paths = [Path(c) for c in cards] or sorted(run.glob("eval/**/card.json"))
    if not paths:
        raise DataError(f"{run}: no result card under eval/; run 'ttt score' first")
    read = [(path, read_card(path)) for path in paths]
    floor_path = (
        Path(floor)
        if floor is not None
        else next((p for p in (run / "eval/floor.json", run / "floor.json") if p.is_file()), None)
    )
    measured = read_floor(floor_path) if floor_path is not None else None
    _check_floor(read, measured, floor_path)
    log_path = (
        Path(log) if log is not None else min(run.glob("**/metrics.jsonl"), key=lambda p: len(p.parts), default=None)
    )
    if not is_our_json(out / "report.json", about="{'format': 'ttt-report-"):
        for path in (out / "report.json", out / "report.md", out / "report"):
            if path.is_dir():
                check_folder(path, is_ours=holds_only(path, REPORT_FILES))
            else:
                check_file(path, mend="move it away")
    records = read_metrics(log_path) if log_path is not None else []
    values = _values(read, measured)
    title = title or f"{run.resolve().parent.name}/{run.resolve().name}"
    alert = "; ".join(dict.fromkeys(c["limited"] for _, c in read if c["limited"]))
    pictures = _pictures(out / "report", records, values, mask, title)
    tables = [(card, _rows(card, measured)) for _, card in read]
    shared = _notes(measured, records, any("/floor_" in key for _, card in read for key in card["metrics"]))
    notes = [[*_basis(card), *shared, *_cost(card)] for card, _ in tables]
    text = "\n".join(
        text_table(rows, _heading(title, card), remarks, card["limited"])
        for (card, rows), remarks in zip(tables, notes)
    )
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "format": FORMAT, "title": title, "limited": alert, "cards": [os.path.relpath(p, out) for p in paths],
        "judge": read[0][1]["judge"], "codec": read[0][1]["codec"], "normalizer": read[0][1]["normalizer"],
        "floor": os.path.relpath(floor_path, out) if floor_path is not None else None,
    }  # fmt: skip
    write_json(out / "report.json", {**values, "about": about})
    page = markdown_page(title, alert, read, tables, measured, pictures, out, notes)
    write_text(out / "report.md", page)
    (out / "report").mkdir(exist_ok=True)
    (out / "report" / "table.txt").write_text(text + "\n", encoding="utf-8")
    return text


def mask_of(rule: Any, stream: Any, pad_id: int, mask_id: int, longest: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Bool [T, T] and kinds u8 [T] of one token stream under a mask rule, its first ``longest`` positions."""
    from ttt.data.batches.rows import collate
    from ttt.masks.materialize import dense

    batch = collate([[stream]], len(stream), pad_id, mask_id)
    shown = min(len(stream), longest)
    return dense(rule, batch.layout())[0, :shown, :shown].cpu().numpy(), np.asarray(stream.kind[:shown])


def _check_floor(
    read: Sequence[tuple[Path, Mapping[str, Any]]], measured: Mapping[str, Any] | None, path: Path | None
) -> None:
    for card_path, card in read:
        for name in ("judge", "codec"):
            if measured is not None and card[name] and card[name] != measured[name]:
                raise DataError(
                    f"{path}: measured with {name} {measured[name]!r}, {card_path} with {card[name]!r}; "
                    "run 'ttt floor' again"
                )


def _values(read: Sequence[tuple[Path, Mapping[str, Any]]], measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """Flat keys; a card's name stands before its own."""
    values: dict[str, Any] = {}
    owner: dict[str, Path] = {}
    for path, card in read:
        for key, entry in card["metrics"].items():
            key = f"{card['name']}/{key}" if card["name"] else key
            if key in values:
                raise DataError(f"{path}: {key!r} is also in {owner[key]}; give the cards different names")
            values[key], owner[key] = entry, path
    for key, entry in (measured or {}).get("values", {}).items():
        assert measured is not None
        values[key] = {**entry, "metric_id": measured["metric_id"], "unit": "rate", "higher_is_better": False}
    return values


def _rows(card: Mapping[str, Any], measured: Mapping[str, Any] | None) -> list[Row]:
    """Metrics of one card by task, then the floors; metrics that apply to no item are left out."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    about: dict[tuple[str, str], Mapping[str, Any]] = {}
    for key, entry in card["metrics"].items():
        prefix = key_prefix(str(entry.get("split", "")))
        row = (str(entry.get("task", "")), key.rsplit("/", 1)[-1])
        cells.setdefault(row, {})[prefix] = entry
        about[row] = entry
    rows = []
    for (task, name), columns in cells.items():
        if any(e["n"] for e in columns.values()):
            entry = about[task, name]
            shown = str(entry.get("metric_id", name)).replace(
                str(entry.get("metric_id", name)).partition("[")[0], name, 1
            )
            rows.append(Row(task, shown, str(entry.get("unit", "score")), columns, entry.get("higher_is_better")))
    rows.sort(key=lambda row: list(dict.fromkeys(t for t, _ in cells)).index(row.section))
    for key, label in _FLOOR_NAMES.items():
        columns = (
            {p: measured["values"][p + key] for p in ("", "unseen_voice/") if p + key in measured["values"]}
            if measured
            else {}
        )
        if columns:
            rows.append(Row("error of the judge itself (WER)", label, "rate", columns, False))
    return rows


def _heading(title: str, card: Mapping[str, Any]) -> str:
    return f"{title}: {card['name']}" if card["name"] else title


def _basis(card: Mapping[str, Any]) -> list[str]:
    used = [
        f"normaliser {card['normalizer']}",
        f"judge {card['judge']}" if card["judge"] else "",
        f"codec {card['codec']}" if card["codec"] else "",
    ]
    return ["Rests on: " + ", ".join(part for part in used if part) + "."]


def _notes(measured: Mapping[str, Any] | None, records: Sequence[Mapping[str, Any]], scored: bool = False) -> list[str]:
    """``scored``: the cards hold floors of their own (``eval.floor``)."""
    notes = []
    if measured is None:
        if not scored:
            notes.append("No floor: judged numbers mean little without the judge's own error; run 'ttt floor'.")
    elif measured.get("limited"):
        notes.append(f"The floor is limited: {measured['limited']}.")
    if records:
        notes.append("Training: " + _training(records) + ".")
    return notes


def _training(records: Sequence[Mapping[str, Any]]) -> str:
    """Steps, wall time and the last losses."""
    last = {key: value for record in records for key, value in record.items() if isinstance(value, (int, float))}
    spent = f" in {last['train/seconds']:.0f} s" if "train/seconds" in last else ""
    losses = [f"{key} {last[key]:.3f}" for key in sorted(plots.curves(records)) if key in last]
    return ", ".join([f"{last.get('step', 0):.0f} steps{spent}", *losses])


def _cost(card: Mapping[str, Any]) -> list[str]:
    timing, hardware = card["timing"], card["hardware"]
    spent = [
        f"{name} {timing[key]:.1f} s"
        for key, name in (("decode_s", "decoding"), ("codec_s", "codec"), ("judge_s", "judge"))
        if timing.get(key)
    ]
    where = [str(hardware.get(k)) for k in ("gpu", "processor") if hardware.get(k)]
    threads = f"{hardware.get('threads', '?')} of {hardware.get('cores', '?')} cores"
    on = f"{where[0] if where else 'unknown'}, {threads}"
    return [f"Time for {timing.get('items', '?')} items: {', '.join(spent) or 'not measured'} ({on})."]


def _pictures(
    folder: Path, records: Sequence[Mapping[str, Any]], values: Mapping[str, Mapping[str, Any]],
    mask: tuple[np.ndarray, np.ndarray] | None, title: str,
) -> list[tuple[str, Path]]:  # fmt: skip
    made = []
    if records and plots.loss_curves(records, folder / "loss.png"):
        made.append(("Loss by modality", folder / "loss.png"))
    rates = {k: v for k, v in values.items() if v.get("unit") == "rate"}
    if rates and plots.metric_bars(rates, folder / "metrics.png", title):
        made.append(("Rates with 95 % intervals", folder / "metrics.png"))
    if mask is not None and plots.mask_picture(mask[0], mask[1], folder / "mask.png"):
        made.append(("Attention mask of one example", folder / "mask.png"))
    return made
