"""One object that answers every question of a text benchmark: how likely is this, what do you write?

It depends on no benchmark library: `ttt.textbench.harness_model` hands it to lm-evaluation-harness, `ttt.textbench.mmlu_redux`
uses it as it is.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.errors import ConfigError, DataError, suggest
from ttt.io.digests import digest_of_json
from ttt.likelihood import Draws
from ttt.textbench.bound import bound_scores
from ttt.textbench.chain import Scored, chain_scores
from ttt.textbench.texts import (
    TEMPLATES,
    VOCABULARIES,
    Pair,
    chat_text,
    encode,
    encode_pair,
    vocabulary,
    windows,
)
from ttt.textbench.writing import Ask, write_chain, write_diffusion

if TYPE_CHECKING:
    from ttt.interfaces import LanguageModel, Objective, SpanSampler
    from ttt.types import LogitAlignment

log = logging.getLogger(__name__)
MC_DRAWS = Draws(draws=128, estimator="spread", group=16)  # LLaDA's numbers of draws
_TOGETHER = 1024  # requests that are sorted by length and scored together
_TELL_S = 20.0  # seconds between two lines of progress
_GENERATION = {
    "until": (), "max_gen_toks": None, "max_new_tokens": None, "max_tokens": None, "do_sample": False, "temperature": 0.0,
    "top_k": 0, "top_p": 1.0,
}  # fmt: skip


class _Progress:
    """A line in the log now and then."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.started = self.last = time.perf_counter()

    def __call__(self, done: int) -> None:
        now = time.perf_counter()
        if now - self.last >= _TELL_S and done:
            self.last = now
            log.info("%s %d of %d, %.0f s", self.what, done, self.total, now - self.started)


@dataclass(frozen=True)
class ScorerSettings:
    """How a model is asked."""

    vocabulary: str = "text"  # text | full: what probability is spread over, and what may be written
    template: str = "ttt"  # ttt | qwen3: how chats become text
    max_length: int = 2048  # longest row the network reads; longer contexts lose their left end (counted)
    max_tokens: int = 256  # new tokens of an answer where the task says nothing
    batch_size: int = 16  # answers written together
    batch_tokens: int = 8192  # positions of one scoring call, padding included
    seed: int = 1  # random masks and draws derive from it
    draws: Draws = field(default=MC_DRAWS)  # diffusion: how the bound is estimated
    check_greedy: bool = True  # diffusion: test whether a continuation is what greedy decoding writes

    def __post_init__(self) -> None:
        for name in ("max_length", "max_tokens", "batch_size", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be >= 1, got {getattr(self, name)}")
        for name, known in (("vocabulary", VOCABULARIES), ("template", TEMPLATES)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"{name}: {value!r} is none of {', '.join(known)}.{suggest(value, known)}")


class TextScorer:
    """A model, the objective that says how it reads, and the sampler with which a diffusion model writes.

    ``counts``: what was scored, written and cut so far.  ``elsewhere``: (probability outside the vocabulary in use, tokens)
    of every scored request of a left-to-right model, f64.
    """

    def __init__(
        self, model: LanguageModel, objective: Objective, sampler: SpanSampler | None = None,
        settings: ScorerSettings | None = None, own_rows: int | None = None,
    ) -> None:  # fmt: skip
        """``own_rows``: rows of the table that the checkpoint itself brought (None: all); others are never asked."""
        self.model, self.objective, self.sampler = model, objective, sampler
        self.settings = settings or ScorerSettings()
        self.tokenizer = model.tokenizer
        self.allowed = vocabulary(self.tokenizer, model.num_ids, self.settings.vocabulary)
        if own_rows is not None:
            self.allowed[own_rows:] = False
        self.diffusion = objective.canvas == "answer"
        if objective.arch != "causal_lm":
            raise ConfigError(
                f"objective: models of the class {objective.arch!r} do not answer questions in text"
            )
        if objective.canvas not in ("span", "answer"):
            raise ConfigError(
                f"objective: it learns {objective.canvas} only, so text has no probability under it; ask a model that learned "
                "text as well (objective.noised=answer or by_kind)"
            )
        self.mask: Any = getattr(objective, "mask", None)
        self.logit_alignment: LogitAlignment = getattr(objective, "logit_alignment", "same")
        if self.mask is None:
            raise ConfigError(
                f"objective: {type(objective).__name__} has no mask, so nothing says how the model reads text"
            )
        self.max_length = min(self.settings.max_length, model.max_positions or self.settings.max_length)
        self.counts: Counter[str] = Counter()
        self.elsewhere: list[tuple[float, int]] = []

    def chat(self, history: Sequence[Mapping[str, str]], open_answer: bool = True) -> str:
        """A chat as the string that this model was trained on."""
        return chat_text(self.tokenizer, history, self.settings.template, open_answer)

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Scored]:
        """log p of every (context, continuation): exact from left to right, a lower bound for diffusion models."""
        pairs = [encode_pair(self.tokenizer, context, target, self.max_length) for context, target in requests]
        for pair, (_, target) in zip(pairs, requests, strict=True):
            barred = [i for i in pair.target if not self.allowed[i]]
            if barred:
                raise DataError(
                    f"a continuation holds {self.tokenizer.token(barred[0])!r}, which the vocabulary "
                    f"{self.settings.vocabulary!r} leaves out: {target[:40]!r}; use --vocabulary full or mend the task"
                )
        self.counts["contexts cut on the left"] += sum(p.cut > 0 for p in pairs)
        return self.score(pairs)

    def score(self, pairs: Sequence[Pair]) -> list[Scored]:
        """The same for pairs of ids; equal pairs are computed once."""
        unique = list(dict.fromkeys(pairs))
        found: list[Scored] = []
        report = _Progress("scored", len(unique))
        for start in range(0, len(unique), _TOGETHER):
            found += self._score(unique[start : start + _TOGETHER])
            report(len(found))
        self.counts["scored requests"] += len(pairs)
        by_pair = dict(zip(unique, found, strict=True))
        return [by_pair[p] for p in pairs]

    def _score(self, pairs: Sequence[Pair]) -> list[Scored]:
        s = self.settings
        if self.diffusion:
            return bound_scores(
                self.model, self.mask, pairs, self.allowed, s.batch_tokens, s.draws, s.seed, s.check_greedy,
                self.logit_alignment,
            )  # fmt: skip
        found = chain_scores(self.model, self.mask, pairs, self.allowed, s.batch_tokens)
        self.elsewhere += [(x.elsewhere, x.tokens) for x in found]
        return found

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """log p of whole texts, in windows of ``max_length``; the first token is predicted by a padding token."""
        prefix = self.tokenizer.vocab.pad_id
        parts = [windows(encode(self.tokenizer, text), prefix, self.max_length) for text in texts]
        scored = iter(self.score([p for found in parts for p in found]))
        return [sum(next(scored).logprob for _ in found) for found in parts]

    def generate(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Answers to every (context, how), in order; ``how`` is the harness's ``generation_kwargs``.

        Equal requests that sample get draws of their own by their number of occurrence.
        """
        if self.diffusion and (self.sampler is None or self.sampler.canvas != "answer"):
            raise ConfigError(
                "eval.sampler.canvas: the objective diffuses whole answers; set eval.sampler.canvas=answer to let it write"
            )
        seen: Counter[str] = Counter()
        asks = []
        for context, how in requests:
            key = digest_of_json([context, dict(how)], default=str)
            asks.append(self._ask(context, how, f"{key}/{seen[key]}"))
            seen[key] += 1
        out = [""] * len(asks)
        training = self.model.training
        self.model.eval()
        try:
            report, done = _Progress("written", len(asks)), 0
            for rows in self._generation_batches(asks):
                done += len(rows)
                report(done - len(rows))
                for i, text in zip(rows, self._write([asks[i] for i in rows]), strict=True):
                    out[i] = text
        finally:
            self.model.train(training)
        self.counts["written answers"] += len(asks)
        return out

    def _generation_batches(self, asks: Sequence[Ask]) -> list[list[int]]:
        """Numbers of prompts of similar length; diffusion samplers have one temperature for all rows."""
        kinds: dict[float | None, list[int]] = {}
        for i in sorted(range(len(asks)), key=lambda i: -len(asks[i].ids)):
            kinds.setdefault(asks[i].temperature if self.diffusion else 0.0, []).append(i)
        size = self.settings.batch_size
        return [numbers[at : at + size] for numbers in kinds.values() for at in range(0, len(numbers), size)]

    def _write(self, asks: Sequence[Ask]) -> list[str]:
        if not self.diffusion:
            return write_chain(self.model, self.mask, asks, self.allowed, self.settings.seed)
        sampler: Any = self.sampler
        if asks[0].temperature is not None and hasattr(sampler, "temperature"):
            sampler = replace(sampler, temperature=asks[0].temperature)
        return write_diffusion(
            self.model, self.mask, sampler, asks, self.allowed, self.settings.seed, self.logit_alignment
        )

    def _ask(self, context: str, how: Mapping[str, Any], key: str) -> Ask:
        unknown = [name for name in how if name not in _GENERATION]
        if unknown:
            raise ConfigError(
                f"generation_kwargs: {unknown[0]!r} is not supported.{suggest(unknown[0], _GENERATION)} "
                f"Known: {', '.join(_GENERATION)}"
            )
        named = next((how[n] for n in ("max_gen_toks", "max_new_tokens", "max_tokens") if how.get(n)), None)
        most = int(named or self.settings.max_tokens)
        temperature, top_k, top_p = _draws(how)
        if self.diffusion and temperature and (top_k or top_p < 1):
            raise ConfigError(
                "generation_kwargs: top_k and top_p are fields of eval.sampler where the model diffuses answers"
            )
        until = how.get("until") or ()
        room = self.max_length - most
        if room < 1:
            raise ConfigError(
                f"generation_kwargs.max_gen_toks: {most} new tokens leave no room for a prompt in rows of {self.max_length}; "
                "raise --max-length"
            )
        ids = encode(self.tokenizer, context) or [self.tokenizer.vocab.pad_id]
        self.counts["contexts cut on the left"] += len(ids) > room
        return Ask(
            key, tuple(ids[-room:]), (until,) if isinstance(until, str) else tuple(until), most, temperature, top_k, top_p,
        )  # fmt: skip

    def speech_mass(self) -> np.ndarray:
        """Sufficient statistics f64 [n, 2] of the mean probability outside the text vocabulary, a request a row."""
        return np.asarray([s for s in self.elsewhere if np.isfinite(s[0])], dtype=np.float64).reshape(-1, 2)


def _draws(how: Mapping[str, Any]) -> tuple[float | None, int, float]:
    """(temperature, top_k, top_p) of a request; without sampling, temperature None.  Raises `ConfigError` for other values.

    ``do_sample`` alone draws at temperature 1; a temperature alone turns sampling on.  ``do_sample`` with temperature 0 is
    greedy.
    """
    temperature = _number(how, "temperature", "a number >= 0", lambda x: 0 <= x < float("inf"))
    top_k = _number(how, "top_k", "a whole number >= 0", lambda x: x >= 0 and x == int(x))
    top_p = _number(how, "top_p", "a number > 0 and <= 1", lambda x: 0 < x <= 1)
    sampled = how.get("do_sample")
    if not (temperature or 0.0) > 0 if sampled is None else not sampled:
        return None, 0, 1.0
    return (1.0 if temperature is None else temperature), int(top_k or 0), 1.0 if top_p is None else top_p


def _number(how: Mapping[str, Any], name: str, wanted: str, fits: Callable[[float], bool]) -> float | None:
    value = how.get(name)
    if value is None:
        return None
    try:
        number = float(value)
        if not isinstance(value, bool) and fits(number):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"generation_kwargs.{name}: must be {wanted}, got {value!r}")
