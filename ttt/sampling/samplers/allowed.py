"""Which token ids may be written where: in text, in audio spans, in whole answers, and at each place of a span.

`AllowedIds` holds what the vocabulary allows, and the ranges of ids that logits have to be computed for.  A constraint
(`ttt.interfaces.Constraint`) restricts the places of a span further: `SpanConstraint` is its table for a vocabulary,
`AnswerConstraint` applies it to answers in which a sampler may open spans anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ttt.errors import ConfigError
from ttt.interfaces import Constraint, LengthRule, Network
from ttt.registry import name_of
from ttt.text.special_tokens import ABSENT
from ttt.text.vocab import Vocabulary


@dataclass(frozen=True)
class AllowedIds:
    """Masks over all ids of the model, bool [V]: ``text``, ``codes``, and ``answer`` (a whole answer, in any order).

    ``ends``: end tokens of spans, of ordinary ones and of the answer's last one.  ``text_range``, ``span_range``,
    ``answer_range``: from the first to the last id that may be written in text, spans, answers; logits are computed for
    these only.  None: all ids (not ``strict``).  ``constraint``: what may stand at each place of a span; None: any code.
    """

    text: Tensor
    codes: Tensor
    answer: Tensor
    ends: tuple[int, ...]
    text_range: slice | None
    span_range: slice | None
    answer_range: slice | None
    constraint: SpanConstraint | None = None

    @classmethod
    def of(cls, model: Network, strict: bool, constraint: Constraint | None = None) -> AllowedIds:
        """From the model's vocabulary; ids that only fill its embedding up are never written.

        Raises `ConfigError` for a constraint without ``strict``.
        """
        if constraint is not None and constraint.restricts and not strict:
            raise ConfigError(
                f"eval.strict: false restricts nothing, constraint {name_of(constraint)!r} does; "
                "set eval.strict=true, or eval.constraint=none"
            )
        v = model.tokenizer.vocab
        ids = torch.arange(model.num_ids)
        never = torch.tensor((v.user_end_id, v.im_start_id, v.pad_id, v.mask_id))
        text = (ids < v.audio_start) & ~torch.isin(ids, never)
        codes = (ids >= v.code_start) & (ids < v.code_stop)
        ends = (v.eoa_id, v.eoa_last_id)
        span = codes | torch.isin(ids, torch.tensor(ends))
        text_range, span_range, answer_range = (_range(m) if strict else None for m in (text, span, text | span))
        table = None
        if constraint is not None and constraint.restricts:
            table = SpanConstraint.of(constraint, v, len(ids))
            if bool(table.table[:, codes].all()) and table.period == 1:
                table = None  # one range for all places: nothing that strict mode does not do
        return cls(text, codes, text | span, ends, text_range, span_range, answer_range, table)

    def span(self, ends: Sequence[int]) -> Tensor:
        """Codes and the end tokens ``ends``, bool [V]."""
        allowed = self.codes.clone()
        allowed[list(ends)] = True
        return allowed

    def next_in_span(self, codes: int, last: bool, length: LengthRule) -> Tensor:
        """What may follow ``codes`` codes of a span that is written token by token, bool [V].

        ``last``: it is the answer's last span.
        """
        constraint = self.constraint
        end = self.ends[1] if last else self.ends[0]
        exact = length.exact_codes(last)
        most = length.max_codes(last) if exact is None else exact
        only_end = codes >= (most if constraint is None else constraint.codes_within(most))
        allowed = torch.zeros_like(self.codes) if only_end else self.codes.clone()
        allowed[end] = exact is None or only_end
        return allowed if constraint is None or only_end else allowed & constraint.at(torch.tensor(codes))


@dataclass(frozen=True)
class SpanConstraint:
    """What a constraint allows at each place of a span, for logits of one range of ids.

    ``table`` bool [2 * ranges, columns]: rows 2n and 2n + 1 hold range n of the constraint's ranges of codes, the latter
    with the tokens that end a span.  Text may stand anywhere (where it is allowed at all).  ``openers``: columns of the
    tokens that open spans.  ``codebooks``, ``period``: see `Constraint`.
    """

    rule: Constraint
    codebooks: tuple[tuple[int, int], ...]
    table: Tensor
    openers: tuple[int, ...]
    period: int

    @classmethod
    def of(cls, rule: Constraint, vocab: Vocabulary, size: int) -> SpanConstraint:
        """For a vocabulary whose model has logits for ``size`` ids."""
        space = vocab.code_space
        ranges = rule.ranges(space.codebooks)
        table = torch.zeros((2 * len(ranges), size), dtype=torch.bool)
        table[:, : vocab.audio_start] = True
        table[:, list(space.ends)] = False
        for n, (start, stop) in enumerate(ranges):
            table[2 * n : 2 * n + 2, start:stop] = True
            table[2 * n + 1, list(space.ends)] = True
        openers = tuple(sorted({vocab.soa_id, vocab.soa_last_id} - {ABSENT}))
        return cls(rule, space.codebooks, table, openers, rule.period(space.codebooks))

    def columns(self, ids: slice | None, device: Any = "cpu") -> SpanConstraint:
        """The same for logits of the ids ``ids`` only, on another device."""
        first = 0 if ids is None else ids.start
        table = self.table if ids is None else self.table[:, ids]
        openers = tuple(o - first for o in self.openers if 0 <= o - first < table.shape[1])
        return replace(self, table=table.to(device), openers=openers)

    def at(self, places: Tensor) -> Tensor:
        """What may stand at ``places`` i64 [*] of a span, bool [*, columns]."""
        ends = self.rule.may_end(places, self.codebooks).long()
        return self.table[2 * self.rule.range_at(places, self.codebooks) + ends]

    def may_end(self, codes: int) -> bool:
        """May a span end behind ``codes`` codes?"""
        return bool(self.rule.may_end(torch.tensor(codes), self.codebooks))

    def codes_within(self, most: int) -> int:
        """The largest number of codes, at most ``most``, after which a span may end."""
        while most > 0 and not self.may_end(most):
            most -= 1
        return max(most, 0)


class AnswerConstraint:
    """A constraint on whole answers, in which a sampler may open spans anywhere and write places in any order.

    A place of a code in its span is known only once it is known where spans begin.  So a row has an anchor, the place of
    its first code.  Before it is set, the row may write text only.  It is set behind the place where a token that opens a
    span is the likeliest of all (at the most probable of these places).  From then on, the code at place p takes the range
    of place (p - anchor) mod period of a span; a span may open only where a frame begins behind it, and end between frames.
    Whatever is committed, in any order, every code then stands in its range.
    """

    def __init__(self, span: SpanConstraint) -> None:
        self.span = span
        self.anchors: dict[int, int] = {}  # row -> place of its first code

    def allowed(self, rows: Sequence[int], places: Tensor, logits: Tensor) -> Tensor:
        """What may stand at ``places`` i64 [R, p], bool [R, p, columns]; ``logits`` f32 [R, p, columns] may set anchors."""
        span, openers = self.span, list(self.span.openers)
        out = torch.empty(logits.shape, dtype=torch.bool, device=logits.device)
        by_place = ~span.table[0].logical_and(span.table[-1])  # columns that depend on the place: codes and ends
        for i, row in enumerate(rows):
            if row not in self.anchors:
                logp = logits[i].log_softmax(-1)
                opens = torch.isin(logp.argmax(-1), torch.tensor(openers, device=logits.device))
                if bool(opens.any()):
                    best = torch.where(opens, logp[:, openers].amax(-1), -torch.inf)
                    self.anchors[row] = int(places[i, int(best.argmax())]) + 1
            if row not in self.anchors:
                out[i] = ~by_place
                out[i][:, openers] = False
                continue
            from_anchor = places[i] - self.anchors[row]
            out[i] = span.at(from_anchor % span.period)
            out[i][from_anchor < 0] = ~by_place
            frame_follows = (from_anchor + 1) % span.period == 0
            out[i][:, openers] = (frame_follows & (from_anchor >= -1))[:, None]
        return out


def _range(allowed: Tensor) -> slice:
    at = allowed.nonzero()
    return slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)
