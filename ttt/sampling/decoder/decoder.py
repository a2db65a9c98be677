"""Decodes answers of text and audio: the loop that decides for each row what the next network call has to compute.

A row starts in text mode and writes one token at a time, left to right.  When it writes a token that opens an audio span,
it goes to audio mode: a sampler (`ttt.interfaces.SpanSampler`) fills the span, block by block.  When the span has ended,
the row is back in text mode, until it writes the end of the turn or reaches the limit (TtT, arXiv 2509.20072; official
program: inference_TtT.py).  Samplers whose canvas is the whole answer write the text too; the ``ar`` sampler has audio
written token by token like text.

Rows of a batch do not wait for each other.  Every network call serves all of them: the next token of rows in text mode, and
whatever the samplers of the others request.  When a row is done, the next prompt takes its place.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ttt.config.schema import Cache, Speak
from ttt.diffusion.constraints import constraint_of
from ttt.interfaces import Constraint, LengthRule, MaskRule, Network, SpanSampler
from ttt.registry import NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveShare, checked
from ttt.rng import generator
from ttt.sampling.decoder.checks import check_answer_settings, check_constraint, check_prompts, check_together
from ttt.sampling.decoder.order import checked_order
from ttt.sampling.decoder.session import Session, next_token, open_session
from ttt.sampling.decoder.spans import spans_of
from ttt.sampling.decoder.state import DecoderRow, SamplerRun
from ttt.sampling.samplers.allowed import AllowedIds, AnswerConstraint, SpanConstraint
from ttt.sampling.samplers.length import UntilEoa
from ttt.sampling.samplers.logits import choose_text
from ttt.sampling.samplers.request import Listener, SpanRequest
from ttt.sampling.samplers.steps import Block
from ttt.text.forms import SPEECH
from ttt.types import CallKind, Generation, LogitAlignment, LogitsRequest, Prompt


@checked
@dataclass(frozen=True)
class DecodeSettings:
    """How answers are decoded, the sampler's own settings aside (the keys of `ttt.config.schema.EvalSection`).

    ``strict``: text mode writes text ids only; a span holds codes and ends with the end token that fits its opening token;
    nothing goes beyond ``max_tokens``.  False reproduces the official TtT program, quirks included (inference_TtT.py): any
    id may be written anywhere, blocks are written whole, and ``top_k`` or ``top_p`` at temperature 0 draw text at
    temperature 1 (else temperature 0 takes the likeliest token, whatever they say).  ``cache``: see
    `ttt.sampling.decoder.session.Session`.  ``speak``: see `ttt.sampling.decoder.order`.  ``constraint``: which codes may
    stand at which place of a span (needs ``strict``; None: any code).  ``batch_tokens``: see `Decoder.rows_together`.
    """

    max_tokens: PositiveInt = 512
    temperature: NonNegativeFloat = 0.0
    top_k: NonNegativeInt = 0
    top_p: PositiveShare = 1.0
    min_text_tokens_after_audio: NonNegativeInt = 0
    strict: bool = True
    cache: Cache = "exact"
    seed: int = 1
    speak: Speak = "free"
    length: LengthRule = field(default_factory=UntilEoa)
    constraint: Constraint | None = None
    batch_tokens: NonNegativeInt = 0
    logit_alignment: LogitAlignment = "same"


@dataclass(frozen=True)
class DecodeEvent:
    """Final tokens of one row, or its end.

    ``row``: number of the prompt.  ``kind``: "text" (one token), "block" (audio, or a block of a whole answer) or "end"
    (``reason``: "im_end", "eos", "length").  ``ids``: the tokens.  ``scores``: of tokens written one by one, their
    probabilities among what was allowed there, before temperature; only with a listener (``on_commit``).
    """

    row: int
    kind: str
    ids: tuple[int, ...]
    reason: str = ""
    scores: tuple[float, ...] = ()


class Decoder:
    """Answers prompts with one model, attention mask and sampler.

    `generate` returns whole answers, `answers` each as soon as it has ended; `events` is the same as a stream of final
    tokens.  Answers do not depend on which prompts are decoded together.
    """

    def __init__(
        self, model: Network, mask: MaskRule, sampler: SpanSampler, settings: DecodeSettings | None = None
    ) -> None:
        self.model, self.mask, self.sampler = model, mask, sampler
        self.settings = settings or DecodeSettings()
        self.vocab = model.tokenizer.vocab
        if sampler.canvas == "answer":
            check_answer_settings(self.settings, DecodeSettings())
        constraint = self.settings.constraint
        if self.vocab.codes_together > 1:
            check_together(self.vocab, sampler, self.settings.strict)
            constraint = constraint_of(constraint)
        self._allowed_ids = AllowedIds.of(model, self.settings.strict, constraint)
        check_constraint(self._allowed_ids.constraint, self.vocab, sampler, self.settings.length)
        self._order = checked_order(
            self._allowed_ids, model.tokenizer, self.settings.length, self.settings.strict, self.settings.speak, sampler,
            self.settings.min_text_tokens_after_audio,
        )  # fmt: skip
        self.calls: dict[CallKind, int] = {"ar": 0, "diffusion": 0}
        self._row_calls: list[dict[str, int]] = []
        self._shares: list[float] = []
        self._admitted_s: list[float] = []
        self._elapsed_s = 0.0
        self._on_remask: Listener | None = None

    @torch.no_grad()  # not inference_mode: the backbone keeps tensors between calls, and training may follow
    def events(
        self, prompts: Sequence[Prompt], on_commit: Listener | None = None, on_remask: Listener | None = None,
        batch_size: int = 0,
    ) -> Generator[DecodeEvent, None, None]:  # fmt: skip
        """Text tokens and audio blocks as soon as they are final; those of different rows are mixed.

        ``on_commit`` hears what each call of a sampler wrote, ``on_remask`` what it predicted and masked again.  At most
        ``batch_size`` prompts (0: all) are decoded at a time, which changes no answer.
        """
        was_training = self.model.training
        self.model.eval()
        self.model.prepare()
        self._on_remask = on_remask
        try:
            yield from self._events(prompts, on_commit, batch_size)
        finally:
            self.model.train(was_training)

    def rows_together(self, longest: int, batch_size: int) -> int:
        """How many prompts of at most ``longest`` tokens are decoded at a time: ``batch_size``, or as many as
        ``settings.batch_tokens`` (0: no bound) has room for with ``max_tokens`` of each answer; at least one.
        """
        bound = self.settings.batch_tokens
        return max(1, min(batch_size, bound // (longest + self.settings.max_tokens))) if bound else batch_size

    def calls_of(self, row: int) -> dict[str, int]:
        """Network calls that a prompt has taken part in so far, by "ar" and "diffusion"."""
        return dict(self._row_calls[row])

    def seconds_of(self, row: int) -> float:
        """A prompt's share of the time of the network calls that `answers` has made so far."""
        return self._elapsed_s * self._shares[row] / (sum(self._shares) or 1.0)

    def generate(self, prompts: Sequence[Prompt], tracer: Any = None, batch_size: int = 0) -> list[Generation]:
        """One `Generation` per prompt, in order; its ``seconds`` are the row's share of the time of its network calls.

        ``tracer``: a `ttt.sampling.trace.record.Tracer`, which records every step.  ``batch_size``: see `events`.
        """
        made = dict(self.answers(prompts, tracer, batch_size))
        return [replace(made[row], seconds=self.seconds_of(row)) for row in range(len(prompts))]

    def answers(
        self, prompts: Sequence[Prompt], tracer: Any = None, batch_size: int = 0
    ) -> Generator[tuple[int, Generation], None, None]:
        """(number of the prompt, its answer) as soon as each has ended, with its share of the seconds until then."""
        started, self._elapsed_s = time.perf_counter(), 0.0
        ids: list[list[int]] = [[] for _ in prompts]
        first: dict[int, float] = {}
        watched = self.events if tracer is None else partial(tracer.watch, self)
        with contextlib.closing(watched(prompts, batch_size=batch_size)) as events:
            for event in events:
                row = event.row
                ids[row].extend(event.ids)
                if event.kind == "block" and row not in first:
                    first[row] = time.perf_counter() - self._admitted_s[row]
                if event.kind == "end":
                    self._elapsed_s = time.perf_counter() - started
                    yield row, Generation(
                        uid=prompts[row].uid, ids=tuple(ids[row]), spans=spans_of(ids[row], self.model.tokenizer),
                        calls=self.calls_of(row), seconds=self.seconds_of(row), first_block_s=first.get(row), stopped=event.reason,
                    )  # fmt: skip
        self._elapsed_s = time.perf_counter() - started

    def _events(self, prompts: Sequence[Prompt], on_commit: Listener | None, batch_size: int) -> Iterator[DecodeEvent]:
        s = self.settings
        self.calls = {"ar": 0, "diffusion": 0}
        self._row_calls = [{"ar": 0, "diffusion": 0} for _ in prompts]
        self._shares, self._admitted_s = [0.0] * len(prompts), [0.0] * len(prompts)
        longest = max((len(p.ids) for p in prompts), default=0)
        slots = min(len(prompts), self.rows_together(longest, batch_size or len(prompts)))
        session = open_session(
            self.model, self.mask, cache=s.cache, room=s.max_tokens + 64, slots=slots, logit_alignment=s.logit_alignment
        )
        session.reserve(longest + s.max_tokens + 64)
        check_prompts(self.model, prompts, self.sampler, s.max_tokens)
        first_mode = "text" if self.sampler.canvas == "span" else "audio"
        waiting, free = deque(enumerate(prompts)), list(range(slots))
        rows: list[DecoderRow] = []
        runs: list[SamplerRun] = []
        while waiting or rows:
            while waiting and free:
                number, prompt = waiting.popleft()
                gen = generator(s.seed, f"decode/{prompt.uid}")
                row = DecoderRow(number, free.pop(0), gen, first_mode, known=prompt.known)
                rows.append(row)
                session.admit(row.slot, prompt)
                self._admitted_s[number] = time.perf_counter()
                if self.sampler.canvas == "speech":
                    row.num_written, row.last_span = 1, True
                    session.append(row.slot, torch.tensor([self.vocab.soa_last_id]))
                    yield DecodeEvent(number, "text", (self.vocab.soa_last_id,))
            opened = [r for r in rows if r.mode == "audio"]
            if opened:
                runs.append(self._start_sampler(session, opened, on_commit))
                yield from self._advance(session, runs[-1], None)
            yield from self._write_forced(session, [r for r in rows if r.mode == "text"])
            yield from self._call(session, [r for r in rows if r.mode == "text"], runs, on_commit is not None)
            runs = [run for run in runs if run.requests]
            free += [r.slot for r in rows if r.mode == "done"]
            rows = [r for r in rows if r.mode != "done"]

    def _call(
        self, session: Session, text: list[DecoderRow], runs: list[SamplerRun], scored: bool
    ) -> Iterator[DecodeEvent]:
        """One network call for all rows: the next tokens of those in text mode, and what the samplers request."""
        by_state: dict[str, list[DecoderRow]] = {}
        for row in text:
            by_state.setdefault(self._order.state(row), []).append(row)
        by_state = dict(sorted(by_state.items(), key=lambda item: item[0] == SPEECH))
        requests = [next_token([r.slot for r in rows], self._order.ids(state)) for state, rows in by_state.items()]
        requests += [request for run in runs for request in run.requests]
        if not requests:
            return
        filling = [r for run in runs for r in run.members(run.requests)]
        self._count("ar", [*text, *(r for run in runs for r in run.members(run.requests, "ar"))])
        self._count("diffusion", [r for run in runs for r in run.members(run.requests, "diffusion")])
        for row in (*text, *filling):
            self._shares[row.number] += 1 / (len(text) + len(filling))
        answers = iter(session.run(requests))
        for state, rows in by_state.items():
            yield from self._write(session, rows, next(answers)[:, 0], scored, state)
        for run in runs:
            yield from self._advance(session, run, [next(answers) for _ in run.requests])

    # ------------------------------------------------------------------------------------------- token by token

    def _write(self, session: Session, rows: list[DecoderRow], logits: Tensor, scored: bool, state: str) -> Iterator[DecodeEvent]:
        """Choose one token for each row from logits [R, ids]; all rows are in one ``state`` (`Order.state`).

        Where codes stand together (`ttt.interfaces.CodePattern`) the same logits give all codes of a position.
        """
        together = self.vocab.codes_together
        yield from self._write_one(session, rows, logits, scored, state == SPEECH, self._order.ids(state))
        while begun := [n for n, row in enumerate(rows) if row.mode == "text" and row.in_span and row.span_codes % together]:
            rows, logits = [rows[n] for n in begun], logits[begun]
            yield from self._write_one(session, rows, logits, scored, True, self._order.ids(state))

    def _write_one(
        self, session: Session, rows: list[DecoderRow], logits: Tensor, scored: bool, inside: bool, ids: slice | None
    ) -> Iterator[DecodeEvent]:
        s, v = self.settings, self.vocab
        first = 0 if ids is None else ids.start
        if s.strict:
            allowed = torch.stack([self._order.allowed(r) for r in rows])
            logits = logits.masked_fill(~allowed[:, ids].to(logits.device), -torch.inf)
        for n, row in enumerate(rows):
            if row.text_tokens_owed > 0 and not inside:
                logits[n, v.im_end_id - first] = -torch.inf
        chosen = self.choose(logits, rows, inside, first)
        scores: list[tuple[float, ...]] = [()] * len(rows)
        if scored:
            scores = [(p,) for p in logits.softmax(-1).gather(1, chosen[:, None] - first)[:, 0].tolist()]
        for row, token, score in zip(rows, chosen.tolist(), scores, strict=True):
            yield from self._commit(session, row, token, inside, score)

    def _write_forced(self, session: Session, rows: list[DecoderRow]) -> Iterator[DecodeEvent]:
        """Write tokens where only one id is allowed, without a network call."""
        for row in rows:
            while row.mode == "text" and (token := self._order.forced(row)) is not None:
                yield from self._commit(session, row, token, row.in_span, ())

    def _commit(
        self, session: Session, row: DecoderRow, token: int, inside: bool, score: tuple[float, ...]
    ) -> Iterator[DecodeEvent]:  # fmt: skip
        """Append one token, which stands ``inside`` a span or not, and go to the mode it leads to."""
        s, v = self.settings, self.vocab
        row.num_written, row.last_token = row.num_written + 1, token
        ended_span = self._advance_autoregressive(row, token) if self.sampler.autoregressive else False
        session.append(row.slot, torch.tensor([token]), closed=ended_span)
        opened_by_itself = row.in_span and bool(v.is_audio(token))  # a form without delimiters
        yield DecodeEvent(row.number, "block" if inside or opened_by_itself else "text", (token,), scores=score)
        if token in (v.soa_id, v.soa_last_id) and not self.sampler.autoregressive:
            row.mode, row.text_tokens_owed, row.last_span = "audio", 0, token == v.soa_last_id
        elif token == v.im_end_id and (not inside or v.rules.text_first):
            yield self._done(row, "im_end")
            return
        elif row.text_tokens_owed > 0 and not inside:
            row.text_tokens_owed -= 1
        if row.num_written >= s.max_tokens:
            yield self._done(row, "length")

    def choose(self, logits: Tensor, rows: Sequence[DecoderRow], inside: bool, first: int) -> Tensor:
        """Ids i64 [R] of the next tokens, in text or ``inside`` spans; column 0 of logits [R, ids] stands for id ``first``."""
        how: Any = self.sampler if inside else self.settings  # audio tokens may be drawn with settings of their own
        temperature = how.temperature
        if not self.settings.strict and not inside and temperature == 0 and (how.top_k > 0 or how.top_p < 1):
            temperature = 1.0  # as inference_TtT.py of the official program: top-k or top-p alone turn sampling on
        return choose_text(logits, temperature, how.top_k, how.top_p, [r.gen for r in rows]) + first

    def _advance_autoregressive(self, row: DecoderRow, token: int) -> bool:
        v = self.vocab
        if token in (v.soa_id, v.soa_last_id):
            row.in_span, row.last_span, row.span_codes, row.text_tokens_owed = True, token == v.soa_last_id, 0, 0
        elif row.in_span:
            if token in (v.eoa_id, v.eoa_last_id):
                row.in_span = False
                row.text_tokens_owed = max(row.text_tokens_owed, self.settings.min_text_tokens_after_audio)
                return True
            row.span_codes += 1
        elif not v.rules.delimited and v.is_audio(token):
            row.in_span, row.last_span, row.span_codes = True, True, 1
        return False

    def _done(self, row: DecoderRow, reason: str) -> DecodeEvent:
        row.mode = "done"
        return DecodeEvent(row.number, "end", (), reason)

    # ------------------------------------------------------------------------------------------- by a sampler

    def _start_sampler(self, session: Session, rows: list[DecoderRow], on_commit: Listener | None) -> SamplerRun:
        """Have the sampler fill the rows that are in audio mode."""
        s, v = self.settings, self.vocab
        whole = self.sampler.canvas == "answer"
        both = (v.eoa_id, v.eoa_last_id)
        ends = [((v.eoa_last_id,) if r.last_span else (v.eoa_id,)) if s.strict else both for r in rows]
        numbers = [r.number for r in rows]
        ids = self._allowed_ids.answer_range if whole else self._allowed_ids.span_range
        allowed = None
        if s.strict:
            a = self._allowed_ids
            holes_of_text = not self.sampler.arch  # holes of the architecture valle are frames
            by_row = [
                (a.text if r.known and holes_of_text else a.answer) if whole else a.span(end)
                for r, end in zip(rows, ends, strict=True)
            ]
            allowed = torch.stack(by_row)[:, ids].to(session.device)
        sampler_run = SamplerRun(rows)
        # A span's end token takes one of the tokens that are left.
        budget = [s.max_tokens - r.num_written - 1 for r in rows]
        limits = [min(s.length.max_codes(r.last_span), b) for r, b in zip(rows, budget, strict=True)]
        constraint: SpanConstraint | AnswerConstraint | None = None
        if self._allowed_ids.constraint is not None:
            in_span = self._allowed_ids.constraint.columns(ids, session.device)
            limits = [in_span.codes_within(n) for n in limits]
            constraint = AnswerConstraint(in_span) if whole else in_span
        request = SpanRequest(
            run=partial(self._run_alone, session, sampler_run), mask_id=v.mask_id, allowed=allowed,
            end_ids=[(v.im_end_id,)] * len(rows) if whole else ends,
            exact=[s.length.exact_codes(r.last_span) if s.strict and not whole else None for r in rows],
            limit=[s.max_tokens] * len(rows) if whole else limits,
            gens=[r.gen for r in rows], forbidden=() if whole else (v.im_end_id,), strict=s.strict,
            on_commit=_renumbered(on_commit, numbers), on_remask=_renumbered(self._on_remask, numbers),
            force_end=not whole, pad_id=v.pad_id if whole else None, slots=[r.slot for r in rows], ids=ids,
            codebooks=v.num_codebooks, constraint=constraint, known=[r.known for r in rows],
        )  # fmt: skip
        sampler_run.start(self.sampler, request)
        for row in rows:
            row.mode = "filling"
            session.append(row.slot, _NO_IDS)  # the tails of this sampler begin here
        return sampler_run

    def _run_alone(self, session: Session, run: SamplerRun, requests: Sequence[LogitsRequest]) -> list[Tensor]:
        """The network calls of samplers that make them themselves (`SpanSampler.span`): other rows have to wait."""
        counted = [r for r in requests if not r.guidance]
        for kind in self.calls:
            self._count(kind, run.members(counted, kind))
        members = run.members(counted)
        for row in members:
            self._shares[row.number] += 1 / len(members)
        return session.run(requests)

    def _advance(
        self, session: Session, run: SamplerRun, logits: Sequence[Tensor] | None
    ) -> Iterator[DecodeEvent]:
        """Let a sampler go on with the logits that it requested (None: it starts), and commit the blocks it yields."""
        whole = self.sampler.canvas == "answer"
        for block in run.advance(logits):
            row = run.rows[block.row]
            if block.ended:
                run.unended.discard(block.row)
            yield from self._answer_block(session, row, block) if whole else self._span_block(session, row, block)
        if run.requests:
            return
        for row in (run.rows[n] for n in sorted(run.unended)):
            row.mode = "audio"
            if whole or row.num_written >= self.settings.max_tokens:
                yield self._done(row, "filled" if row.known and whole else "length")

    def _span_block(self, session: Session, row: DecoderRow, block: Block) -> Iterator[DecodeEvent]:
        s, v = self.settings, self.vocab
        ids = block.ids
        # The sampler has cut by the order of its end tokens; the answer ends at the first one of any kind.
        if block.ended and not s.strict:
            at = torch.isin(ids, torch.tensor((v.eoa_id, v.eoa_last_id), device=ids.device)).nonzero()
            ids = ids[: int(at[0]) + 1]
        session.append(row.slot, ids, closed=s.strict and block.ended, in_tail=not block.ended)
        row.num_written += len(ids)
        yield DecodeEvent(row.number, "block", tuple(ids.tolist()))
        if block.ended:
            row.mode = "text"
            row.text_tokens_owed = max(row.text_tokens_owed, s.min_text_tokens_after_audio)
            if self.sampler.canvas == "speech":  # the span was the answer
                yield self._done(row, "eos")
            elif row.num_written >= s.max_tokens:
                yield self._done(row, "length")

    def _answer_block(self, session: Session, row: DecoderRow, block: Block) -> Iterator[DecodeEvent]:
        ids = block.ids
        if block.ended:  # some samplers write on behind the end when `official` is set
            ids = ids[: int((ids == self.vocab.im_end_id).nonzero()[0]) + 1]
        session.append(row.slot, ids, in_tail=True)
        yield DecodeEvent(row.number, "block", tuple(ids.tolist()))
        if block.ended:
            yield self._done(row, "im_end")

    def _count(self, kind: CallKind, rows: Sequence[DecoderRow]) -> None:
        self.calls[kind] += bool(rows)
        for row in rows:
            self._row_calls[row.number][kind] += 1


_NO_IDS = torch.empty(0, dtype=torch.long)


def _renumbered(listener: Listener | None, rows: Sequence[int]) -> Listener | None:
    """A listener for a sampler whose rows 0, 1, ... are the prompts ``rows``."""
    return None if listener is None else lambda n, at, ids, score: listener(rows[n], at, ids, score)
