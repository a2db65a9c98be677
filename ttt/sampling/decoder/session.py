"""The decoding state of a causal language model: rows of tokens, their key-value cache, and the network calls on them.

`Session.run` answers a list of `LogitsRequest`s with one network call.  Positions whose keys are in the cache are not run
again; all others are packed into one sequence (`ttt.model.cache.PackedCall`).  Logits are computed only at the places
that were requested, and only for the requested range of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttt.config.schema import Cache
from ttt.interfaces import LanguageModel, MaskRule
from ttt.masks.materialize import dense
from ttt.model.cache import PackedCall, SlotCache
from ttt.model.joined import side_by_side
from ttt.text.vocab import Vocabulary
from ttt.types import Kind, Layout, LogitAlignment, LogitsRequest, Prompt


class Session:
    """Token rows with a cache; ``prompts`` take the first of ``slots`` rows (default: as many as there are prompts).

    ``cache``: ``exact`` keeps the keys that the mask rule itself calls frozen (`MaskRule.frozen_prefix`), so every result
    equals the uncached one; ``block`` keeps those of all committed tokens from one commit to the next, an approximation
    wherever the rule lets them look ahead (exact where it does not); ``dual`` also keeps those of the masks behind the
    open block, from its first call to its commit (DualCache of Fast-dLLM, arXiv 2505.22618); ``none`` keeps nothing.
    ``logit_alignment``: ``next`` answers requests of kind ``diffusion`` with the logits of the position before each place
    (a row's first has its own).
    """

    def __init__(
        self, model: LanguageModel, mask: MaskRule, prompts: Sequence[Prompt] = (), cache: Cache = "exact",
        room: int = 64, slots: int = 0, logit_alignment: LogitAlignment = "same",
    ) -> None:  # fmt: skip
        self.model, self.mask, self.keeps, self.room = model, mask, cache, room
        self.before = int(logit_alignment == "next")
        self.shared = bool(self.before) or model.tokenizer.vocab.codes_together > 1  # places may have one position
        self.device = model.device
        longest = max((len(p.ids) for p in prompts), default=0)
        self.cache = SlotCache(slots or len(prompts), longest + room)
        self.rows: list[_Row | None] = [None] * self.cache.slots
        for slot, prompt in enumerate(prompts):
            self.admit(slot, prompt)

    def reserve(self, tokens: int) -> None:
        """Make room for rows of this many tokens, and no more."""
        self.cache.capacity = max(self.cache.capacity, tokens)

    def admit(self, slot: int, prompt: Prompt) -> None:
        """Begin a prompt in row ``slot``, whatever was there before."""
        self.rows[slot] = _Row(self.model.tokenizer.vocab, prompt, self.room)

    def row(self, slot: int) -> list[int]:
        """All committed tokens of one row."""
        row = self._row(slot)
        ids = row.ids[: row.length].flatten()
        return ids[ids >= 0].tolist()

    def append(self, slot: int, ids: Tensor, closed: bool = False, in_tail: bool = False) -> None:
        """Commit tokens i64 [m] of one row.

        ``closed``: no audio will follow a trailing audio run.  ``in_tail``: a sampler is at work on the row and its tails
        hold these tokens too; else they belong to the context, behind which later tails begin.
        """
        row = self._row(slot)
        row.commit(ids.cpu(), in_tail)
        row.closed = closed
        row.kept, row.ran = min(row.kept, row.frozen), (0, 0)

    def run(self, requests: Sequence[LogitsRequest]) -> list[Tensor]:
        """Logits f32 [R, p, ids] of every request, by one network call."""
        call = PackedCall(self.cache)
        of_places: list[Tensor | None] = []  # for each request: the hidden state, among its own, of each place; None: in order
        for request in requests:
            add = self._add_guided if request.guidance else self._add
            states, count = [], 0
            for slot, tail, places in zip(request.rows.tolist(), request.tails.cpu(), request.places.cpu(), strict=True):
                states.append(count + add(call, request, slot, self._row(slot), tail, places))
                count += len(call.wanted_of[-1])
            of_places.append(torch.cat(states) if self.shared else None)
        hidden = self.model.hidden_of_rows(call)  # [n, D]: the places of the first request row by row, then the next one's
        for request in requests:
            if not request.guidance:
                for slot in request.rows.tolist():
                    self._settle(self._row(slot))
        return self._heads(requests, hidden, of_places)

    def _row(self, slot: int) -> _Row:
        row = self.rows[slot]
        assert row is not None, f"slot {slot} holds no prompt"
        return row

    def _add(
        self, call: PackedCall, request: LogitsRequest, slot: int, row: _Row, tail: Tensor, places: Tensor
    ) -> Tensor:
        """The row's positions that the cache does not hold, with ``tail`` i64 [m] behind its context.

        Returns which of the wanted positions each place has (`_once`).
        """
        stop, at = row.lay(tail, places)
        positions, state = self._once(self._predicting(request, at))
        start, end = min(row.kept, int(positions[0])), stop
        if self.keeps == "dual" and row.ran == (stop, request.ahead):  # later masks have run since the last commit
            end = max(stop - request.ahead, int(positions[-1]) + 1)
        row.ran = (stop, request.ahead)
        mask = row.seen(self.mask, start, stop, self.device)
        if mask is not None:
            mask = mask[: end - start]
        slot_or_none = None if self.keeps == "none" else slot
        call.add(row.ids[start:end], slot_or_none, start, positions - start, mask, stop - end)
        return state

    def _add_guided(
        self, call: PackedCall, request: LogitsRequest, slot: int, row: _Row, tail: Tensor, places: Tensor
    ) -> Tensor:
        """The whole row, without a cache: hidden tokens are mask tokens, which changes what every position sees."""
        stop, at = row.lay(tail, torch.cat([torch.tensor([len(tail) - request.window]), places]))
        hide = torch.arange(stop) < at[0]
        if request.guidance == "mask_prompt_content":
            hide &= row.content[:stop]
        ids = row.ids[:stop]
        ids = torch.where(hide.view(-1, *[1] * (ids.dim() - 1)) & (ids >= 0), row.vocab.mask_id, ids)
        unconditional = row.unconditional
        if unconditional is None or len(unconditional.ids) < stop:
            unconditional = row.unconditional = _Row(row.vocab, Prompt("", ()), 2 * stop)
            unconditional.prompt[:, : row.prompt.shape[1]] = row.prompt[:, : unconditional.prompt.shape[1]]
        unconditional.write(ids)
        positions, state = self._once(self._predicting(request, at[1:]))
        call.add(ids, None, 0, positions, unconditional.seen(self.mask, 0, stop, self.device))
        return state

    def _predicting(self, request: LogitsRequest, at: Tensor) -> Tensor:
        """Positions whose states predict those ``at`` which a request names."""
        return (at - self.before).clamp(min=0) if request.kind == "diffusion" else at

    def _once(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(Ascending positions i64 [p] without repetition, the number of each among them)."""
        if not self.shared:
            return positions, torch.arange(len(positions))
        return positions.unique_consecutive(return_inverse=True)

    def _settle(self, row: _Row) -> None:
        if self.keeps == "none":
            return
        row.freeze(self.mask)
        row.kept = row.frozen if self.keeps == "exact" else row.length

    def _heads(self, requests: Sequence[LogitsRequest], hidden: Tensor, of_places: Sequence[Tensor | None]) -> list[Tensor]:
        """Logits of each request from the hidden states [n, D] of all wanted positions; one product for each range of ids."""
        sizes = [r.places.numel() if s is None else int(s.max()) + 1 for r, s in zip(requests, of_places, strict=True)]
        parts = hidden.split(sizes)
        by_ids: dict[tuple[int, int] | None, list[int]] = {}
        for n, request in enumerate(requests):
            by_ids.setdefault(None if request.ids is None else (request.ids.start, request.ids.stop), []).append(n)
        out: list[Tensor] = [hidden] * len(requests)
        for ids, members in by_ids.items():
            logits = self.model.head(torch.cat([parts[n] for n in members]), None if ids is None else slice(*ids))
            for n, part in zip(members, logits.split([len(parts[n]) for n in members]), strict=True):
                states = of_places[n]
                out[n] = (part if states is None else part[states.to(part.device)]).view(*requests[n].places.shape, -1)
        return out


def open_session(
    model: Any, mask: MaskRule, *, cache: Cache, room: int, slots: int, logit_alignment: LogitAlignment = "same"
) -> Any:
    """The decoding state of ``model``: its own (`ttt.interfaces.Arch`), or a `Session` of token rows."""
    own = getattr(model, "session", None)
    if own is not None:
        return own(mask, cache=cache, room=room, slots=slots)
    return Session(model, mask, cache=cache, room=room, slots=slots, logit_alignment=logit_alignment)


def next_token(rows: Sequence[int], ids: slice | None = None) -> LogitsRequest:
    """A request for the logits [R, 1, ids] of the token behind the last one of each row."""
    n = len(rows)
    no_tail = torch.empty((n, 0), dtype=torch.long)
    return LogitsRequest(torch.tensor(rows), no_tail, torch.full((n, 1), -1), window=1, ids=ids, kind="ar")


class _Row:
    """One row: committed tokens, and behind them room for tentative ones.

    ``context``: where tails begin, at most the ``length`` of what is committed.  ``kept``: positions whose keys the cache
    holds; ``frozen``: how many of those can never change.  Where codes stand together (`ttt.interfaces.CodePattern`) all of
    them count positions of the network, and ``ids`` is [n, K], -1 where a position has fewer.
    """

    def __init__(self, vocab: Vocabulary, prompt: Prompt, room: int) -> None:
        self.vocab, self.together = vocab, vocab.codes_together
        self.length = self.context = self.kept = self.frozen = 0
        self.closed = False
        self.ran = (0, 0)  # of the latest call since the last commit: the row's positions, masks of later blocks among them
        self.unconditional: _Row | None = None  # what the row looks like to the unconditional pass of guidance
        self._mask: tuple[object, Tensor | None] = ((), None)
        self._frozen_of = (0, False)
        self._settled = torch.empty(0, dtype=torch.long)  # tokens behind the context that are committed
        ids = torch.tensor(list(prompt.ids), dtype=torch.long)
        joined = self._joined(ids)
        first = (~joined).nonzero().flatten()
        ids = self._laid(ids, joined)
        n = len(ids)
        capacity = n + room
        self.ids = torch.full((capacity, *ids.shape[1:]), vocab.pad_id, dtype=torch.long)
        self.kind = torch.zeros((1, capacity), dtype=torch.uint8)
        self.run_id = torch.zeros((1, capacity), dtype=torch.long)
        self.prompt = torch.zeros((1, capacity), dtype=torch.bool)  # what was asked, the model's own turns left out
        self.content = torch.zeros(capacity, dtype=torch.bool)
        if prompt.noisable is None:
            self.prompt[0, :n] = True
        else:
            self.prompt[0, :n] = ~torch.tensor(list(prompt.noisable), dtype=torch.bool)[first]
        if prompt.content is not None:
            self.content[:n] = torch.tensor(list(prompt.content), dtype=torch.bool)[first]
        self.write(ids)
        self.length = self.context = n

    def commit(self, ids: Tensor, in_tail: bool) -> None:
        """Tokens i64 [m] behind those that are committed (see `Session.append`)."""
        if in_tail:
            self._settled = torch.cat([self._settled, ids])
            self.length = self.lay(self._settled, self._settled[:0])[0]
            return
        joined = self._joined(ids)
        if self.together > 1 and len(ids) and self.length and bool(self.vocab.code_space.joins(ids[0])):
            self.length -= 1  # one more code at the last position
            begun = self.ids[self.length]
            ids = torch.cat([begun[begun >= 0], ids])
            joined = self._joined(ids)
        laid = self._laid(ids, joined)
        self.write(laid)
        self.length += len(laid)
        self.context, self._settled = self.length, self._settled[:0]

    def lay(self, tail: Tensor, places: Tensor) -> tuple[int, Tensor]:
        """Write a tail i64 [m] behind the context.

        Returns how many positions the row has now, and the positions of ``places`` i64 [p] of the tail (-1: the last one before).
        """
        settled = self.length - self.context  # positions of the tail that are committed already
        if self.together == 1:
            self.write(tail[settled:])
            return self.context + len(tail), self.context + places
        joined = self._joined(tail, from_span=True)
        laid = self._laid(tail, joined)
        self.write(laid[settled:])
        at = torch.cat([(~joined).cumsum(0) - 1, torch.tensor([-1])])
        return self.context + len(laid), self.context + at[places]

    def _joined(self, ids: Tensor, from_span: bool = False) -> Tensor:
        """bool [m]: stands at the position of the token before it.  ``from_span``: masks are codes, of a span that begins here."""
        if self.together == 1:
            return torch.zeros_like(ids, dtype=torch.bool)
        space = self.vocab.code_space
        joined = space.joins(ids)
        if from_span:
            inside = (ids == self.vocab.mask_id) & (torch.arange(len(ids)) % self.together > 0)
            inside[1:] &= ~torch.isin(ids[:-1], torch.tensor(space.ends))  # behind an end there are no codes
            joined |= inside
        joined[:1] = False
        return joined

    def _laid(self, ids: Tensor, joined: Tensor) -> Tensor:
        """Ids i64 [m] as the row stores them."""
        return ids if self.together == 1 else side_by_side(ids, joined, self.together)

    def write(self, ids: Tensor) -> None:
        """Put ``ids`` [n] or [n, K], one entry a position, behind the committed ones."""
        start, stop = self.length, self.length + len(ids)
        while stop > len(self.ids):
            self._grow()
        audio = self.vocab.is_audio(ids if ids.dim() == 1 else ids[:, 0])
        self.ids[start:stop] = ids
        self.kind[0, start:stop] = torch.where(audio, int(Kind.AUDIO), int(Kind.TEXT))
        before = int(self.run_id[0, start - 1]) if start else 0
        self.run_id[0, start:stop] = before + torch.cumsum(~audio, 0)

    def _grow(self) -> None:
        def longer(x: Tensor) -> Tensor:
            return torch.cat([x, torch.zeros_like(x)], -1)

        self.ids = torch.cat([self.ids, torch.zeros_like(self.ids)])
        self.kind, self.run_id = longer(self.kind), longer(self.run_id)
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
