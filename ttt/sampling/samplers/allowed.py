"""Which ids may be written where, and the range of ids that logits have to be computed for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ttt.errors import ConfigError
from ttt.interfaces import Constraint, LengthRule
from ttt.model.lm import SpeechTextLM
from ttt.text.forms import ABSENT
from ttt.text.vocab import Vocabulary


@dataclass(frozen=True)
class Allowed:
    """Masks over all ids of the model, bool [V]: ``text``, ``codes``, and ``answer`` (a whole answer, in any order).

    ``ends``: end tokens of spans.  ``in_text``, ``in_span``, ``in_answer``: the range of ids from the first to the last that
    may be written there, which in the official layout is hardly more than those; None: all ids (not ``strict``).
    ``places``: what a constraint allows at the places of a span; None: the same everywhere.
    """

    text: Tensor
    codes: Tensor
    answer: Tensor
    ends: tuple[int, ...]
    in_text: slice | None
    in_span: slice | None
    in_answer: slice | None
    places: Places | None = None

    @classmethod
    def of(cls, model: SpeechTextLM, strict: bool, constraint: Constraint | None = None) -> Allowed:
        """From the model's vocabulary; ids that only fill its embedding up are never written.

        Raises `ConfigError` for a constraint without ``strict``.
        """
        if constraint is not None and constraint.restricts and not strict:
            raise ConfigError(
                f"eval.strict: false restricts nothing, constraint {type(constraint).registered_name!r} does; "  # type: ignore[attr-defined]
                "set eval.strict=true, or eval.constraint=none"
            )
        v = model.tokenizer.vocab
        ids = torch.arange(model.num_ids)
        never = torch.tensor((v.user_end_id, v.im_start_id, v.pad_id, v.mask_id))
        text = (ids < v.audio_start) & ~torch.isin(ids, never)
        codes = (ids >= v.code_start) & (ids < v.code_stop)
        ends = (v.eoa_id, v.eoa_last_id)
        span = codes | torch.isin(ids, torch.tensor(ends))
        in_text, in_span, in_answer = (_range(may) if strict else None for may in (text, span, text | span))
        places = None
        if constraint is not None and constraint.restricts:
            places = Places.of(constraint, v, len(ids))
            if bool(places.table[:, codes].all()) and places.period == 1:
                places = None  # one range for all places: nothing that strict mode does not do
        return cls(text, codes, text | span, ends, in_text, in_span, in_answer, places)

    def span(self, ends: Sequence[int]) -> Tensor:
        """Codes and the end tokens ``ends``."""
        allowed = self.codes.clone()
        allowed[list(ends)] = True
        return allowed

    def inside(self, codes: int, last: bool, length: LengthRule) -> Tensor:
        """What may follow ``codes`` codes of a span that is written token by token."""
        places = self.places
        end = self.ends[1] if last else self.ends[0]
        exact = length.exact_codes(last)
        most = length.max_codes(last) if exact is None else exact
        only_end = codes >= (most if places is None else places.codes_within(most))
        allowed = torch.zeros_like(self.codes) if only_end else self.codes.clone()
        allowed[end] = exact is None or only_end
        return allowed if places is None or only_end else allowed & places.at(torch.tensor(codes))


@dataclass(frozen=True)
class Places:
    """What a constraint allows at each place of a span: ``table`` bool [2 * ranges, columns], a row for each of its ranges
    and one for each with the tokens that end a span.  Text may stand anywhere (where it is allowed at all).

    Column c stands for id c + ``first``.  ``openers``: columns of the tokens that open spans; ``period``: see `Constraint`.
    """

    constraint: Constraint
    codebooks: tuple[tuple[int, int], ...]
    table: Tensor
    openers: tuple[int, ...]
    period: int

    @classmethod
    def of(cls, constraint: Constraint, vocab: Vocabulary, size: int) -> Places:
        """For a vocabulary whose model has logits for ``size`` ids."""
        space = vocab.code_space
        ranges = constraint.ranges(space.codebooks)
        table = torch.zeros((2 * len(ranges), size), dtype=torch.bool)
        table[:, : vocab.audio_start] = True
        table[:, list(space.ends)] = False
        for n, (start, stop) in enumerate(ranges):
            table[2 * n : 2 * n + 2, start:stop] = True
            table[2 * n + 1, list(space.ends)] = True
        openers = tuple(sorted({vocab.soa_id, vocab.soa_last_id} - {ABSENT}))
        return cls(constraint, space.codebooks, table, openers, constraint.period(space.codebooks))

    def columns(self, ids: slice | None, device: Any = "cpu") -> Places:
        """The same for logits of the ids ``ids`` only, on another device."""
        first = 0 if ids is None else ids.start
        table = self.table if ids is None else self.table[:, ids]
        openers = tuple(o - first for o in self.openers if 0 <= o - first < table.shape[1])
        return replace(self, table=table.to(device), openers=openers)

    def rows(self, places: Tensor) -> Tensor:
        """Row of ``table`` for each place.  i64 [*] -> i64 [*]."""
        return 2 * self.constraint.range_at(places, self.codebooks) + self.constraint.may_end(places, self.codebooks).long()

    def at(self, places: Tensor) -> Tensor:
        """bool [*, columns]: what may stand at ``places`` of a span."""
        return self.table[self.rows(places)]

    def codes_within(self, most: int) -> int:
        """The largest number of codes, at most ``most``, after which a span may end."""
        while most > 0 and not bool(self.constraint.may_end(torch.tensor(most), self.codebooks)):
            most -= 1
        return max(most, 0)


class Grid:
    """A constraint on a whole answer, whose spans may begin anywhere: where they begin is settled once per row.

    Until the model likes a token that opens a span best at some place, a row writes text alone.  That place settles the
    grid: from then on a code at place p has the rank (p - anchor) mod period, a span opens only where a frame begins
    behind it, and ends between frames.  So whatever a sampler commits, in any order, every code stands in its range.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.anchors: dict[int, int] = {}  # row -> place of the first code

    def may(self, rows: Sequence[int], places: Tensor, logits: Tensor) -> Tensor:
        """bool [R, p, columns]: what may stand at ``places`` i64 [R, p]; ``logits`` hold what the rows may write at all."""
        p, openers = self.places, list(self.places.openers)
        out = torch.empty(logits.shape, dtype=torch.bool, device=logits.device)
        spans = ~p.table[0].logical_and(p.table[-1])  # columns that depend on the place: codes and ends
        for i, row in enumerate(rows):
            if row not in self.anchors:
                score = logits[i].log_softmax(-1)
                liked = torch.isin(score.argmax(-1), torch.tensor(openers, device=logits.device))
                if bool(liked.any()):
                    sure = torch.where(liked, score[:, openers].amax(-1), -torch.inf)
                    self.anchors[row] = int(places[i, int(sure.argmax())]) + 1
            if row not in self.anchors:
                out[i] = ~spans
                out[i][:, openers] = False
                continue
            rank = places[i] - self.anchors[row]
            out[i] = p.at(rank % p.period)
            out[i][rank < 0] = ~spans
            opens = (rank + 1) % p.period == 0
            out[i][:, openers] = (opens & (rank >= -1))[:, None]
        return out


def _range(allowed: Tensor) -> slice:
    at = allowed.nonzero()
    return slice(int(at[0]), int(at[-1]) + 1)
