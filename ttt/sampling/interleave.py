"""Text until a token opens a span, the span by the sampler, back to text: batched, cached, streaming.

Every row keeps its own state.  Rows in text mode take one step together until each of them waits for a span or is done;
then all waiting spans are filled together.  A sampler whose canvas is the whole answer writes everything itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ttt.errors import ConfigError
from ttt.interfaces import LengthRule, MaskRule, SpanSampler
from ttt.model.lm import SpeechTextLM
from ttt.rng import generator
from ttt.sampling.length import UntilEoa
from ttt.sampling.logits import choose_text
from ttt.sampling.session import Prompt, Session
from ttt.sampling.unmask import Listener, SpanRequest
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Generation, Span


@dataclass(frozen=True)
class DecodeSettings:
    """Everything but model, prompts and sampler (see `ttt.config.schema.EvalSection`).

    ``strict``: text mode writes text ids only, a span writes codes and the end token that fits its opening token, the first
    end token of any kind ends it, and nothing goes beyond ``max_tokens``.  False reproduces the official code, quirks
    included (spec of TtT, sections 8 and 12).
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_text_tokens_after_audio: int = 0
    strict: bool = True
    use_cache: bool = True
    seed: int = 1
    length: LengthRule = field(default_factory=UntilEoa)


@dataclass(frozen=True)
class Event:
    """Something settled in one row: ``kind`` is "text", "block" or "end"; ``ids`` are final.

    ``scores``: probabilities of tokens written one by one (text; audio of the ar sampler) among what was allowed there,
    before temperature; only when somebody listens (``on_commit``).
    """

    row: int
    kind: str
    ids: tuple[int, ...]
    reason: str = ""
    scores: tuple[float, ...] = ()


@dataclass
class _Row:
    gen: Generator
    mode: str = "text"  # text | audio | done
    last: bool = False  # the open span is the answer's last one
    open: bool = False  # inside a span that is written token by token (ar sampler)
    codes: int = 0  # codes written into the open span (ar sampler)
    enforce: int = 0  # text tokens still owed before <|im_end|> is allowed
    new: int = 0


class Decoder:
    """Decodes one batch of prompts; `events` streams, `generate` collects."""

    def __init__(
        self, model: SpeechTextLM, mask: MaskRule, sampler: SpanSampler, settings: DecodeSettings | None = None
    ) -> None:
        self.model, self.mask, self.sampler = model, mask, sampler
        self.settings = settings or DecodeSettings()
        self.vocab = model.tokenizer.vocab
        if self.settings.max_tokens < 1:
            raise ConfigError(f"eval.max_tokens: must be >= 1, got {self.settings.max_tokens}")
        if sampler.canvas == "answer":
            _check_answer_settings(self.settings)
        v = self.vocab
        ids = torch.arange(model.hf.get_output_embeddings().weight.shape[0])
        known = ids < v.size
        self._text = known & (ids < v.audio_start) & (ids != v.user_end_id) & (ids != v.im_start_id) & (ids != v.pad_id)
        self._codes = (ids >= v.code_start) & (ids < v.code_stop)
        self._answer = self._text | self._codes | (ids == v.eoa_id) | (ids == v.eoa_last_id)
        self.calls = {"ar": 0, "diffusion": 0}
        self._row_calls: list[dict[str, int]] = []
        self._on_remask: Listener | None = None

    @torch.no_grad()  # not inference_mode: the backbone keeps tensors between calls, and training may follow
    def events(
        self, prompts: Sequence[Prompt], on_commit: Listener | None = None, on_remask: Listener | None = None
    ) -> Iterator[Event]:
        """Stream of settled text tokens and audio blocks; rows in one batch interleave.

        ``on_commit`` hears what each call of a sampler wrote, ``on_remask`` what it predicted and took back.
        """
        was_training = self.model.training
        self.model.eval()
        self._on_remask = on_remask
        try:
            yield from self._events(prompts, on_commit)
        finally:
            self.model.train(was_training)

    def calls_of(self, row: int) -> dict[str, int]:
        """Network calls that a row has taken part in so far, by "ar" and "diffusion", in the batch being decoded."""
        return dict(self._row_calls[row])

    def generate(self, prompts: Sequence[Prompt], tracer: Any = None) -> list[Generation]:
        """One `Generation` per prompt, in order; ``seconds`` is the batch's wall time divided by its rows.

        ``tracer``: a `ttt.sampling.trace.Tracer`, which writes down every step.
        """
        started = time.perf_counter()
        ids: list[list[int]] = [[] for _ in prompts]
        first: list[float | None] = [None] * len(prompts)
        stopped = [""] * len(prompts)
        for event in self.events(prompts) if tracer is None else tracer.watch(self, prompts):
            ids[event.row].extend(event.ids)
            if event.kind == "block" and first[event.row] is None:
                first[event.row] = time.perf_counter() - started
            if event.kind == "end":
                stopped[event.row] = event.reason
        seconds = (time.perf_counter() - started) / max(1, len(prompts))
        return [
            Generation(
                uid=p.uid, ids=tuple(i), spans=spans_of(i, self.model.tokenizer), calls=c, seconds=seconds,
                first_block_s=f, stopped=s,
            )
            for p, i, c, f, s in zip(prompts, ids, self._row_calls, first, stopped, strict=True)
        ]  # fmt: skip

    def _events(self, prompts: Sequence[Prompt], on_commit: Any) -> Iterator[Event]:
        if not prompts:
            return
        s = self.settings
        session = Session(self.model, self.mask, prompts, s.use_cache, room=s.max_tokens + 64)
        rows = [_Row(generator(s.seed, f"decode/{p.uid}")) for p in prompts]
        self._row_calls = [{"ar": 0, "diffusion": 0} for _ in prompts]
        self.calls = {"ar": 0, "diffusion": 0}
        if self.sampler.canvas == "answer":
            yield from self._fill_answers(session, rows, on_commit)
            return
        while any(r.mode != "done" for r in rows):
            text = [i for i, r in enumerate(rows) if r.mode == "text"]
            if text:
                yield from self._text_step(session, rows, text, on_commit is not None)
                continue
            yield from self._fill_spans(session, rows, [i for i, r in enumerate(rows) if r.mode == "audio"], on_commit)

    def _text_step(self, session: Session, rows: list[_Row], active: list[int], scored: bool) -> Iterator[Event]:
        s, v = self.settings, self.vocab
        index = torch.tensor(active)
        logits = session.logits(index, torch.empty((len(active), 0), dtype=torch.long), last=1)[:, 0]  # [R, V]
        self._count("ar", active)
        if s.strict:
            allowed = torch.stack([self._allowed(rows[i]) for i in active]).to(logits.device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        for n, i in enumerate(active):
            if rows[i].enforce > 0:
                logits[n, v.im_end_id] = -torch.inf
        chosen = self._choose(logits, [rows[i] for i in active])
        scores: list[tuple[float, ...]] = [()] * len(active)
        if scored:
            scores = [(p,) for p in logits.softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()]
        for i, token, score in zip(active, chosen.tolist(), scores, strict=True):
            row = rows[i]
            inside = row.open
            row.new += 1
            ended_span = False
            if self.sampler.autoregressive:
                ended_span = self._advance_autoregressive(row, token)
            session.append(i, torch.tensor([token]), closed=ended_span)
            yield Event(i, "block" if inside else "text", (token,), scores=score)
            if token in (v.soa_id, v.soa_last_id) and not self.sampler.autoregressive:
                row.mode, row.enforce, row.last = "audio", 0, token == v.soa_last_id
            elif token == v.im_end_id and not inside:
                row.mode = "done"
                yield Event(i, "end", (), "im_end")
                continue
            elif row.enforce > 0 and not inside:
                row.enforce -= 1
            if row.new >= s.max_tokens:
                row.mode = "done"
                yield Event(i, "end", (), "length")

    def _choose(self, logits: Tensor, rows: list[_Row]) -> Tensor:
        s = self.settings
        if not self.sampler.autoregressive:
            return choose_text(logits, s.temperature, s.top_k, s.top_p, [r.gen for r in rows])
        audio = self.sampler  # audio tokens may be drawn with settings of their own
        out = []
        for n, row in enumerate(rows):
            how: Any = audio if row.open else s
            out.append(choose_text(logits[n : n + 1], how.temperature, how.top_k, how.top_p, [row.gen]))
        return torch.cat(out)

    def _advance_autoregressive(self, row: _Row, token: int) -> bool:
        v = self.vocab
        if token in (v.soa_id, v.soa_last_id):
            row.open, row.last, row.codes, row.enforce = True, token == v.soa_last_id, 0, 0
        elif row.open:
            if token in (v.eoa_id, v.eoa_last_id):
                row.open = False
                row.enforce = max(row.enforce, self.settings.min_text_tokens_after_audio)
                return True
            row.codes += 1
        return False

    def _allowed(self, row: _Row) -> Tensor:
        if not row.open:
            return self._text
        end = self.vocab.eoa_last_id if row.last else self.vocab.eoa_id
        length = self.settings.length
        exact = length.exact_codes(row.last)
        only_end = row.codes >= (length.max_codes(row.last) if exact is None else exact)
        allowed = torch.zeros_like(self._codes) if only_end else self._codes.clone()
        allowed[end] = exact is None or only_end
        return allowed

    def _fill_spans(self, session: Session, rows: list[_Row], active: list[int], on_commit: Any) -> Iterator[Event]:
        s, v = self.settings, self.vocab
        both = (v.eoa_id, v.eoa_last_id)
        ends = [((v.eoa_last_id,) if rows[i].last else (v.eoa_id,)) if s.strict else both for i in active]
        allowed = None
        if s.strict:
            allowed = torch.stack([self._codes] * len(active))
            for n, end in enumerate(ends):
                allowed[n, list(end)] = True
            allowed = allowed.to(session.device)
        open_ = set(range(len(active)))

        # The end token takes one of the tokens that are left.
        budget = [s.max_tokens - rows[i].new - 1 for i in active]
        request = SpanRequest(
            predict=self._predict(session, active), mask_id=v.mask_id, end_ids=ends, allowed=allowed,
            exact=[s.length.exact_codes(rows[i].last) if s.strict else None for i in active],
            limit=[min(s.length.max_codes(rows[i].last), b) for i, b in zip(active, budget, strict=True)],
            gens=[rows[i].gen for i in active], forbidden=(v.im_end_id,), strict=s.strict, device=session.device,
            on_commit=_renumbered(on_commit, active), on_remask=_renumbered(self._on_remask, active),
        )  # fmt: skip
        collected: dict[int, list[Tensor]] = {n: [] for n in range(len(active))}
        for block in self.sampler.span(request):
            i, ids, ended = active[block.row], block.ids, block.ended
            if (
                ended and not s.strict
            ):  # the sampler cuts by the order of its end tokens; the loop at the first of any kind
                at = torch.isin(ids, torch.tensor(both, device=ids.device)).nonzero()
                ids = ids[: int(at[0]) + 1]
            collected[block.row].append(ids)
            rows[i].new += len(ids)
            yield Event(i, "block", tuple(ids.tolist()))
            if ended:
                rows[i].mode = "text"
                rows[i].enforce = max(rows[i].enforce, s.min_text_tokens_after_audio)
                open_.discard(block.row)
        for n, parts in collected.items():
            i = active[n]
            if parts:
                session.append(i, torch.cat(parts), closed=s.strict and n not in open_)
            if rows[i].new >= s.max_tokens:
                rows[i].mode = "done"
                yield Event(i, "end", (), "length")

    def _fill_answers(self, session: Session, rows: list[_Row], on_commit: Any) -> Iterator[Event]:
        """The sampler writes whole answers: text, delimiters and codes, up to ``<|im_end|>``."""
        s, v = self.settings, self.vocab
        active = list(range(len(rows)))
        request = SpanRequest(
            predict=self._predict(session, active), mask_id=v.mask_id, end_ids=[(v.im_end_id,)] * len(rows),
            allowed=torch.stack([self._answer] * len(rows)).to(session.device) if s.strict else None,
            exact=[None] * len(rows), limit=[s.max_tokens] * len(rows), gens=[r.gen for r in rows], strict=s.strict,
            device=session.device, on_commit=on_commit, on_remask=self._on_remask, force_end=False, pad_id=v.pad_id,
        )  # fmt: skip
        for block in self.sampler.span(request):
            ids = block.ids.tolist()
            if block.ended:  # some samplers' official behaviour goes on behind the end
                ids = ids[: ids.index(v.im_end_id) + 1]
            yield Event(block.row, "block", tuple(ids))
            if block.ended:
                rows[block.row].mode = "done"
                yield Event(block.row, "end", (), "im_end")
        for i, row in enumerate(rows):
            if row.mode != "done":
                row.mode = "done"
                yield Event(i, "end", (), "length")

    def _predict(self, session: Session, active: Sequence[int]) -> Any:
        index = torch.tensor(active)

        def predict(local: Tensor, tails: Tensor, last: int, unconditional: str = "") -> Tensor:
            if not unconditional:  # a guided call is one call on two stacked rows
                self._count("diffusion", [active[n] for n in local.tolist()])
            return session.logits(index[local.cpu()], tails, last, unconditional)

        return predict

    def _count(self, kind: str, active: list[int]) -> None:
        self.calls[kind] += 1
        for i in active:
            self._row_calls[i][kind] += 1


def _renumbered(listener: Listener | None, rows: Sequence[int]) -> Listener | None:
    """A listener for a sampler that knows the rows ``rows`` as 0, 1, ..."""
    return None if listener is None else lambda n, at, ids, score: listener(rows[n], at, ids, score)


def _check_answer_settings(settings: DecodeSettings) -> None:
    """Raise `ConfigError` for settings of the text mode, which there is none of when the canvas is the answer."""
    default = DecodeSettings()
    for name in ("temperature", "top_k", "top_p", "min_text_tokens_after_audio", "length"):
        if getattr(settings, name) != getattr(default, name):
            raise ConfigError(
                f"eval.{name}: has no meaning when eval.sampler.canvas is 'answer' (the sampler writes the text too); "
                f"leave it at {getattr(default, name)!r} and set the sampler's own fields"
            )


def spans_of(ids: Sequence[int], tokenizer: TextTokenizer) -> tuple[Span, ...]:
    """New ids as spans: text (special tokens left out) and the codes between an opening and an end token."""
    v = tokenizer.vocab
    spans: list[Span] = []
    text: list[int] = []
    codes: list[int] | None = None
    last = False

    def flush_text() -> None:
        if text:
            written = tokenizer.decode(text)
            if written:
                spans.append(Span("text", written))
            text.clear()

    def flush_codes(style: str) -> None:
        nonlocal codes
        if codes is not None:
            spans.append(Span("audio", codes=v.codes(np.asarray(codes)), style=style))
            codes = None

    for token in ids:
        if token in (v.soa_id, v.soa_last_id):
            flush_text()
            flush_codes("open_last" if last else "open_span")
            codes, last = [], token == v.soa_last_id
        elif token in (v.eoa_id, v.eoa_last_id):
            flush_codes("last" if token == v.eoa_last_id else "span")
        elif v.is_audio(token):
            if codes is None:  # nothing opened a span: only models that may write anything do this
                flush_text()
                codes = []
            codes.append(token)
        else:
            flush_codes("open_last" if last else "open_span")
            text.append(token)
    flush_text()
    flush_codes("open_last" if last else "open_span")
    return tuple(spans)
