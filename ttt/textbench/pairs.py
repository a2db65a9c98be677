"""Minimal pairs by likelihood: how often is the right recording (or text) likelier than the wrong one?

sWUGGY and sBLIMP (ZeroSpeech 2021, arXiv 2011.11588), StoryCloze (arXiv 2305.13009), SALMon (arXiv 2409.07437).  -log p is exact
for models that write from left to right, and a bound from masked copies for those that fill in (`ttt.likelihood`).  A tie
counts one half, as in the published programs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ttt.errors import ConfigError, DataError
from ttt.eval.intervals import bootstrap
from ttt.likelihood import Draws, likelihoods
from ttt.registry import checked
from ttt.stage import Stage
from ttt.textbench.benchmarks import Options, open_target
from ttt.textbench.opening import load_model
from ttt.textbench.pair_sets import MinimalPair, Side, read_pairs
from ttt.textbench.results import CARD, MARKER, QUESTIONS, card_table, write_results
from ttt.types import Example, Span, Turn

if TYPE_CHECKING:
    from ttt.config.schema import RunConfig
    from ttt.interfaces import LanguageModel, Objective

ENCODED_TOGETHER = 16


@checked
@dataclass(frozen=True)
class PairScore:
    """How a side is scored.  ``score``: -log p per token, or total.  ``form``: a recording stands alone (``document``, as in
    pre-training), or as an assistant's answer to an empty question (``answer``)."""

    score: Literal["token", "total"] = "token"
    form: Literal["document", "answer"] = "document"


def run_pairs(options: Options, data: str, how: PairScore, draws: Draws) -> str:
    """Score every pair of ``data``; returns the table, or with ``dry_run`` the number of pairs in each group."""
    target = open_target(options, "pairs")
    config, out = target.config, target.out
    pairs, files = read_pairs(data)
    if not pairs:
        raise DataError(f"{data}: holds no pair; copy it again")
    if options.limit:
        seen: dict[str, int] = defaultdict(int)
        kept = []
        for pair in pairs:
            seen[pair.group] += 1
            kept += [pair] * (seen[pair.group] <= options.limit)
        pairs = kept
    sounds = any(not isinstance(side, np.ndarray | str) for p in pairs for side in (p.positive, p.negative))
    if sounds and config.codec is None:
        raise ConfigError("codec: none is configured, and recordings are encoded by the run's; name it, as in codec.name=mimi")
    counts = {group: sum(p.group == group for p in pairs) for group in dict.fromkeys(p.group for p in pairs)}
    if options.dry_run:
        return "\n".join(f"{group}: {n} pairs" for group, n in counts.items())
    settings = {
        "pairs": counts, "limit": options.limit, **asdict(how), "draws": asdict(draws),
        **{k: v for k, v in target.facts().items() if k in ("objective", "mask", "dtype", "seed", "batch_tokens")},
    }  # fmt: skip
    stage = Stage("eval pairs", out / MARKER, [target.folder, *files], [out / CARD, out / QUESTIONS], settings)
    if stage.is_done(options.overwrite):
        return card_table(out)
    started = time.perf_counter()
    model, _ = load_model(target.folder, config, "text")
    records = score_pairs(
        model, config.objective, pairs, _encoder(config, model, sounds), how, draws, target.settings.seed,
        target.settings.batch_tokens,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    result = {
        "metrics": summarize(records, config.eval.bootstrap, config.run.seed), "items": records, "tasks": list(counts),
        "counts": {"items": len(records), "pairs": len(pairs)}, "timing": {"pairs_s": seconds},
    }  # fmt: skip
    return write_results(stage, config, out, result, settings, files, options.limit, seconds)


Encode = Callable[[Sequence[Side]], list[Span]]


def _encoder(config: RunConfig, model: LanguageModel, sounds: bool) -> Encode:
    """Sides of pairs -> spans; recordings by the run's codec, some at a time."""
    from ttt.api import open_codec
    from ttt.audio.signal import resample
    from ttt.audio.wav import read

    codec = open_codec(config, model.tokenizer) if sounds else None

    def encode(sides: Sequence[Side]) -> list[Span]:
        heard = [i for i, side in enumerate(sides) if not isinstance(side, np.ndarray | str)]
        found: dict[int, np.ndarray] = {i: side for i, side in enumerate(sides) if isinstance(side, np.ndarray)}
        for at in range(0, len(heard), ENCODED_TOGETHER):
            some = heard[at : at + ENCODED_TOGETHER]
            assert codec is not None
            waves = [resample(read(sides[i], mono=True), codec.encode_rate_hz) for i in some]  # type: ignore[arg-type]
            found |= {i: codes.ids for i, codes in zip(some, codec.encode(waves), strict=True)}
        # open: the end of a recording is no part of what is compared
        codes = {i: Span("audio", codes=found[i], style="open_last") for i in found}
        return [codes.get(i) or Span("text", str(side)) for i, side in enumerate(sides)]

    return encode


def score_pairs(
    model: LanguageModel, objective: Objective, pairs: Sequence[MinimalPair], encode: Encode, how: PairScore, draws: Draws,
    seed: int, budget: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """One record per item: accuracy over its pairs (voices), and each pair's -log p.  ``budget``: positions of a network call."""
    spans = encode([side for p in pairs for side in (p.positive, p.negative)])
    examples = [_example(span, f"{pairs[i // 2].group}/{pairs[i // 2].id}", how.form) for i, span in enumerate(spans)]
    found = likelihoods(model, objective, examples, draws, seed=seed, budget=budget)
    records: dict[tuple[str, str], dict[str, Any]] = {}
    for number, pair in enumerate(pairs):
        sides = [_sums(found[2 * number + side]) for side in range(2)]
        right, wrong = (s["nats"] / (max(s["tokens"], 1) if how.score == "token" else 1) for s in sides)
        won = 1.0 if right < wrong else 0.5 if right == wrong else 0.0
        record = records.setdefault((pair.group, pair.id), {
            "uid": f"{pair.group}/{pair.id}", "task": pair.group, "split": "test", "statistics": {"acc": [0.0, 0.0]}, "pairs": [],
        })  # fmt: skip
        record["pairs"].append({"won": won, "positive": sides[0], "negative": sides[1]})
    for record in records.values():
        record["statistics"]["acc"] = [float(np.mean([p["won"] for p in record["pairs"]])), 1.0]
    return list(records.values())


def _example(span: Span, uid: str, form: str) -> Example:
    if form == "document":
        return Example(uid, (Turn("document", (span,)),))
    return Example(uid, (Turn("system", ()), Turn("user", ()), Turn("assistant", (span,))))


def _sums(item: Any) -> dict[str, Any]:
    """-log p of all that is scored of a side."""
    parts = item.by.values()
    return {
        "nats": sum(e.nats for e in parts), "tokens": sum(e.tokens for e in parts), "bound": not all(e.exact for e in parts)
    }  # fmt: skip


def summarize(records: Sequence[dict[str, Any]], resamples: int = 1000, seed: int = 1) -> dict[str, dict[str, Any]]:
    """Accuracy of each group, and of all items where there are several; intervals resample items."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["task"]].append(record)
    found = {f"{group}/acc": rows for group, rows in groups.items()} | ({"acc": list(records)} if len(groups) > 1 else {})
    metrics = {}
    for key, rows in found.items():
        value = bootstrap(np.array([r["statistics"]["acc"] for r in rows]), lambda s: s[0] / s[1], resamples, seed)
        bound = any(side["bound"] for r in rows for p in r["pairs"] for side in (p["positive"], p["negative"]))
        metrics[key] = {
            "value": value.value, "low": value.low, "high": value.high, "n": value.n, "unit": "rate", "higher_is_better": True,
            "metric_id": f"acc: the right side is likelier ({'bound' if bound else 'exact'}); 0.5 for a tie",
        }  # fmt: skip
    return metrics
