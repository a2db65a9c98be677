"""-log p of answers: exact where tokens form a chain, an upper bound where a span is filled in any order.

Text conditioned on its clean history is a chain: -sum log softmax.  A set of ``n`` tokens that a masked network fills in any
order has, averaged over orders, -log p <= E (n / k) sum over masked -log q, with k uniform on 1..n and exactly k of n masked
(TtT, section 3.2 and eq. 3; LLaDA, arXiv 2502.09992, eq. 6).  Every span is scored given *clean* history, whatever the
objective trained on.  Letters: ``n`` tokens of a set, ``K`` masked copies of it, ``k`` masked tokens of a copy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.errors import ConfigError
from ttt.eval.intervals import bootstrap
from ttt.eval.keys import key_prefix
from ttt.rng import generator
from ttt.types import CodeSpace, Example, Kind, ModelInputs, TokenStream, Value, audio_runs

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ttt.interfaces import Constraint, MaskRule, Objective
    from ttt.model.lm import SpeechTextLM
    from ttt.text.vocab import Vocabulary

ESTIMATORS = ("uniform", "spread", "official", "exact")
EXACT_LIMIT = 12  # 2^n - 1 copies
MODALITIES = ("text", "audio")


@dataclass(frozen=True)
class Draws:
    """How sets are masked.

    ``estimator``: ``uniform`` draws k ~ U{1..n} for every copy; ``spread`` draws one k per ``group`` copies and spreads
    theirs evenly over 1..n (LLaDA; every single k stays uniform, so it is unbiased); ``official`` does the same with the
    reference's rounding of halves to even, which is not quite uniform for some n; ``exact`` takes all 2^n - 1 masks.
    ``antithetic``: copies in pairs that mask k from one end and n + 1 - k from the other end of one random order.
    ``cfg_scale``: guidance, logits = u + (scale + 1) (c - u), u with everything but the set's own tokens masked.
    """

    draws: int = 16
    estimator: str = "uniform"
    group: int = 8
    antithetic: bool = False
    cfg_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ConfigError(f"likelihood: estimator must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}")
        if self.draws < 1 or self.group < 1:
            raise ConfigError(f"likelihood: draws and group must be >= 1, got {self.draws} and {self.group}")
        if self.cfg_scale < 0:
            raise ConfigError(f"likelihood: the guidance scale must be >= 0, got {self.cfg_scale}")
        if self.antithetic and (self.estimator in ("official", "exact") or self.draws % 2):
            raise ConfigError("likelihood: antithetic pairs need an even number of draws and 'uniform' or 'spread'")
        if self.estimator in ("spread", "official") and (self.draws % self.group or self.antithetic and self.group % 2):
            raise ConfigError(f"likelihood: {self.draws} draws do not divide into whole groups of {self.group}")


@dataclass(frozen=True)
class Patterns:
    """Masked copies of one set: ``masked`` bool [K, n]; ``weight`` f64 [K], sums to 1; ``group`` i64 [K]: copies of
    different groups are independent."""

    masked: np.ndarray
    weight: np.ndarray
    group: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Masked tokens of each copy, i64 [K]."""
        return self.masked.sum(1)


def spread_counts(n: int, copies: int, first: int, official: bool = False) -> np.ndarray:
    """LLaDA's evenly spread counts: ``copies`` numbers over 1..n from ``first`` on, modulo n.

    ``official``: halves are rounded to even after adding ``first``, as the reference program does.

    >>> spread_counts(8, 4, 3).tolist(), spread_counts(3, 2, 2).tolist(), spread_counts(3, 2, 2, official=True).tolist()
    ([3, 5, 7, 1], [2, 1], [2, 1])
    >>> [sorted(int(spread_counts(3, 2, k, o)[1]) for k in (1, 2, 3)) for o in (False, True)]
    [[1, 2, 3], [1, 1, 2]]
    """
    if official:
        return (np.round(np.linspace(first, first + (copies - 1) * (n / copies), copies)).astype(np.int64) - 1) % n + 1
    steps = np.floor(np.arange(copies) * n / copies + 0.5).astype(np.int64)
    return (first - 1 + steps) % n + 1


def patterns(n: int, draws: Draws, gen: Generator) -> Patterns:
    """The masked copies of a set of ``n`` tokens.  One token needs one copy: there is nothing to draw."""
    import torch

    if n == 1:
        return Patterns(np.ones((1, 1), dtype=bool), np.ones(1), np.zeros(1, dtype=np.int64))
    if draws.estimator == "exact":
        return every_pattern(n)
    pairs = 2 if draws.antithetic else 1
    base, together = draws.draws // pairs, max(1, draws.group // pairs)
    if draws.estimator == "uniform":
        together = 1
        counts = torch.randint(1, n + 1, (base,), generator=gen).numpy()
    else:
        firsts = torch.randint(1, n + 1, (base // together,), generator=gen).tolist()
        official = draws.estimator == "official"
        counts = np.concatenate([spread_counts(n, together, first, official) for first in firsts])
    order = torch.rand((base, n), generator=gen).argsort(1).numpy()  # [base, n]: rank of every token in a random order
    group = np.arange(base) // together
    masked = order < counts[:, None]
    if draws.antithetic:
        masked = np.concatenate([masked, n - 1 - order < (n + 1 - counts)[:, None]])
        group = np.concatenate([group, group])
    return Patterns(masked, np.full(len(masked), 1 / len(masked)), group)


def every_pattern(n: int) -> Patterns:
    """All non-empty masks of ``n`` tokens with their probabilities 1 / (n C(n, k)): the expectation itself."""
    if n > EXACT_LIMIT:
        raise ConfigError(
            f"likelihood: estimator 'exact' needs 2^n masks; a set here has {n} tokens, the limit is {EXACT_LIMIT}"
        )
    masked = np.array(list(itertools.product((False, True), repeat=n))[1:])
    weight = np.array([1 / (n * math.comb(n, k)) for k in masked.sum(1)])
    return Patterns(masked, weight, np.zeros(len(masked), dtype=np.int64))


@dataclass(frozen=True)
class Part:
    """A set of tokens and all the network may see of their example: ``stream`` ends where their history does.

    ``at`` i64 [n]: positions; ``tokens`` of them are the example's own, the others fill the last block up.
    """

    stream: TokenStream
    at: np.ndarray
    tokens: int
    span: int = 0


@dataclass(frozen=True)
class Factors:
    """How an objective factorises an example: ``chain`` i64 positions predicted by the one before; ``parts``."""

    chain: np.ndarray
    parts: tuple[Part, ...]


def factorise(
    objective: Objective, stream: TokenStream, block_length: int | None = None, space: CodeSpace | None = None
) -> Factors:
    """The factors of one example's answer; ``block_length``: tokens of a span filled together (None: the mask's; 0: all).

    `Ar` is a chain.  `Nar` is one set, what may be noised, seen with all the rest (``space``: which ids are codes, where it
    noises codes only).  `TtT` and what derives from it is a chain of text, and one
    set per audio span (per block), given everything before.  Raises `ConfigError` for objectives of other families.
    """
    from ttt.objective.library import Ar, Nar, TtT

    target = stream.target.copy()
    target[0] = False  # nothing predicts the first token
    audio = stream.kind == Kind.AUDIO
    if isinstance(objective, Ar):
        return Factors(np.flatnonzero(target), ())
    if isinstance(objective, Nar):
        at = np.flatnonzero(_noised(objective, stream, space))
        return Factors(at[:0], (Part(stream, at, len(at)),) if len(at) else ())
    if not isinstance(objective, TtT):
        raise ConfigError(
            f"objective: {getattr(type(objective), 'registered_name', type(objective).__name__)!r} has no likelihood: "
            "its class must derive from Ar, Nar or TtT (ttt.objective.library)"
        )
    if block_length is None:
        block_length = objective.mask.block_length
    parts: list[Part] = []
    at = np.flatnonzero(stream.target & audio)
    for number, run in enumerate(np.split(at, np.flatnonzero(np.diff(stream.span[at])) + 1) if len(at) else []):
        step = block_length or len(run)
        fill = bool(block_length) and getattr(objective, "fill_blocks", False) and run[-1] + 1 < len(stream)
        for begin in range(0, len(run), step):
            block = run[begin : begin + step]
            extra = step - len(block) if fill else 0
            cut = _cut(stream, int(block[-1]) + 1, extra)
            parts.append(Part(cut, np.arange(block[0], len(cut)), len(block), number))
    return Factors(np.flatnonzero(target & ~audio), tuple(parts))


def _noised(objective: Any, stream: TokenStream, space: CodeSpace | None) -> np.ndarray:
    """Targets of one stream that the objective may mask, bool [n]."""
    from ttt.data.packing import collate

    batch = collate([[stream]], len(stream), 0, -1, space)
    return (objective.maskable(batch) & batch.target)[0].numpy()


def _cut(stream: TokenStream, stop: int, repeats: int = 0) -> TokenStream:
    """The first ``stop`` tokens, the last of them ``repeats`` times more."""

    def cut(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:stop], np.repeat(values[stop - 1 : stop], repeats)])

    kind = cut(stream.kind)
    return TokenStream(
        uid=stream.uid, ids=cut(stream.ids), kind=kind, span=audio_runs(kind), target=cut(stream.target),
        answer=cut(stream.answer), task=stream.task, prompt_length=stream.prompt_length,
    )  # fmt: skip


def chain_nll(
    model: SpeechTextLM, mask: MaskRule, streams: Sequence[TokenStream], wanted: Sequence[np.ndarray], budget: int
) -> list[np.ndarray]:
    """-log q of the ``wanted`` positions (> 0) of clean streams, each predicted by the one before: f64 [n] each."""
    out = [np.zeros(len(at)) for at in wanted]
    todo = [i for i, at in enumerate(wanted) if len(at)]
    for chunk in batches([len(streams[i]) for i in todo], budget):
        rows = [todo[j] for j in chunk]
        logits = logits_at(model, mask, [streams[i] for i in rows], [wanted[i] - 1 for i in rows])
        nll = _nll(logits, np.concatenate([streams[i].ids[wanted[i]] for i in rows]))
        for i, values in zip(rows, np.split(nll, np.cumsum([len(wanted[i]) for i in rows])[:-1]), strict=True):
            out[i] = values
    return out


def masked_nll(
    model: SpeechTextLM, mask: MaskRule, parts: Sequence[Part], masks: Sequence[np.ndarray], budget: int,
    cfg_scale: float = 0.0, allowed: Tensor | None = None, constraint: Constraint | None = None, with_ends: bool = True,
) -> list[np.ndarray]:  # fmt: skip
    """(n / k) sum over masked -log q of every copy, apart by modality of the token: f64 [K, 2] (text, audio) each.

    ``masks``: bool [K, n] per part, at least one True in every row.  ``allowed``: bool [V], ids that q is spread over
    (default: all); ``constraint``: codes take theirs from what may stand at their place, and what may not has probability 0
    (``with_ends``: see `ttt.objective.places.constrained`).
    """
    out = [np.zeros((len(m), len(MODALITIES))) for m in masks]
    todo = [(i, c) for i, m in enumerate(masks) for c in range(len(m))]
    mask_id = model.tokenizer.vocab.mask_id
    for chunk in batches([len(parts[i].stream) for i, _ in todo], budget):
        rows = [todo[j] for j in chunk]
        noisy, at = [], []
        for i, c in rows:
            hidden = parts[i].at[masks[i][c]]
            ids = parts[i].stream.ids.copy()
            ids[hidden] = mask_id
            noisy.append(dataclasses.replace(parts[i].stream, ids=ids))
            at.append(hidden)
        logits = logits_at(model, mask, noisy, at)
        if cfg_scale:
            blind = [without_context(s, parts[i].at, mask_id) for s, (i, _) in zip(noisy, rows, strict=True)]
            empty = logits_at(model, mask, blind, at)
            logits = empty + (cfg_scale + 1) * (logits - empty)
        if allowed is not None:
            logits = logits.masked_fill(~allowed.to(logits.device), -math.inf)
        if constraint is not None and constraint.restricts:
            logits = _constrained(logits, constraint, [parts[i].stream for i, _ in rows], at, with_ends, model.tokenizer.vocab)
        nll = _nll(logits, np.concatenate([parts[i].stream.ids[h] for (i, _), h in zip(rows, at, strict=True)]))
        for (i, c), hidden, values in zip(rows, at, np.split(nll, np.cumsum([len(h) for h in at])[:-1]), strict=True):
            audio = parts[i].stream.kind[hidden] == Kind.AUDIO
            scale = len(parts[i].at) / len(hidden)
            out[i][c] = scale * values[~audio].sum(), scale * values[audio].sum()
    return out


def _constrained(
    logits: Tensor, constraint: Constraint, streams: Sequence[TokenStream], at: Sequence[np.ndarray], with_ends: bool,
    vocab: Vocabulary,
) -> Tensor:  # fmt: skip
    """Logits [N, V] with all but each position's own ids at minus infinity; ``streams``: the clean rows."""
    import torch

    from ttt.data.packing import collate
    from ttt.objective.places import constrained

    width = max(map(len, streams))
    batch = collate([[s] for s in streams], width, vocab.pad_id, vocab.mask_id, vocab.code_space)
    flat = torch.from_numpy(np.concatenate([row * width + positions for row, positions in enumerate(at)]))
    held = constrained(batch, constraint, flat, with_ends)
    assert held is not None
    keep, columns = held.keep, held.columns
    may = torch.ones(logits.shape, dtype=torch.bool)
    for row, number in zip(keep.nonzero().flatten().tolist(), columns.index.tolist(), strict=True):
        if number >= 0:
            may[row] = False
            for start, stop in columns.sets[number]:
                may[row, start:stop] = True
    impossible = (~keep).nonzero().flatten()
    may[impossible, batch.ids.flatten()[flat[impossible]]] = False
    return logits.masked_fill(~may.to(logits.device), -math.inf)


def without_context(stream: TokenStream, at: np.ndarray, mask_id: int) -> TokenStream:
    """Everything but ``at`` masked.  Mask tokens are audio for the attention mask, as they are in decoding."""
    context = np.ones(len(stream), dtype=bool)
    context[at] = False
    kind = np.where(context, Kind.AUDIO, stream.kind).astype(np.uint8)
    ids = np.where(context, mask_id, stream.ids)
    return dataclasses.replace(stream, ids=ids, kind=kind, span=audio_runs(kind))


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers of rows by falling length, at most ``budget`` positions with padding in a batch (one row at least)."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= budget:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def logits_at(model: SpeechTextLM, mask: MaskRule, streams: Sequence[TokenStream], at: Sequence[np.ndarray]) -> Tensor:
    """Logits f32 [N, V] of positions ``at`` of every stream, one row each."""
    import torch

    from ttt.data.packing import collate
    from ttt.masks.materialize import materialize

    vocab = model.tokenizer.vocab
    width = max(map(len, streams))
    batch = collate([[s] for s in streams], width, vocab.pad_id, vocab.mask_id, vocab.code_space)
    select = np.concatenate([row * width + positions for row, positions in enumerate(at)])
    with torch.no_grad():
        return model(ModelInputs(
            batch.ids.to(model.device), batch.position.to(model.device),
            materialize(mask, batch.layout().to(model.device), model.attention, model.dtype),
            torch.from_numpy(select).to(model.device),
        ))  # fmt: skip


def _nll(logits: Tensor, ids: np.ndarray) -> np.ndarray:
    import torch
    import torch.nn.functional as F

    wanted = torch.from_numpy(ids).to(logits.device)
    return F.cross_entropy(logits.float(), wanted, reduction="none").double().cpu().numpy()


@dataclass(frozen=True)
class Estimate:
    """``nats``: -log p, or its bound, of ``tokens`` tokens in ``spans`` spans; ``variance`` of nats over draws (NaN: a
    single independent draw tells none); ``exact``: not a bound."""

    nats: float
    tokens: int
    spans: int
    variance: float
    exact: bool


@dataclass(frozen=True)
class ItemLikelihood:
    """One example: estimates by modality (absent ones left out), and words of its target text."""

    uid: str
    group: str
    words: int
    by: Mapping[str, Estimate]


def estimate(values: np.ndarray, found: Patterns) -> tuple[np.ndarray, np.ndarray]:
    """(mean, its variance over independent groups) of values f64 [K, m] -> f64 [m] each; all masks: variance 0."""
    mean = found.weight @ values
    if len(found.masked) == 1 and found.masked.shape[1] == 1 or np.ptp(found.weight) > 0:
        return mean, np.zeros_like(mean)
    groups = [values[found.group == g].mean(0) for g in np.unique(found.group)]
    if len(groups) < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.var(groups, axis=0, ddof=1) / len(groups)


def likelihoods(
    model: SpeechTextLM, objective: Objective, examples: Sequence[Example], draws: Draws, *, seed: int, budget: int,
    block_length: int | None = None,
) -> list[ItemLikelihood]:  # fmt: skip
    """-log p of every example's answer, in order.  Draws depend on (seed, uid, span) alone.

    ``budget``: positions in one network call, padding included.
    """
    from ttt.data.spans import encode_example

    streams = [encode_example(e, model.tokenizer) for e in examples]
    factors = [factorise(objective, s, block_length, model.tokenizer.vocab.code_space) for s in streams]
    mask: MaskRule = objective.mask  # type: ignore[attr-defined]
    training = model.training
    model.eval()
    try:
        chains = chain_nll(model, mask, streams, [f.chain for f in factors], budget)
        parts = [(i, number, part) for i, f in enumerate(factors) for number, part in enumerate(f.parts)]
        found = [
            patterns(len(p.at), draws, generator(seed, "likelihood", uid_number(examples[i].uid), number))
            for i, number, p in parts
        ]
        values = masked_nll(
            model, mask, [p for *_, p in parts], [f.masked for f in found], budget, draws.cfg_scale,
            constraint=getattr(objective, "constraint", None), with_ends=getattr(objective, "learns_ends", True),
        )  # fmt: skip
    finally:
        model.train(training)
    # [item, modality, (nats, variance, tokens, spans)]
    table = np.zeros((len(examples), 2, 4))
    for i, (nll, f, s) in enumerate(zip(chains, factors, streams, strict=True)):
        audio = s.kind[f.chain] == Kind.AUDIO
        runs = len(np.unique(s.span[f.chain[audio]]))
        table[i] += [[nll[~audio].sum(), 0, (~audio).sum(), 0], [nll[audio].sum(), 0, audio.sum(), runs]]
    seen: set[tuple[int, int]] = set()
    for (i, _, part), drawn, v in zip(parts, found, values, strict=True):
        mean, variance = estimate(v, drawn)
        audio = part.stream.kind[part.at[: part.tokens]] == Kind.AUDIO
        table[i, :, 0] += mean
        table[i, :, 1] += variance
        table[i, :, 2] += (~audio).sum(), audio.sum()
        if (i, part.span) not in seen:  # the blocks of a span count once
            table[i, 1, 3] += len(np.unique(part.stream.span[part.at[: part.tokens]][audio]))
            seen.add((i, part.span))
    out = []
    for example, rows, f in zip(examples, table, factors, strict=True):
        kinds = {  # the joint bound of an example is exact only where each of its factors is
            name: Estimate(float(r[0]), int(r[2]), int(r[3]), float(r[1]), not f.parts or (name == "text" and len(f.chain) > 0))
            for name, r in zip(MODALITIES, rows, strict=True) if r[2]
        }  # fmt: skip
        text = [s.text for t in example.turns if t.is_target for s in t.spans if s.kind == "text"]
        group = f"{key_prefix(str(example.meta.get('split', '')))}{example.task or 'all'}"
        out.append(ItemLikelihood(example.uid, group, len(" ".join(text).split()), kinds))
    return out


def uid_number(uid: str) -> int:
    """A number that stands for a name in `ttt.rng`."""
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest(), "big")


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
    header = ("group", "of", "nats/token", "95 % over items", "± draws", "nats/word | span", "nats/example", "tokens", "items")
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
