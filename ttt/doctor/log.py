"""Laws that every training log obeys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ttt.doctor.finding import FAULT, LEAK, NOTE, OK, SKIP, WARN, Finding


def check_log(
    rows: Sequence[Mapping[str, Any]], steps: int, vocab_size: int, lr_of: Callable[[int, float], float],
    restarts: int = 0, random_start: bool = True,
) -> list[Finding]:  # fmt: skip
    """Laws of any run.  ``rows``: the lines of metrics.jsonl; ``lr_of(update, seconds)``: the configured learning rate.

    ``restarts``: how often the run was continued (perhaps with other settings); ``random_start``: weights
    started at random, so that losses start near ln V.
    """
    if not rows:
        return [Finding("log/progress", FAULT, "metrics.jsonl has no line: nothing was trained")]
    found = [_progress(rows, steps), _finite(rows), _learning_rate(rows, lr_of, restarts), _throughput(rows)]
    found += _start(rows, vocab_size, random_start)
    found += _falling(rows, random_start)
    return [*found, *_masking_law(rows, vocab_size), *_place_law(rows)]


def _progress(rows: Sequence[Mapping[str, Any]], steps: int) -> Finding:
    last = rows[-1]
    done = f"{last['step']:,} of {steps:,} updates"
    if last.get("train/epoch") is not None:
        done += f", {last['train/epoch']:.1f} epochs"
    if last.get("train/tokens") is not None:
        done += f", {int(last['train/tokens']):,} tokens"
    return Finding("log/progress", OK if last["step"] >= steps else NOTE, done)


def _finite(rows: Sequence[Mapping[str, Any]]) -> Finding:
    for row in rows:
        for key, value in row.items():
            if value is None and key.startswith(("train/", "dev/")):  # what answers score may be undefined
                return Finding("log/finite", FAULT, f"{key} is not a number at step {row['step']}", "divergence")
    norms = [r["train/grad_norm"] for r in rows if "train/grad_norm" in r]
    if not norms:
        return Finding("log/finite", SKIP, "no gradient norm in the log")
    if max(norms) == 0:
        return Finding("log/finite", FAULT, "the gradient is zero throughout", "nothing learns")
    middle = float(np.median(norms))
    text = f"gradient norm {min(norms):.3g} to {max(norms):.3g}, median {middle:.3g}"
    return Finding("log/finite", WARN if norms[-1] > 20 * middle else OK, text)


def _learning_rate(rows: Sequence[Mapping[str, Any]], lr_of: Callable[[int, float], float], restarts: int) -> Finding:
    wrong, n, before = [], 0, 0.0
    for row in rows:
        if "train/lr" not in row:
            continue
        n += 1
        after = float(row.get("train/seconds", 0.0))
        # Between two lines of the log only the clock is unknown; the schedule falls with it.
        ends = sorted((lr_of(row["step"] - 1, after), lr_of(row["step"] - 1, before)))
        if not ends[0] * (1 - 1e-6) - 1e-15 <= row["train/lr"] <= ends[1] * (1 + 1e-6) + 1e-15:
            wrong.append((row["step"], row["train/lr"], ends[1]))
        before = after
    if not n:
        return Finding("log/learning_rate", SKIP, "no learning rate in the log")
    if not wrong:
        return Finding("log/learning_rate", OK, f"{n} values as configured")
    step, seen, wanted = wrong[0]
    text = f"{len(wrong)} of {n} differ from the schedule, first at step {step}: {seen:.3g}, configured {wanted:.3g}"
    if restarts:
        return Finding(
            "log/learning_rate", WARN, f"{text}; the run was taken up {restarts} times, perhaps with other settings"
        )
    return Finding("log/learning_rate", FAULT, text, "another learning rate than configured")


def _throughput(rows: Sequence[Mapping[str, Any]]) -> Finding:
    speeds = [r["train/tokens_per_s"] for r in rows if r.get("train/tokens_per_s")]
    if not speeds:
        return Finding("log/tokens_per_s", SKIP, "no speed in the log")
    quarter = max(1, len(speeds) // 4)
    first, last = float(np.median(speeds[:quarter])), float(np.median(speeds[-quarter:]))
    text = f"median {np.median(speeds):,.0f} tokens/s; first quarter {first:,.0f}, last {last:,.0f}"
    return Finding("log/tokens_per_s", WARN if len(speeds) >= 4 and last < first / 2 else OK, text)


def _losses(rows: Sequence[Mapping[str, Any]], prefix: str = "train/nll/") -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith(prefix) and value is not None:
                found.setdefault(key.removeprefix(prefix), []).append((row["step"], value))
    return found


def _start(rows: Sequence[Mapping[str, Any]], vocab_size: int, random_start: bool) -> list[Finding]:
    chance = math.log(vocab_size)
    terms = {k: v for k, v in _losses(rows).items() if "/" not in k}
    if not terms:
        return [Finding("log/first_loss", SKIP, "no losses by term in the log")]
    shown = ", ".join(f"{name} {values[0][1]:.2f}" for name, values in terms.items())
    text = f"first lines: {shown} nats; ln V = {chance:.2f}"
    high = [name for name, values in terms.items() if values[0][1] > (1.3 if random_start else 2.0) * chance]
    return [Finding("log/first_loss", WARN if high else OK, text + (": worse than chance" if high else ""))]


def _falling(rows: Sequence[Mapping[str, Any]], random_start: bool) -> list[Finding]:
    out = []
    for name, values in _losses(rows).items():
        if "/" in name or name in ("text", "audio"):
            continue
        tail = float(np.mean([v for _, v in values[-3:]]))
        text = f"{values[0][1]:.3f} -> {tail:.3f} nats a token"
        if tail < 0:
            out.append(Finding(f"log/{name}", FAULT, f"{text}: no loss is below 0", LEAK))
        elif tail < 1e-4:
            out.append(Finding(f"log/{name}", WARN, f"{text}: known by heart, or visible (see batch/visible)"))
        elif len(values) >= 4 and tail >= values[0][1] * 0.995:
            status, fault = (
                (FAULT, "nothing learns") if random_start else (WARN, "")
            )  # fine-tuning may start at its end
            out.append(Finding(f"log/{name}", status, f"{text}: it does not fall", fault))
        else:
            out.append(Finding(f"log/{name}", OK, text))
    return out


def _masking_law(rows: Sequence[Mapping[str, Any]], vocab_size: int) -> list[Finding]:
    """Less masking, more context, lower loss; seen only when something was learnt."""
    buckets = {k: v for k, v in _losses(rows, "train/nll/nar/").items() if k.startswith("p")}
    if len(buckets) < 2:
        return [Finding("log/masking", SKIP, "no losses by masking ratio in the log")]
    names = sorted(buckets)
    tails = {n: float(np.mean([v for _, v in buckets[n][-max(3, len(buckets[n]) // 5) :]])) for n in names}
    text = "audio loss by masking ratio: " + ", ".join(f"{n[1:].replace('_', '-')} %: {tails[n]:.2f}" for n in names)
    easy, hard = tails[names[0]], tails[names[-1]]
    if hard > 0.9 * math.log(vocab_size):
        return [Finding("log/masking", NOTE, f"{text} (too early to tell)")]
    if easy > hard * 1.05:
        return [
            Finding(
                "log/masking", FAULT, f"{text}: it must fall with less masking", "the context of a span is not used"
            )
        ]
    return [Finding("log/masking", OK, text)]


def _place_law(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Loss by quarter of the audio span: a quarter without targets means spans are cut or never reached."""
    out = []
    for term in ("nar", "ar"):
        places = {k: v for k, v in _losses(rows, f"train/nll/{term}/").items() if k.startswith("span_q")}
        if not places:
            continue
        tails = [places.get(f"span_q{q}", [])[-3:] for q in (1, 2, 3, 4)]
        shown = ", ".join(f"{np.mean([v for _, v in tail]):.2f}" if tail else "-" for tail in tails)
        missing = [q for q, tail in zip((1, 2, 3, 4), tails, strict=True) if not tail]
        text = f"loss by quarter of the audio span: {shown} nats"
        if missing:
            text += f"; no target ever lay in quarter {missing[0]}"
        out.append(Finding(f"log/place_in_span/{term}", WARN if missing else OK, text))
    return out


Bands = Mapping[str, Mapping[int, Sequence[float]]]
