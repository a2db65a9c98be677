"""The same prompts through several samplers: what they write, what it costs, how varied and how likely it is.

Letters: ``D`` answers (draws) to one prompt, ``n`` words in a row (n-grams).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.eval.intervals import bootstrap
from ttt.types import Example, Generation, Turn

if TYPE_CHECKING:
    from ttt.interfaces import LanguageModel, Objective
    from ttt.likelihood import Draws
    from ttt.sampling.decoder.decoder import Decoder
    from ttt.types import Prompt


@dataclass(frozen=True)
class Answered:
    """One answer: ``seconds`` is its batch's wall time over its rows, ``nats`` -log p by modality (None: not scored)."""

    uid: str
    draw: int
    made: Generation
    nats: Mapping[str, tuple[float, int, bool]] | None = None  # modality -> (nats, tokens, exact)


def decode(decoder: Decoder, prompts: Sequence[Prompt], draws: int, batch_size: int) -> list[Answered]:
    """``draws`` answers to every prompt, prompt by prompt; the first is the one that ``ttt generate`` gives."""
    asked = [(p, d) for p in prompts for d in range(draws)]
    order = sorted(range(len(asked)), key=lambda i: (asked[i][1], len(asked[i][0].ids), i))
    out: dict[int, Answered] = {}
    for at in range(0, len(order), batch_size):
        some = order[at : at + batch_size]
        named = [_drawn(*asked[i]) for i in some]
        started = time.perf_counter()
        made = decoder.generate(named)
        seconds = (time.perf_counter() - started) / len(some)
        for i, m in zip(some, made, strict=True):
            out[i] = Answered(asked[i][0].uid, asked[i][1], dataclasses.replace(m, seconds=seconds))
    return [out[i] for i in range(len(asked))]


def _drawn(prompt: Prompt, draw: int) -> Prompt:
    """The prompt under a name of its own: names decide the draws."""
    return prompt if draw == 0 else dataclasses.replace(prompt, uid=f"{prompt.uid}#{draw}")


def score_likelihood(
    answers: Sequence[Answered], prompts: Mapping[str, Example], model: LanguageModel, objective: Objective, draws: Draws,
    seed: int, budget: int,
) -> list[Answered]:  # fmt: skip
    """-log p of every answer under the model itself (`ttt.likelihood`): exact text, bounded audio.

    ``prompts``: uid -> the example without its answer.  Raises `ConfigError` for objectives that have no likelihood.
    """
    from ttt.likelihood import likelihoods

    said = [
        Example(f"{a.uid}#{a.draw}", (*prompts[a.uid].turns, Turn("assistant", a.made.spans)), prompts[a.uid].task)
        for a in answers
    ]  # fmt: skip
    found = likelihoods(model, objective, said, draws, seed=seed, budget=budget)
    return [
        dataclasses.replace(a, nats={k: (e.nats, e.tokens, e.exact) for k, e in item.by.items()})
        for a, item in zip(answers, found, strict=True)
    ]


def grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of ``n`` words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(groups: Sequence[Sequence[Sequence[str]]], n: int) -> float | None:
    """Distinct-n: different n-grams over all n-grams, among the answers to one prompt, summed over prompts.

    1: nothing is ever said twice; None: no answer has n words.  Li et al., arXiv 1510.03055, there over a whole corpus; kept
    apart by prompt here, or many prompts would look like variety.

    >>> distinct([[["a", "b"], ["a", "b"]], [["c", "c", "d"]]], 1)
    0.5714285714285714
    """
    kinds = total = 0
    for answers in groups:
        found = [g for words in answers for g in grams(words, n)]
        kinds, total = kinds + len(set(found)), total + len(found)
    return kinds / total if total else None


def self_bleu(groups: Sequence[Sequence[Sequence[str]]]) -> float | None:
    """Self-BLEU: every answer's BLEU against the others to its prompt, meaned; 100: all draws say the same.

    Zhu et al., arXiv 1802.01886.  Empty answers are left out; None where no prompt has two answers that say something.
    """
    scores = []
    for answers in groups:
        lines = [" ".join(words) for words in answers if words]
        for i, line in enumerate(lines):
            others = lines[:i] + lines[i + 1 :]
            if others:
                scores.append(_bleu().sentence_score(line, others).score)
    return float(np.mean(scores)) if scores else None


@lru_cache(maxsize=1)
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="none", effective_order=True)


def summarise(answers: Sequence[Answered], frame_rate_hz: float | None, resamples: int, seed: int) -> dict[str, Any]:
    """Everything about one sampler's answers.  ``frame_rate_hz``: of the codec, for seconds of speech (None: no codec)."""
    made = [a.made for a in answers]
    by_prompt: dict[str, list[Generation]] = {}
    for a in answers:
        by_prompt.setdefault(a.uid, []).append(a.made)
    words = [[m.text.split() for m in group] for group in by_prompt.values()]
    codes = [[[str(tuple(frame)) for frame in m.codes.tolist()] for m in group] for group in by_prompt.values()]
    n = len(made)
    calls = {kind: sum(m.calls.get(kind, 0) for m in made) for kind in ("ar", "diffusion")}
    tokens = sum(len(m.ids) for m in made)
    frames = sum(len(m.codes) for m in made)
    seconds = sum(m.seconds for m in made)
    firsts = [m.first_block_s for m in made if m.first_block_s is not None]
    speech_s = frames / frame_rate_hz if frame_rate_hz else None
    return {
        "answers": n, "prompts": len(by_prompt), "tokens": tokens / n, "words": sum(len(m.text.split()) for m in made) / n,
        "codes": frames / n, "calls_ar": calls["ar"] / n, "calls_diffusion": calls["diffusion"] / n,
        "calls_per_token": sum(calls.values()) / tokens if tokens else None, "seconds": seconds / n,
        "first_block_s": float(np.mean(firsts)) if firsts else None,
        "rtf": seconds / speech_s if speech_s else None, "cut": sum(m.stopped == "length" for m in made) / n,
        "distinct_1": distinct(words, 1), "distinct_2": distinct(words, 2), "self_bleu": self_bleu(words),
        "codes_distinct_2": distinct(codes, 2), "codes_self_bleu": self_bleu(codes),
        "likelihood": {k: _nats(answers, k, resamples, seed) for k in ("text", "audio")},
    }  # fmt: skip


def _nats(answers: Sequence[Answered], modality: str, resamples: int, seed: int) -> dict[str, Any] | None:
    """-log p per token with its interval over prompts (draws of one prompt stay together)."""
    rows: dict[str, np.ndarray] = {}
    exact = True
    for a in answers:
        if a.nats is not None and modality in a.nats:
            nats, tokens, sure = a.nats[modality]
            rows[a.uid] = rows.get(a.uid, np.zeros(2)) + np.array([nats, tokens])
            exact = exact and sure
    if not rows:
        return None
    value = bootstrap(np.stack(list(rows.values())), lambda s: s[0] / s[1] if s[1] else float("nan"), resamples, seed)
    return {**{k: v if math.isfinite(v) else None for k, v in dataclasses.asdict(value).items()}, "bound": not exact}


# What the table shows: key, heading, digits.  Columns without any value are left out.
COLUMNS = (
    ("words", "words", 1), ("codes", "codes", 1), ("calls_ar", "ar calls", 1), ("calls_diffusion", "diffusion calls", 1),
    ("calls_per_token", "calls/token", 2), ("seconds", "seconds", 3), ("first_block_s", "first block", 3), ("rtf", "rtf", 3),
    ("cut", "cut", 2), ("distinct_1", "dist-1", 2), ("distinct_2", "dist-2", 2), ("self_bleu", "selfBLEU", 1),
    ("codes_distinct_2", "codes dist-2", 2), ("codes_self_bleu", "codes selfBLEU", 1),
)  # fmt: skip


def cells(found: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(headings, one row per sampler), as text.  ``found``: name -> `summarise`."""
    used = [(k, head, d) for k, head, d in COLUMNS if any(f[k] is not None for f in found.values())]
    scored = [k for k in ("text", "audio") if any(f["likelihood"][k] for f in found.values())]
    heads = ["sampler", *(h for _, h, _ in used), *(f"nats/token {k}" for k in scored)]
    rows = []
    for name, f in found.items():
        row = [name, *("-" if f[k] is None else f"{f[k]:.{d}f}" for k, _, d in used)]
        for k in scored:
            v = f["likelihood"][k]
            row.append("-" if not v or v["value"] is None else f"{'≤ ' if v['bound'] else ''}{v['value']:.3f}")
        rows.append(row)
    return heads, rows


def text_table(found: Mapping[str, Mapping[str, Any]], width: int = 110) -> str:
    """For a terminal; columns that do not fit ``width`` go into further tables below."""
    heads, rows = cells(found)
    widths = [max(len(r[c]) for r in [heads, *rows]) for c in range(len(heads))]
    parts: list[list[int]] = [[0]]
    for c in range(1, len(heads)):
        if sum(widths[x] + 2 for x in parts[-1]) + widths[c] > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(c)
    blocks = []
    for part in parts:
        lines = [
            "  ".join(r[c].ljust(widths[c]) if c == 0 else r[c].rjust(widths[c]) for c in part).rstrip()
            for r in [heads, *rows]
        ]
        blocks.append("\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]))
    return "\n\n".join(blocks)


def markdown_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The same as Markdown."""
    heads, rows = cells(found)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in lines)
