"""Text until a token opens a span, the span by the sampler, back to text: batched, cached, streaming.

Every row goes its own way.  Each network call serves whatever the rows want next, one token of text here and a block of a
span there, and a row that is done makes room for the next prompt.  A sampler whose canvas is the whole answer writes
everything itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ttt.config.schema import Cache, Speak
from ttt.interfaces import Constraint, LengthRule, MaskRule, SpanSampler
from ttt.model.lm import SpeechTextLM
from ttt.registry import NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveShare, checked
from ttt.rng import generator
from ttt.sampling.decoder.checks import check_answer_settings, check_places, check_prompts
from ttt.sampling.decoder.filling import Filling, Row
from ttt.sampling.decoder.order import checked_order
from ttt.sampling.decoder.session import Session, next_token, open_session
from ttt.sampling.decoder.spans import spans_of
from ttt.sampling.samplers.allowed import Allowed, Grid, Places
from ttt.sampling.samplers.length import UntilEoa
from ttt.sampling.samplers.logits import choose_text
from ttt.sampling.samplers.request import Listener, SpanRequest
from ttt.sampling.samplers.steps import Block
from ttt.text.forms import SPEECH
from ttt.types import CallKind, Generation, LogitsRequest, Prompt


@checked
@dataclass(frozen=True)
class DecodeSettings:
    """Everything but model, prompts and sampler (see `ttt.config.schema.EvalSection`).

    ``strict``: text mode writes text ids only, a span writes codes and the end token that fits its opening token, the first
    end token of any kind ends it, and nothing goes beyond ``max_tokens``.  False reproduces the official code, quirks
    included (spec of TtT, sections 8 and 12).  ``cache``: see `ttt.sampling.decoder.session.Session`.  ``speak``: see
    `ttt.sampling.decoder.order`.  ``constraint``: what may stand at which place of a span (strict mode; None: any code).
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


@dataclass(frozen=True)
class Event:
    """Something settled in one row: ``kind`` is "text", "block" or "end"; ``ids`` are final.

    ``row``: number of the prompt.  ``scores``: probabilities of tokens written one by one (text; audio of the ar sampler)
    among what was allowed there, before temperature; only when somebody listens (``on_commit``).
    """

    row: int
    kind: str
    ids: tuple[int, ...]
    reason: str = ""
    scores: tuple[float, ...] = ()


class Decoder:
    """Decodes prompts; `events` streams, `generate` collects."""

    def __init__(
        self, model: SpeechTextLM, mask: MaskRule, sampler: SpanSampler, settings: DecodeSettings | None = None
    ) -> None:
        self.model, self.mask, self.sampler = model, mask, sampler
        self.settings = settings or DecodeSettings()
        self.vocab = model.tokenizer.vocab
        if sampler.canvas == "answer":
            check_answer_settings(self.settings, DecodeSettings())
        self._may = Allowed.of(model, self.settings.strict, self.settings.constraint)
        check_places(self._may.places, self.vocab, sampler, self.settings.length)
        self._order = checked_order(
            self._may, model.tokenizer, self.settings.length, self.settings.strict, self.settings.speak, sampler,
            self.settings.min_text_tokens_after_audio,
        )  # fmt: skip
        self.calls: dict[CallKind, int] = {"ar": 0, "diffusion": 0}
        self._row_calls: list[dict[str, int]] = []
        self._shares: list[float] = []
        self._admitted_s: list[float] = []
        self._on_remask: Listener | None = None

    @torch.no_grad()  # not inference_mode: the backbone keeps tensors between calls, and training may follow
    def events(
        self, prompts: Sequence[Prompt], on_commit: Listener | None = None, on_remask: Listener | None = None,
        batch_size: int = 0,
    ) -> Generator[Event, None, None]:  # fmt: skip
        """Stream of settled text tokens and audio blocks; rows interleave.

        ``on_commit`` hears what each call of a sampler wrote, ``on_remask`` what it predicted and took back.  At most
        ``batch_size`` prompts (0: all) are in work at a time; what a prompt gets does not depend on it.
        """
        was_training = self.model.training
        self.model.eval()
        self.model.prepare()
        self._on_remask = on_remask
        try:
            yield from self._events(prompts, on_commit, batch_size)
        finally:
            self.model.train(was_training)

    def calls_of(self, row: int) -> dict[str, int]:
        """Network calls that a prompt has taken part in so far, by "ar" and "diffusion"."""
        return dict(self._row_calls[row])

    def generate(self, prompts: Sequence[Prompt], tracer: Any = None, batch_size: int = 0) -> list[Generation]:
        """One `Generation` per prompt, in order; the wall time of each call is shared by the rows that took part.

        ``tracer``: a `ttt.sampling.trace.record.Tracer`, which writes down every step.  ``batch_size``: see `events`.
        """
        started = time.perf_counter()
        ids: list[list[int]] = [[] for _ in prompts]
        first: list[float | None] = [None] * len(prompts)
        stopped = [""] * len(prompts)
        watched = self.events if tracer is None else partial(tracer.watch, self)
        for event in watched(prompts, batch_size=batch_size):
            ids[event.row].extend(event.ids)
            if event.kind == "block" and first[event.row] is None:
                first[event.row] = time.perf_counter() - self._admitted_s[event.row]
            if event.kind == "end":
                stopped[event.row] = event.reason
        seconds = time.perf_counter() - started
        whole = sum(self._shares) or 1.0
        return [
            Generation(
                uid=p.uid, ids=tuple(i), spans=spans_of(i, self.model.tokenizer), calls=c, seconds=seconds * w / whole,
                first_block_s=f, stopped=s,
            )
            for p, i, c, w, f, s in zip(prompts, ids, self._row_calls, self._shares, first, stopped, strict=True)
        ]  # fmt: skip

    def _events(self, prompts: Sequence[Prompt], on_commit: Listener | None, batch_size: int) -> Iterator[Event]:
        s = self.settings
        self.calls = {"ar": 0, "diffusion": 0}
        self._row_calls = [{"ar": 0, "diffusion": 0} for _ in prompts]
        self._shares, self._admitted_s = [0.0] * len(prompts), [0.0] * len(prompts)
        slots = min(batch_size or len(prompts), len(prompts))
        session = open_session(self.model, self.mask, cache=s.cache, room=s.max_tokens + 64, slots=slots)
        session.reserve(max((len(p.ids) for p in prompts), default=0) + s.max_tokens + 64)
        check_prompts(self.model, prompts, self.sampler)
        first_mode = "text" if self.sampler.canvas == "span" else "audio"
        waiting, free = deque(enumerate(prompts)), list(range(slots))
        rows: list[Row] = []
        fillings: list[Filling] = []
        while waiting or rows:
            while waiting and free:
                number, prompt = waiting.popleft()
                rows.append(Row(number, free.pop(0), generator(s.seed, f"decode/{prompt.uid}"), first_mode, known=prompt.known))
                session.admit(rows[-1].slot, prompt)
                self._admitted_s[number] = time.perf_counter()
                if self.sampler.canvas == "speech":
                    rows[-1].new, rows[-1].last = 1, True
                    session.append(rows[-1].slot, torch.tensor([self.vocab.soa_last_id]))
                    yield Event(number, "text", (self.vocab.soa_last_id,))
            opened = [r for r in rows if r.mode == "audio"]
            if opened:
                fillings.append(self._fill(session, opened, on_commit))
                yield from self._advance(session, fillings[-1], None)
            yield from self._write_forced(session, [r for r in rows if r.mode == "text"])
            yield from self._call(session, [r for r in rows if r.mode == "text"], fillings, on_commit is not None)
            fillings = [f for f in fillings if f.requests]
            free += [r.slot for r in rows if r.mode == "done"]
            rows = [r for r in rows if r.mode != "done"]

    def _call(self, session: Session, text: list[Row], fillings: list[Filling], scored: bool) -> Iterator[Event]:
        """One network call for everybody, and what follows from it."""
        by_state: dict[str, list[Row]] = {}
        for row in text:
            by_state.setdefault(self._order.state(row), []).append(row)
        by_state = dict(sorted(by_state.items(), key=lambda item: item[0] == SPEECH))
        requests = [next_token([r.slot for r in rows], self._order.ids(state)) for state, rows in by_state.items()]
        requests += [request for f in fillings for request in f.requests]
        if not requests:
            return
        filling = [r for f in fillings for r in f.members(f.requests)]
        self._count("ar", [*text, *(r for f in fillings for r in f.members(f.requests, "ar"))])
        self._count("diffusion", [r for f in fillings for r in f.members(f.requests, "diffusion")])
        for row in (*text, *filling):
            self._shares[row.number] += 1 / (len(text) + len(filling))
        answers = iter(session.run(requests))
        # Listed before the first token is written: what follows changes the requests of each filling.
        texts = [(state, rows, next(answers)[:, 0]) for state, rows in by_state.items()]
        blocks = [(f, [next(answers) for _ in f.requests]) for f in fillings]
        for state, rows, logits in texts:
            yield from self._write(session, rows, logits, scored, state)
        for f, parts in blocks:
            yield from self._advance(session, f, parts)

    # ------------------------------------------------------------------------------------------- token by token

    def _write(self, session: Session, rows: list[Row], logits: Tensor, scored: bool, state: str) -> Iterator[Event]:
        """One token for each row; all of them stand in one state: in text, say, or in a span written token by token."""
        s, v = self.settings, self.vocab
        inside, ids = state == SPEECH, self._order.ids(state)
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

    def _write_forced(self, session: Session, rows: list[Row]) -> Iterator[Event]:
        """Tokens that nothing else could take the place of: no network is asked for them."""
        for row in rows:
            while row.mode == "text" and (token := self._order.forced(row)) is not None:
                yield from self._commit(session, row, token, row.open, ())

    def _commit(
        self, session: Session, row: Row, token: int, inside: bool, score: tuple[float, ...]
    ) -> Iterator[Event]:  # fmt: skip
        """Append one token, ``inside`` a span or not, and see where the row stands now."""
        s, v = self.settings, self.vocab
        row.new, row.token = row.new + 1, token
        ended_span = self._advance_autoregressive(row, token) if self.sampler.autoregressive else False
        session.append(row.slot, torch.tensor([token]), closed=ended_span)
        opened_by_itself = row.open and bool(v.is_audio(token))  # a form without delimiters
        yield Event(row.number, "block" if inside or opened_by_itself else "text", (token,), scores=score)
        if token in (v.soa_id, v.soa_last_id) and not self.sampler.autoregressive:
            row.mode, row.text_tokens_owed, row.last = "audio", 0, token == v.soa_last_id
        elif token == v.im_end_id and (not inside or v.rules.text_first):
            yield self._done(row, "im_end")
            return
        elif row.text_tokens_owed > 0 and not inside:
            row.text_tokens_owed -= 1
        if row.new >= s.max_tokens:
            yield self._done(row, "length")

    def choose(self, logits: Tensor, rows: Sequence[Row], inside: bool, first: int) -> Tensor:
        """Ids i64 [R] of the next tokens, in text or ``inside`` spans; column 0 of logits [R, ids] stands for id ``first``."""
        how: Any = self.sampler if inside else self.settings  # audio tokens may be drawn with settings of their own
        return choose_text(logits, how.temperature, how.top_k, how.top_p, [r.gen for r in rows]) + first

    def _advance_autoregressive(self, row: Row, token: int) -> bool:
        v = self.vocab
        if token in (v.soa_id, v.soa_last_id):
            row.open, row.last, row.codes, row.text_tokens_owed = True, token == v.soa_last_id, 0, 0
        elif row.open:
            if token in (v.eoa_id, v.eoa_last_id):
                row.open = False
                row.text_tokens_owed = max(row.text_tokens_owed, self.settings.min_text_tokens_after_audio)
                return True
            row.codes += 1
        elif not v.rules.delimited and v.is_audio(token):
            row.open, row.last, row.codes = True, True, 1
        return False

    def _done(self, row: Row, reason: str) -> Event:
        row.mode = "done"
        return Event(row.number, "end", (), reason)

    # ------------------------------------------------------------------------------------------- by a sampler

    def _fill(self, session: Session, rows: list[Row], on_commit: Listener | None) -> Filling:
        """Set the sampler to work on rows whose spans opened together, or on whole answers."""
        s, v = self.settings, self.vocab
        whole = self.sampler.canvas == "answer"
        both = (v.eoa_id, v.eoa_last_id)
        ends = [((v.eoa_last_id,) if r.last else (v.eoa_id,)) if s.strict else both for r in rows]
        numbers = [r.number for r in rows]
        ids = self._may.in_answer if whole else self._may.in_span
        allowed = None
        if s.strict:
            may = [self._may.answer if whole else self._may.span(end) for end in ends]
            allowed = torch.stack(may)[:, ids].to(session.device)
        filling = Filling(rows)
        # A span's end token takes one of the tokens that are left.
        budget = [s.max_tokens - r.new - 1 for r in rows]
        limits = [min(s.length.max_codes(r.last), b) for r, b in zip(rows, budget, strict=True)]
        places = self._may.places
        at: Places | Grid | None = None
        if places is not None:
            at, limits = places.columns(ids, session.device), [places.codes_within(n) for n in limits]
            at = Grid(at) if whole else at
        request = SpanRequest(
            run=partial(self._run_alone, session, filling), mask_id=v.mask_id, allowed=allowed,
            end_ids=[(v.im_end_id,)] * len(rows) if whole else ends,
            exact=[s.length.exact_codes(r.last) if s.strict and not whole else None for r in rows],
            limit=[s.max_tokens] * len(rows) if whole else limits,
            gens=[r.gen for r in rows], forbidden=() if whole else (v.im_end_id,), strict=s.strict,
            on_commit=_renumbered(on_commit, numbers), on_remask=_renumbered(self._on_remask, numbers),
            force_end=not whole, pad_id=v.pad_id if whole else None, slots=[r.slot for r in rows], ids=ids,
            codebooks=v.num_codebooks, places=at, known=[r.known for r in rows],
        )  # fmt: skip
        filling.start(self.sampler, request)
        for row in rows:
            row.mode = "filling"
            session.append(row.slot, _NO_IDS)  # the tails of this sampler begin here
        return filling

    def _run_alone(self, session: Session, filling: Filling, requests: Sequence[LogitsRequest]) -> list[Tensor]:
        """The network calls of samplers that make them themselves (`SpanSampler.span`): other rows have to wait."""
        counted = [r for r in requests if not r.guidance]
        for kind in self.calls:
            self._count(kind, filling.members(counted, kind))
        members = filling.members(counted)
        for row in members:
            self._shares[row.number] += 1 / len(members)
        return session.run(requests)

    def _advance(self, session: Session, filling: Filling, answers: Sequence[Tensor] | None) -> Iterator[Event]:
        whole = self.sampler.canvas == "answer"
        for block in filling.advance(answers):
            row = filling.rows[block.row]
            if block.ended:
                filling.unended.discard(block.row)
            yield from self._answer_block(session, row, block) if whole else self._span_block(session, row, block)
        if filling.requests:
            return
        for row in (filling.rows[n] for n in sorted(filling.unended)):
            row.mode = "audio"
            if whole or row.new >= self.settings.max_tokens:
                yield self._done(row, "length")

    def _span_block(self, session: Session, row: Row, block: Block) -> Iterator[Event]:
        s, v = self.settings, self.vocab
        ids = block.ids
        if (
            block.ended and not s.strict
        ):  # the sampler cuts by the order of its end tokens; the loop at the first of any kind
            at = torch.isin(ids, torch.tensor((v.eoa_id, v.eoa_last_id), device=ids.device)).nonzero()
            ids = ids[: int(at[0]) + 1]
        session.append(row.slot, ids, closed=s.strict and block.ended, in_tail=not block.ended)
        row.new += len(ids)
        yield Event(row.number, "block", tuple(ids.tolist()))
        if block.ended:
            row.mode = "text"
            row.text_tokens_owed = max(row.text_tokens_owed, s.min_text_tokens_after_audio)
            if self.sampler.canvas == "speech":  # the span was the answer
                yield self._done(row, "eos")
            elif row.new >= s.max_tokens:
                yield self._done(row, "length")

    def _answer_block(self, session: Session, row: Row, block: Block) -> Iterator[Event]:
        ids = block.ids
        if block.ended:  # some samplers' official behaviour goes on behind the end
            ids = ids[: int((ids == self.vocab.im_end_id).nonzero()[0]) + 1]
        session.append(row.slot, ids, in_tail=True)
        yield Event(row.number, "block", tuple(ids.tolist()))
        if block.ended:
            yield self._done(row, "im_end")

    def _count(self, kind: CallKind, rows: Sequence[Row]) -> None:
        self.calls[kind] += bool(rows)
        for row in rows:
            self._row_calls[row.number][kind] += 1


_NO_IDS = torch.empty(0, dtype=torch.long)


def _renumbered(listener: Listener | None, rows: Sequence[int]) -> Listener | None:
    """A listener for a sampler that knows the rows ``rows`` as 0, 1, ..."""
    return None if listener is None else lambda n, at, ids, score: listener(rows[n], at, ids, score)
