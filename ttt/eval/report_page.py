"""The report as a Markdown page: tables, plots, items, and what is needed to reproduce the numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.eval.cards import key_prefix
from ttt.eval.report_tables import Row, markdown_table, number
from ttt.io.json_input import read_json_lines
from ttt.io.json_output import plain

_MELS_SHOWN = 2  # pictures per task and split inside the report; the rest is linked


def markdown_page(
    title: str,
    alert: str,
    read: Sequence[tuple[Path, Mapping[str, Any]]],
    tables: Sequence[tuple[Mapping[str, Any], Sequence[Row]]],
    measured: Mapping[str, Any] | None,
    pictures: Sequence[tuple[str, Path]],
    out: Path,
    notes: Sequence[Sequence[str]],
) -> str:
    """The whole page.  ``read``: cards with their paths; ``tables``: each with its rows; ``notes``: remarks on each."""
    page = [f"# Report: {title}", ""]
    if alert:
        page += [f"> **Not a full run:** {alert}", ""]
    page += [
        "Every number is a micro average with its 95 % percentile-bootstrap interval over items; rates in per cent.",
        "",
    ]
    for (card, rows), remarks in zip(tables, notes):
        if len(tables) > 1:
            page += [f"## {card['name'] or 'results'}", ""]
        page += [markdown_table(rows), "", *(f"- {n}" for n in remarks), ""]
    for caption, path in pictures:
        page += [f"## {caption}", "", f"![{caption}]({_link(path, out)})", ""]
    for path, card in read:
        page += _kinds(card) + _samples(path, out)
    if measured is not None:
        page += _voices(measured)
    for _, card in read:
        page += _provenance(card)
    return "\n".join(page).rstrip() + "\n"


def _kinds(card: Mapping[str, Any]) -> list[str]:
    by_kind = {k: v for k, v in dict(card.get("by_kind", {})).items() if v}
    if not by_kind:
        return []
    kinds = sorted({kind for v in by_kind.values() for kind in v})
    units = {key: card["metrics"].get(key, {}).get("unit", "score") for key in by_kind}
    rates = [key for key in by_kind if units[key] == "rate"]
    page = [
        "## By kind of item",
        "",
        "| metric | " + " | ".join(k or "(none)" for k in kinds) + " |",
        "|---|" + "---|" * len(kinds),
    ]
    for key in rates:
        cells = [
            f"{number(by_kind[key][k]['value'], 'rate')} ({by_kind[key][k]['n']})" if k in by_kind[key] else "" for k in kinds
        ]
        page.append(f"| `{key}` | " + " | ".join(cells) + " |")
    return [*page, ""]


def _samples(card_path: Path, out: Path) -> list[str]:
    """The first items of each group: reference, written text, what the judge heard."""
    path = card_path.parent / "items.jsonl"
    if not path.is_file():
        return []
    groups: dict[str, list[dict[str, Any]]] = {}
    for _, item in read_json_lines(path, "run 'ttt score' again"):
        groups.setdefault(key_prefix(item["split"]) + item["task"], []).append(item)
    everything = f"[{path.name}]({_link(path, out)})"
    page = ["## Samples", "", f"The first spoken answers of each task, not selected; all items: {everything}.", ""]
    for group, items in groups.items():
        shown = [i for i in items if i.get("wav")][:10] or items[:10]
        page += [f"### {group}", "", "| item | reference | written | heard | sound |", "|---|---|---|---|---|"]
        for item in shown:
            sound = " ".join(
                f"[{kind}]({_link(card_path.parent / item[at], out)})"
                for kind, at in (("wav", "wav"), ("mel", "png"))
                if item.get(at)
            )
            cells = [item["uid"], item["text_ref"], item["text"], item["judged_text"], sound]
            page.append("| " + " | ".join(_cell(c) for c in cells) + " |")
        page += [""]
        for item in [i for i in shown if i.get("png")][:_MELS_SHOWN]:
            page += [f"![mel of {_cell(item['uid'])}]({_link(card_path.parent / item['png'], out)})", ""]
    return page


def _voices(measured: Mapping[str, Any]) -> list[str]:
    page = ["## Floor by voice", "", "Judge's WER on original speech and on the same speech through the codec.", ""]
    page += ["| split | voice | original | through the codec |", "|---|---|---|---|"]
    for split, voices in measured.get("voices", {}).items():
        for voice, rates in voices.items():
            cells = [f"{number(rates[s]['value'], 'rate')} n={rates[s]['n']}" for s in ("original", "resynthesized")]
            page.append(f"| {split} | {voice} | " + " | ".join(cells) + " |")
    return [*page, ""]


def _provenance(card: Mapping[str, Any]) -> list[str]:
    """What is needed to reproduce the numbers."""
    git = card["git"]
    changed = f" with changes in {git['changed_files']} files" if git.get("changed_files") else ""
    state = f"{git['commit'][:12]}{changed}" if git else "not a git checkout"
    lines = {"command": f"`{card['command']}`", "time": card["time"], "code": state}
    for name in ("seeds", "versions", "data", "decode", "hardware", "timing"):
        lines[name] = _pairs(card[name])
    page = [f"## How these numbers were made{': ' + card['name'] if card['name'] else ''}", ""]
    page += [f"- {name}: {value}" for name, value in lines.items() if value]
    counts = card.get("counts", {})
    if counts:
        page += [
            "",
            "| answers | items | stopped | without text | without speech | unasked speech |",
            "|---|---|---|---|---|---|",
        ]
        for k, c in counts.items():
            cells = [k, c["items"], _pairs(c["stopped"]), c["no_text"], c["no_speech"], c["unasked_speech"]]
            page.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return [*page, ""]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {json.dumps(plain(v)) if isinstance(v, Mapping) else v}" for k, v in values.items())


def _link(path: Path, out: Path) -> str:
    return os.path.relpath(path, out).replace(os.sep, "/").replace(" ", "%20")


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
