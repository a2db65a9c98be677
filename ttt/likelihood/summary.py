"""Likelihoods of many examples as numbers with intervals, as lines of a file, as a table for a terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ttt.eval.intervals import bootstrap
from ttt.likelihood.items import ItemLikelihood
from ttt.likelihood.scoring import MODALITIES
from ttt.types import Value


def summarise(items: Sequence[ItemLikelihood], resamples: int = 1000, seed: int = 1) -> dict[str, dict[str, Any]]:
    """``{"asr/text/nll_per_token": {value, low, high, n, bound, se_draws, tokens}, ...}`` in nats.

    Per token, per word (text), per span (audio) and per example; the interval resamples items, ``se_draws`` is the
    standard error that the random masks leave (null: a single independent group of copies shows none).
    """
    found: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(i.group for i in items):
        for modality in MODALITIES:
            rows = [(i, i.by[modality]) for i in items if i.group == group and modality in i.by]
            if not rows:
                continue
            units = {"token": [e.tokens for _, e in rows], "example": [1] * len(rows)}
            if modality == "text":
                units["word"] = [i.words for i, _ in rows]
            else:
                units["span"] = [e.spans for _, e in rows]
            noise = math.sqrt(sum(e.variance for _, e in rows))
            for unit, counts in units.items():
                if not sum(counts):
                    continue
                statistics = np.array([[e.nats, c] for (_, e), c in zip(rows, counts, strict=True)])
                value = bootstrap(statistics, lambda s: s[0] / s[1] if s[1] else float("nan"), resamples, seed)
                found[f"{group}/{modality}/nll_per_{unit}"] = {
                    **_finite(value), "bound": not all(e.exact for _, e in rows), f"{unit}s": int(sum(counts)),
                    "se_draws": noise / sum(counts) if math.isfinite(noise) else None, "unit": f"nats/{unit}",
                }  # fmt: skip
    return found


def _finite(value: Value) -> dict[str, Any]:
    return {k: v if math.isfinite(v) else None for k, v in dataclasses.asdict(value).items()}


def item_record(item: ItemLikelihood) -> dict[str, Any]:
    """One line of ``likelihood.items.jsonl``."""
    by = {
        name: {
            "nats": e.nats, "tokens": e.tokens, "spans": e.spans, "bound": not e.exact,
            "se_draws": math.sqrt(e.variance) if math.isfinite(e.variance) else None,
        }
        for name, e in item.by.items()
    }  # fmt: skip
    return {"uid": item.uid, "group": item.group, "words": item.words, **by}


def table(values: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary for a terminal, one line per group and modality."""
    header = (
        "group",
        "of",
        "nats/token",
        "95 % over items",
        "± draws",
        "nats/word | span",
        "nats/example",
        "tokens",
        "items",
    )
    lines = [header]
    for key in values:
        stem, _, unit = key.rpartition("_per_")
        if unit != "token":
            continue
        v, e = values[key], values[f"{stem}_per_example"]
        other = values.get(f"{stem}_per_word") or values.get(f"{stem}_per_span")
        group, _, modality = stem.removesuffix("/nll").rpartition("/")
        # <=: a bound
        sign = "≤ " if v["bound"] else ""
        lines.append((
            group, modality, f"{sign}{v['value']:.4f}", f"{_number(v['low'])} to {_number(v['high'])}",
            "0" if not v["se_draws"] and v["se_draws"] is not None else _number(v["se_draws"]),
            f"{sign}{other['value']:.3f}" if other else "-", f"{sign}{e['value']:.3f}", str(v["tokens"]), str(v["n"]),
        ))  # fmt: skip
    widths = [max(len(line[c]) for line in lines) for c in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}"
