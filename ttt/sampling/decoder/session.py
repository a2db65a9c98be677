"""Rows of tokens that grow, and the network calls on them: what is kept from call to call is what cannot change.

A call packs what every row needs and no more: a row's settled positions are read from the cache, only the others run, and
logits are computed only at places that were asked for and only for ids that may be written there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttt.config.schema import Cache
from ttt.interfaces import MaskRule
from ttt.masks.materialize import dense
from ttt.model.cache import RowCall, Segment, SlotCache
from ttt.model.lm import SpeechTextLM
from ttt.text.vocab import Vocabulary
from ttt.types import Kind, Layout


@dataclass(frozen=True)
class Prompt:
    """``ids`` of one prompt.  ``content`` marks what comes from the data and not from the template (for guidance);

    ``answer`` the model's own earlier turns, which masks treat like in training, as answers (default: there are none).
    ``known``: ids of the answer as far as they are given, mask tokens where it is to be written (in-filling).
    """

    uid: str
    ids: Sequence[int]
    content: Sequence[bool] | None = None
    answer: Sequence[bool] | None = None
    known: Sequence[int] = ()


@dataclass(frozen=True)
class Ask:
    """Logits wanted of one row that holds its committed tokens and, behind them, ``tail`` i64 [m].

    ``places`` i64 [p]: offsets in the tail; -1 is the last committed token.  ``ids``: the range of ids to compute logits for.
    ``unconditional``: a guidance mode (`ttt.sampling.samplers.blocks.CFG_MODES`); everything but the last
    ``visible`` tokens is then
    replaced by mask tokens, as that mode says.  ``joined``: models of frames read committed frames as more of the prompt.
    """

    slot: int
    tail: Tensor
    places: Tensor
    ids: slice | None = None
    unconditional: str = ""
    visible: int = 0
    joined: bool = False


class Session:
    """Token rows with a cache; ``prompts`` take the first of ``slots`` rows (default: as many as there are prompts).

    ``cache``: ``exact`` keeps the keys that the mask rule itself calls frozen (`MaskRule.frozen_prefix`), so every result
    equals the uncached one; ``block`` keeps those of all committed tokens from one commit to the next, an approximation
    wherever the rule lets them look ahead (exact where it does not); ``none`` keeps nothing.
    """

    def __init__(
        self, model: SpeechTextLM, mask: MaskRule, prompts: Sequence[Prompt] = (), cache: Cache = "exact",
        room: int = 64, slots: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.mask, self.keeps, self.room = model, mask, cache, room
        self.device = model.device
        longest = max((len(p.ids) for p in prompts), default=0)
        self.cache = SlotCache(slots or len(prompts), longest + room)
        self.rows: list[_Row | None] = [None] * self.cache.slots
        for slot, prompt in enumerate(prompts):
            self.admit(slot, prompt)

    def reserve(self, tokens: int) -> None:
        """Make room for rows of this many tokens."""
        self.cache.reserve(tokens)

    def admit(self, slot: int, prompt: Prompt) -> None:
        """Begin a prompt in row ``slot``, whatever was there before."""
        self.rows[slot] = _Row(self.model.tokenizer.vocab, prompt, self.room)

    def row(self, slot: int) -> list[int]:
        """All committed tokens of one row."""
        row = self._row(slot)
        return row.ids[: row.length].tolist()

    def append(self, slot: int, ids: Tensor, closed: bool = False) -> None:
        """Commit tokens; ``closed``: no audio will follow a trailing audio run."""
        row = self._row(slot)
        row.write(ids.cpu())
        row.length += len(ids)
        row.closed = closed
        row.kept = min(row.kept, row.frozen)

    def run(self, asks: Sequence[Ask]) -> list[Tensor]:
        """Logits f32 [p, ids] of every ask, by one network call."""
        work = [self._guided(a) if a.unconditional else self._plain(a) for a in asks]
        segments = [w.segment for w in work]
        self.cache.reserve(max(s.stop for s in segments))
        hidden = self.model.hidden_of_rows(
            torch.cat([w.ids for w in work]).to(self.device),
            torch.cat([torch.arange(s.start, s.stop) for s in segments]).to(self.device),
            RowCall(self.cache, segments),
        )  # [n, D], the places of the first ask, then those of the second, ...
        for a in asks:
            if not a.unconditional:
                self._settle(self._row(a.slot))
        return self._heads(asks, hidden)

    def logits(self, rows: Tensor, tails: Tensor, last: int, unconditional: str = "") -> Tensor:
        """Logits f32 [R, last, V] at the last positions of (committed tokens + ``tails`` i64 [R, m])."""
        places = torch.arange(tails.shape[1] - last, tails.shape[1])
        pairs = zip(rows.tolist(), tails.cpu(), strict=True)
        return torch.stack(self.run([Ask(r, t, places, None, unconditional, last) for r, t in pairs]))

    def _row(self, slot: int) -> _Row:
        row = self.rows[slot]
        assert row is not None, f"slot {slot} holds no prompt"
        return row

    def _plain(self, ask: Ask) -> _Work:
        row = self._row(ask.slot)
        row.write(ask.tail)
        stop = row.length + len(ask.tail)
        start = min(row.kept, row.length + int(ask.places[0]))
        mask = row.seen(self.mask, start, stop, self.device)
        slot = None if self.keeps == "none" else ask.slot
        places = row.length + ask.places - start
        return _Work(row.ids[start:stop], Segment(slot, start, stop - start, places, mask))

    def _guided(self, ask: Ask) -> _Work:
        """The whole row, without a cache: hidden tokens are mask tokens, which changes what every position sees."""
        row = self._row(ask.slot)
        row.write(ask.tail)
        stop = row.length + len(ask.tail)
        hide = torch.arange(stop) < stop - ask.visible
        if ask.unconditional == "mask_prompt_content":
            hide &= row.content[:stop]
        ids = row.ids[:stop].masked_fill(hide, row.vocab.mask_id)
        empty = row.hidden
        if empty is None or len(empty.ids) < stop:
            empty = row.hidden = _Row(row.vocab, Prompt("", ()), 2 * stop)
            empty.prompt[:, : row.prompt.shape[1]] = row.prompt[:, : empty.prompt.shape[1]]
        empty.write(ids)
        mask = empty.seen(self.mask, 0, stop, self.device)
        return _Work(ids, Segment(None, 0, stop, row.length + ask.places, mask))

    def _settle(self, row: _Row) -> None:
        if self.keeps == "none":
            return
        row.freeze(self.mask)
        row.kept = row.frozen if self.keeps == "exact" else row.length

    def _heads(self, asks: Sequence[Ask], hidden: Tensor) -> list[Tensor]:
        parts = hidden.split([len(a.places) for a in asks])
        by_ids: dict[tuple[int, int] | None, list[int]] = {}
        for n, ask in enumerate(asks):
            by_ids.setdefault(None if ask.ids is None else (ask.ids.start, ask.ids.stop), []).append(n)
        out: list[Tensor] = [hidden] * len(asks)
        for ids, members in by_ids.items():
            # One multiplication for all rows that may write the same ids.
            logits = self.model.head(torch.cat([parts[n] for n in members]), None if ids is None else slice(*ids))
            for n, part in zip(members, logits.split([len(parts[n]) for n in members]), strict=True):
                out[n] = part
        return out


def open_session(model: Any, mask: MaskRule, *, cache: Cache, room: int, slots: int) -> Any:
    """The decoding state of ``model``: its own (`ttt.interfaces.Arch`), or a `Session` of token rows."""
    own = getattr(model, "session", None)
    if own is not None:
        return own(mask, cache=cache, room=room, slots=slots)
    return Session(model, mask, cache=cache, room=room, slots=slots)


@dataclass(frozen=True)
class _Work:
    """``ids`` i64 [count] to run as ``segment``."""

    ids: Tensor
    segment: Segment


class _Row:
    """One row: committed tokens, and behind them room for tentative ones.

    ``kept``: positions whose keys the cache holds; ``frozen``: how many of those can never change.
    """

    def __init__(self, vocab: Vocabulary, prompt: Prompt, room: int) -> None:
        self.vocab = vocab
        self.length = self.kept = self.frozen = 0
        self.closed = False
        self.hidden: _Row | None = None  # what the row looks like to unconditional calls
        self._mask: tuple[object, Tensor | None] = ((), None)
        self._frozen_of = (0, False)
        n = len(prompt.ids)
        capacity = n + room
        self.ids = torch.full((capacity,), vocab.pad_id, dtype=torch.long)
        self.kind = torch.zeros((1, capacity), dtype=torch.uint8)
        self.run_id = torch.zeros((1, capacity), dtype=torch.long)
        self.prompt = torch.zeros((1, capacity), dtype=torch.bool)  # what was asked, the model's own turns left out
        self.content = torch.zeros(capacity, dtype=torch.bool)
        self.prompt[0, :n] = True if prompt.answer is None else ~torch.tensor(list(prompt.answer), dtype=torch.bool)
        if prompt.content is not None:
            self.content[:n] = torch.tensor(list(prompt.content), dtype=torch.bool)
        self.write(torch.tensor(list(prompt.ids), dtype=torch.long))
        self.length = n

    def write(self, ids: Tensor) -> None:
        """Put ``ids`` behind the committed tokens."""
        start, stop = self.length, self.length + len(ids)
        while stop > len(self.ids):
            self._grow()
        audio = self.vocab.is_audio(ids)
        self.ids[start:stop] = ids
        self.kind[0, start:stop] = torch.where(audio, int(Kind.AUDIO), int(Kind.TEXT))
        before = int(self.run_id[0, start - 1]) if start else 0
        self.run_id[0, start:stop] = before + torch.cumsum(~audio, 0)

    def _grow(self) -> None:
        def longer(x: Tensor) -> Tensor:
            return torch.cat([x, torch.zeros_like(x)], -1)

        self.ids, self.kind, self.run_id = longer(self.ids), longer(self.kind), longer(self.run_id)
        self.prompt, self.content = longer(self.prompt), longer(self.content)

    def layout(self, stop: int) -> Layout:
        """The first ``stop`` positions as one visible document."""
        nothing = torch.zeros((1, stop), dtype=torch.long)
        return Layout(
            kind=self.kind[:, :stop], run_id=self.run_id[:, :stop], doc=nothing, position=torch.arange(stop)[None],
            prompt=self.prompt[:, :stop], visible=nothing == 0, stream=nothing,
        )  # fmt: skip

    def seen(self, rule: MaskRule, start: int, stop: int, device: torch.device) -> Tensor | None:
        """Bool [stop - start, stop]: what the positions from ``start`` on may look at; None: all of it."""
        # Masks look at kinds, never at ids: while a block is denoised the answer stays the same.
        key = (start, stop, self.length, self.kind[0, min(start, self.length) : stop].numpy().tobytes())
        if self._mask[0] != key:
            queries = torch.arange(start, stop)
            allowed = dense(rule, self.layout(stop), queries[None])[0]
            mask = None
            if not bool(allowed.all()):
                lost = ~allowed.any(1)  # softmax over nothing would be NaN
                allowed[lost, queries[lost]] = True
                mask = allowed.to(device)
            self._mask = (key, mask)
        return self._mask[1]

    def freeze(self, rule: MaskRule) -> None:
        """All committed tokens have run: note how many of them can never look at anything that comes later."""
        if self.length and self._frozen_of != (self.length, self.closed):
            self._frozen_of = (self.length, self.closed)
            self.frozen = int(rule.frozen_prefix(self.layout(self.length), torch.tensor([self.closed])))
