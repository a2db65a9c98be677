"""A result card's experiment once more, in a fresh folder, compared with the card."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.config.diff import Change, differences
from ttt.config.load import build_config
from ttt.errors import ConfigError, DataError, TttError
from ttt.eval import cards
from ttt.lab.cells import Cell, inputs_of, refuse_changed, refuse_inside, remove_results
from ttt.lab.plan import REQUIRED
from ttt.lab.run_table import sigterm_as_interrupt
from ttt.lab.runner import Runner, Subprocesses, run_cells, visible_gpus
from ttt.lab.statistics import repeated_value

log = logging.getLogger(__name__)


def repeat_card(
    path: str | Path, *, out: str | Path = "", plugins: Sequence[str] = (), dry_run: bool = False, overwrite: bool = False,
    runner: Runner | None = None,
) -> tuple[str, bool]:  # fmt: skip
    """(Text to print, whether every repeated value lies in the card's interval).

    ``out``: default ``exp/repro/CARD``; ``dry_run``: compare data, versions and code only; ``runner``: in place of
    `Subprocesses`.
    """
    path = Path(path)
    card = cards.read_card(path)
    out = Path(out or Path("exp/repro") / f"{_table_folder(card)}{path.stem}")
    cell = _cell_of(card, path, out, plugins)
    _refuse_other_data(card, cell, path)
    changed = _changed_software(card)
    if dry_run:
        return "\n".join([f"{path}: {' -> '.join(cell.verbs())} in {out}", *(f"  differs: {x}" for x in changed)]), True
    if cell.card.is_file() and not overwrite:
        raise ConfigError(f"{out}: holds a finished run; give --overwrite to run it again, or another --out")
    if overwrite and (cell.folder / "cell.json").is_file():  # only what an earlier repetition made
        refuse_inside(path, cell.folder)
        remove_results(cell.folder)
    refuse_changed([cell])
    with sigterm_as_interrupt():
        (outcome,) = run_cells([cell], 1, runner or Subprocesses(1, visible_gpus(cell.config.run.device)[:1]))
    if outcome.error:
        return f"{path}: not repeated: {outcome.error}", False
    ok, lines = compare(card, cards.read_card(cell.card))
    return "\n".join([f"{path} against {cell.card}", *lines]), ok


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Every metric of a card beside the repeated one: (all lie in the card's intervals, lines to print)."""
    from ttt.eval.report_tables import interval, number

    lines, kept = [], 0
    ok = True
    width = max((len(key) for key in old["metrics"]), default=0)
    for key, entry in old["metrics"].items():
        again = new["metrics"].get(key)
        fine, words = repeated_value(entry, again, key.rpartition("/")[2])
        ok &= fine
        kept += fine
        unit = str(entry.get("unit", "score"))
        values = f"{number(entry['value'], unit):>8} {interval(entry, unit)}  again {number((again or {}).get('value'), unit):>8}"
        lines.append(f"  {key:{width}} {values}  {words}")
    return ok, [*lines, f"{kept} of {len(lines)} values are inside the card's 95 % intervals: {'ok' if ok else 'NOT REPRODUCED'}"]


def _table_folder(card: Mapping[str, Any]) -> str:
    return f"{card['table']}/" if re.fullmatch(r"[\w.-]+", str(card.get("table", ""))) else ""


def _cell_of(card: Mapping[str, Any], path: Path, out: Path, plugins: Sequence[str]) -> Cell:
    """The card's experiment in a folder of its own; rows that only decode are trained again too."""
    from ttt.registry.plugins import load_plugins

    if not card["config"]:
        raise DataError(f"{path}: config is empty; this card cannot be repeated")
    plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in card["config"].items()}
    try:
        plain["run"] |= {"dir": str(out), "overwrite": False}
        checkpoint = "" if "row" in card else plain["eval"].get("checkpoint", "")
        plain["eval"] |= {"out": str(out / "eval"), "checkpoint": checkpoint}
    except KeyError as error:
        raise DataError(f"{path}: config lacks the section {error}; this card cannot be repeated") from error
    listed = plain.get("plugins") or []
    if not isinstance(listed, list) or not all(isinstance(item, str) and item for item in listed):
        raise DataError(f"{path}: config.plugins: expected a list of files or modules, got {listed!r}")
    load_plugins(listed, named_by=f"{path}: config", asked=plugins)
    load_plugins(plugins)
    try:
        config = build_config(plain, REQUIRED)
        inputs = inputs_of(config, {}, decode_only=bool(checkpoint))
    except TttError as error:
        raise type(error)(f"{path}: {error}") from error
    seed = int(config.run.seed)
    return Cell(str(card.get("row", path.stem)), str(card.get("label", "")), seed, out, out / "card.json", config, inputs)


def _refuse_other_data(card: Mapping[str, Any], cell: Cell, path: Path) -> None:
    """Raise `DataError` for other data than the card's: the numbers could not be compared."""
    digests = {key: about["digest"] for key, about in card.get("inputs", {}).items()}
    if not digests:  # a card of 'ttt score': digests by file name
        digests = {
            key: card["data"][name] for key, about in cell.inputs.items()
            if key.startswith("eval.") and (name := Path(about["path"]).name) in card["data"]
        }  # fmt: skip
    for key, digest in digests.items():
        now = cell.inputs.get(key, {"path": "", "digest": "(absent)"})
        if now["digest"] != digest:
            raise DataError(
                f"{path}: {key}: {now['path']} has digest {now['digest']}, the card was made with {digest}; bring that data"
            )


def _changed_software(card: Mapping[str, Any]) -> list[Change]:
    """Versions and code that differ from the card's.  Numbers may then differ too: a warning, not an error."""
    changed = [*differences(card["versions"], cards.versions(), "versions"), *differences(card["git"], cards.git_state(), "git")]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        log.warning("repro: %s%s: numbers may differ from the card's", changed[0], more)
    return changed
