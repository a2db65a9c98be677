"""Result cards: metrics with everything that produced them (configuration, data, versions, hardware, command).

``card.json``: {"format", "name", "metrics": {"asr/wer": {value, low, high, n, metric_id, unit, ...}}, "by_kind",
"counts", "limited", "judge", "codec", "normalizer", "config", "seeds", "versions", "git", "data", "decode",
"hardware", "timing", "command", "time"}.  A value that is not defined (nothing to divide by) is null.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.config.record import command_line
from ttt.errors import DataError
from ttt.io import provenance
from ttt.io.atomic import write_text
from ttt.io.digests import sha256_digest
from ttt.io.json_input import read_json
from ttt.io.json_output import plain
from ttt.io.provenance import cpu_model, package_versions
from ttt.types import Value

FORMAT = "ttt-card-1"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": str, "name": str, "metrics": dict, "by_kind": dict, "counts": dict,
    "limited": str, "judge": str, "codec": str, "normalizer": str,
    "config": dict, "seeds": dict, "versions": dict, "git": dict, "data": dict, "decode": dict, "hardware": dict,
    "timing": dict, "command": str, "time": str,
}  # fmt: skip
PACKAGES = ("torch", "transformers", "numpy", "torchaudio", "jiwer", "sacrebleu")


def key_prefix(split: str) -> str:
    """What the metric keys of a split begin with: nothing for ``test``.  Keys are an interface: ``unseen_voice/asr/wer``.

    >>> [key_prefix(s) for s in ("test", "test_unseen_voice", "dev", "")]
    ['', 'unseen_voice/', 'dev/', '']
    """
    return "" if split in ("test", "") else split.removeprefix("test_") + "/"


def make_card(
    result: Mapping[str, Any],
    *,
    name: str = "",
    config: Mapping[str, Any] | None = None,
    seeds: Mapping[str, int] | None = None,
    data: Sequence[Path] = (),
    decode: Mapping[str, Any] | None = None,
    command: Sequence[str] | str = (),
    limited: str = "",
) -> dict[str, Any]:
    """A card from what `ttt.eval.evaluate.evaluate` returned (its ``result``).

    ``name`` tells systems of one run apart and becomes the prefix of its keys in a report; ``config`` is the resolved
    configuration; ``data`` the files that were read (their digests are stored); ``limited`` says in words why the
    numbers are not of the full job; ``eval.note`` and ``eval.limit`` of the configuration are added.
    """
    command = command or command_line()
    eval_section = dict((config or {}).get("eval") or {})
    reasons = [part for part in (limited, result.get("limited", ""), eval_section.get("note", "")) if part]
    if eval_section.get("limit") and not limited and not result.get("limited"):
        reasons.append(f"first {eval_section['limit']} items of each file")
    return {
        "format": FORMAT,
        "name": name,
        "metrics": dict(result["metrics"]),
        "by_kind": dict(result.get("by_kind", {})),
        "counts": dict(result.get("counts", {})),
        "limited": "; ".join(dict.fromkeys(reasons)),
        "judge": result.get("judge", ""),
        "codec": result.get("codec", ""),
        "normalizer": result.get("normalizer", ""),
        "config": dict(config or {}),
        "seeds": dict(seeds or {}),
        "versions": versions(),
        "git": git_state(),
        "data": _digests([Path(path) for path in data]),
        "decode": dict(decode or {}),
        "hardware": hardware(),
        "timing": dict(result.get("timing", {})),
        "command": command if isinstance(command, str) else " ".join(command),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_card(path: str | Path, card: Mapping[str, Any]) -> None:
    """Check and write, complete or not at all."""
    path = Path(path)
    _check(card, str(path))
    write_text(path, card_text(card))


def card_text(card: Mapping[str, Any]) -> str:
    """JSON with one line per field, and one line per metric or section in fields that hold such.

    >>> print(card_text({"format": "ttt-card-1", "metrics": {"asr/wer": {"value": 0.5, "n": 2}}, "data": {}}))
    {
    "format": "ttt-card-1",
    "metrics": {
     "asr/wer": {"value": 0.5, "n": 2}
    },
    "data": {}
    }
    <BLANKLINE>
    """

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)

    fields = []
    for key, value in plain(card).items():
        if isinstance(value, dict) and any(isinstance(entry, dict) for entry in value.values()):
            entries = ",\n".join(f" {line(name)}: {line(entry)}" for name, entry in value.items())
            fields.append(f"{line(key)}: {{\n{entries}\n}}")
        else:
            fields.append(f"{line(key)}: {line(value)}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def read_card(path: str | Path) -> dict[str, Any]:
    """Read and check; every refusal is a `DataError` naming the file and the field."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such result card; run 'ttt score' first")
    card = read_json(path, "run 'ttt score' again", kind=None)
    _check(card, str(path))
    return card


def value_to_json(value: Value) -> dict[str, Any]:
    """``{value, low, high, n}``."""
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    """By file name, with the folder's name where two files share one."""
    names = [path.name for path in paths]
    return {p.name if names.count(p.name) == 1 else f"{p.parent.name}/{p.name}": sha256_digest(p) for p in paths}


def versions() -> dict[str, str]:
    """Python, ttt and the packages that numbers depend on; "-" for those that are not installed."""
    import ttt

    packages = {name: version or "-" for name, version in package_versions(PACKAGES).items()}
    return {"python": platform.python_version(), "ttt": ttt.__version__, **packages}


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and how many tracked files were changed; {} outside a git checkout."""
    state = provenance.git_state()
    return {} if state is None else {"commit": state.commit, "changed_files": state.changed_files}


def hardware() -> dict[str, Any]:
    """Processor, cores, threads and, where there is one, the GPU; no machine names."""
    about: dict[str, Any] = {"processor": cpu_model(), "cores": os.cpu_count() or 0, "system": platform.system()}
    torch = sys.modules.get("torch")
    if torch is not None:
        about["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            about["gpu"] = torch.cuda.get_device_name(0)
    return about


def _check(card: Any, place: str) -> None:
    if not isinstance(card, Mapping):
        raise DataError(f"{place}: expected a result card (an object), got {type(card).__name__}")
    if card.get("format") != FORMAT:
        raise DataError(f"{place}: format is {card.get('format')!r}, expected {FORMAT!r}; run 'ttt score' again")
    for name, kind in FIELDS.items():
        if name not in card:
            raise DataError(f"{place}: result card lacks {name!r}; run 'ttt score' again")
        if not isinstance(card[name], kind):
            raise DataError(f"{place}: {name!r} must be {kind}, got {type(card[name]).__name__}")
    for key, entry in card["metrics"].items():
        check_entry(entry, f"{place}: metrics[{key!r}]")


def check_entry(entry: Any, place: str) -> None:
    """A metric's entry: value, low, high (numbers or null) and n (a whole number)."""
    if not isinstance(entry, Mapping) or not {"value", "low", "high", "n"} <= set(entry):
        raise DataError(
            f"{place}: expected value, low, high and n, got {sorted(entry) if isinstance(entry, Mapping) else entry!r}"
        )
    for name in ("value", "low", "high"):
        if isinstance(entry[name], bool) or not isinstance(entry[name], (int, float, type(None))):
            raise DataError(f"{place}: {name} must be a number or null, got {entry[name]!r}")
    if isinstance(entry["n"], bool) or not isinstance(entry["n"], int) or entry["n"] < 0:
        raise DataError(f"{place}: n must be a whole number >= 0, got {entry['n']!r}")
