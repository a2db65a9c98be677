"""What a sampler is asked to fill: for each row, which ids may be written, where the span ends, and its random generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ttt.errors import CheckpointError, ConfigError
from ttt.sampling.samplers.allowed import AnswerConstraint, SpanConstraint
from ttt.sampling.samplers.steps import Run
from ttt.types import CallKind, GuidanceMode, LogitsRequest

# Called with (row, places in the span i64 [m], ids i64 [m], scores f32 [m]).
Listener = Callable[[int, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class SpanRequest:
    """One span (or one whole answer) to fill in each of n rows; sequences hold one entry for each row."""

    run: Run  # answers a list of `LogitsRequest`s by one network call; `predict` and `SpanSampler.span` use it
    mask_id: int
    end_ids: Sequence[Sequence[int]]  # tokens that end the row's span, in order of precedence
    allowed: Tensor | None  # ids that may be written, bool [n, columns]; None: all
    exact: Sequence[int | None]  # a fixed number of codes, or None
    limit: Sequence[int]  # most codes; then the end token is forced (`force_end`), or decoding just stops
    gens: Sequence[Generator]  # a generator for each row, so that batching changes no draw
    forbidden: Sequence[int] = ()  # ids that are never written, `strict` or not
    # False: as the official TtT program (arXiv 2509.20072, inference_TtT.py) does: whole blocks, no forced end, nothing
    # excluded but `forbidden`.
    strict: bool = True
    device: Any = "cpu"  # of the tails
    on_commit: Listener | None = None  # hears what a call wrote
    on_remask: Listener | None = None  # hears what a call predicted and masked again
    force_end: bool = True
    pad_id: int | None = None  # fills an answer up behind its end, if anything does (LLaDA's EOS)
    slots: Sequence[int] = ()  # the row's number in the session; empty: 0 to n - 1
    ids: slice | None = None  # the range of ids that logits cover, see `first`; None: all
    codebooks: int = 1  # codes of a frame, which follow each other
    known: Sequence[Sequence[int]] = ()  # the answer as far as it is given, mask tokens elsewhere; empty: nothing is given
    constraint: SpanConstraint | AnswerConstraint | None = None  # which codes may stand at which place; None: any

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.gens)

    @property
    def first(self) -> int:
        """The id that the first column of all logits stands for."""
        return 0 if self.ids is None else self.ids.start

    def logits_request(
        self, rows: Tensor, tails: Tensor, places: Tensor, window: int, guidance: GuidanceMode | Literal[""] = "",
        kind: CallKind = "diffusion", settled_as_prompt: bool = False, ahead: int = 0,
    ) -> LogitsRequest:  # fmt: skip
        """A request for ``rows`` i64 [R] of this object; a row's tail begins where its span does (see `LogitsRequest`)."""
        slots = torch.tensor([self.slots[row] for row in rows.tolist()]) if self.slots else rows
        return LogitsRequest(slots, tails, places, window, self.ids, guidance, kind, settled_as_prompt, ahead)

    def predict(self, rows: Tensor, tails: Tensor, last: int, guidance: GuidanceMode | Literal[""] = "") -> Tensor:
        """Logits f32 [R, last, columns] of the last columns of ``tails`` i64 [R, m], by a network call of its own."""
        places = torch.arange(tails.shape[1] - last, tails.shape[1]).expand(len(rows), -1)
        return self.run([self.logits_request(rows, tails, places, last, guidance)])[0]

    def given(self, row: int) -> Sequence[int]:
        """The row's answer as far as it is known, mask tokens elsewhere; empty: all of it is to be written."""
        return self.known[row] if self.known else ()

    def with_given(self, rows: Sequence[int], canvas: Tensor, start: int = 0) -> Tensor:
        """The canvas i64 [R, w], whose first place is place ``start`` of the answers, with what is known written in."""
        for i, row in enumerate(rows):
            given = self.given(row)[start : start + canvas.shape[1]]
            canvas[i, : len(given)] = torch.tensor(given, dtype=torch.long, device=canvas.device)
        return canvas

    def total(self, row: int, gen_length: int) -> int:
        """Most tokens of a row, its forced end token included; of an answer with holes, its length."""
        if self.given(row):
            return len(self.given(row))
        if not self.strict:
            return gen_length
        if not self.force_end:
            return min(self.limit[row], gen_length)
        codes = self.exact[row]
        most = min(self.limit[row], gen_length if codes is None else codes)
        return (self.constraint.codes_within(most) if isinstance(self.constraint, SpanConstraint) else most) + 1

    def forced(self, row: int) -> int | None:
        """The end token that stands in the last place from the start, if one is forced."""
        return self.end_ids[row][0] if self.strict and self.force_end else None

    def restricted(self, rows: Tensor, logits: Tensor, places: Tensor | None = None) -> Tensor:
        """Logits [R, p, columns] of ``rows`` i64 [R] with everything that may not be written at minus infinity.

        ``places`` i64 [R, p]: where they stand in the span (or answer).  Raises `CheckpointError` for logits that are not
        numbers, `ConfigError` where a constraint needs places and the sampler tells none.
        """
        if logits.numel() and bool(logits.amax().isnan()):  # a maximum passes NaN on
            raise CheckpointError("decoding: the model's logits are NaN; look at the checkpoint's weights and dtype")
        forbidden = self.columns(self.forbidden, logits.shape[-1])
        if forbidden:
            logits[..., forbidden] = -torch.inf
        for i, row in enumerate(rows.tolist()):
            if self.given(row):  # nothing ends inside a hole
                ends = {*self.end_ids[row], *([] if self.pad_id is None else [self.pad_id])}
                logits[i, :, self.columns(sorted(ends), logits.shape[-1])] = -torch.inf
        if self.allowed is None:
            return logits
        allowed = self.allowed[rows.to(self.allowed.device)]  # [R, columns], a copy
        for i, row in enumerate(rows.tolist()):
            if self.exact[row] is not None:
                allowed[i, self.columns(self.end_ids[row], logits.shape[-1])] = False
        logits = logits.masked_fill(~allowed[:, None], -torch.inf)
        if self.constraint is None:
            return logits
        if places is None:
            raise ConfigError(
                "eval.sampler: it does not say where in the span its logits stand, which eval.constraint needs; hand the "
                "places to SpanRequest.restricted, or set eval.constraint=none"
            )
        places = places.to(logits.device)
        if isinstance(self.constraint, AnswerConstraint):
            return logits.masked_fill(~self.constraint.allowed(rows.tolist(), places, logits), -torch.inf)
        return logits.masked_fill(~self.constraint.at(places), -torch.inf)

    def columns(self, ids: Iterable[int], width: int) -> list[int]:
        """Those of ``ids`` that logits of ``width`` columns hold, as columns."""
        return [i - self.first for i in ids if 0 <= i - self.first < width]

    def cut(self, row: int, ids: Tensor) -> tuple[Tensor, bool]:
        """``ids`` up to and with the end token, and whether there was one."""
        if self.strict:
            ends = torch.isin(ids, torch.tensor(list(self.end_ids[row]), device=ids.device)).nonzero()
            return (ids[: int(ends[0]) + 1], True) if len(ends) else (ids, False)
        for end in self.end_ids[row]:  # official: the order of the list decides, not the position
            at = (ids == end).nonzero()
            if len(at):
                return ids[: int(at[0]) + 1], True
        return ids, False

    def report(self, rows: Tensor, start: int, commit: Tensor, chosen: Tensor, score: Tensor) -> None:
        """Tell whoever listens what was committed: [L, w] tensors of a block that begins at offset ``start``."""
        if self.on_commit is None:
            return
        for i, row in enumerate(rows.tolist()):
            at = commit[i].nonzero().flatten()
            if len(at):
                self.on_commit(row, start + at, chosen[i, at], score[i, at].float())
