"""Which ids may be written where, and the range of ids that logits have to be computed for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.interfaces import LengthRule
from ttt.model.lm import SpeechTextLM


@dataclass(frozen=True)
class Allowed:
    """Masks over all ids of the model, bool [V]: ``text``, ``codes``, and ``answer`` (a whole answer, in any order).

    ``ends``: end tokens of spans.  ``in_text``, ``in_span``, ``in_answer``: the range of ids from the first to the last that
    may be written there, which in the official layout is hardly more than those; None: all ids (not ``strict``).
    """

    text: Tensor
    codes: Tensor
    answer: Tensor
    ends: tuple[int, ...]
    in_text: slice | None
    in_span: slice | None
    in_answer: slice | None

    @classmethod
    def of(cls, model: SpeechTextLM, strict: bool) -> Allowed:
        """From the model's vocabulary; ids that only fill its embedding up are never written."""
        v = model.tokenizer.vocab
        ids = torch.arange(model.num_ids)
        never = torch.tensor((v.user_end_id, v.im_start_id, v.pad_id, v.mask_id))
        text = (ids < v.audio_start) & ~torch.isin(ids, never)
        codes = (ids >= v.code_start) & (ids < v.code_stop)
        ends = (v.eoa_id, v.eoa_last_id)
        span = codes | torch.isin(ids, torch.tensor(ends))
        ranges = [_range(may) if strict else None for may in (text, span, text | span)]
        return cls(text, codes, text | span, ends, *ranges)

    def span(self, ends: Sequence[int]) -> Tensor:
        """Codes and the end tokens ``ends``."""
        allowed = self.codes.clone()
        allowed[list(ends)] = True
        return allowed

    def inside(self, codes: int, last: bool, length: LengthRule) -> Tensor:
        """What may follow ``codes`` codes of a span that is written token by token."""
        end = self.ends[1] if last else self.ends[0]
        exact = length.exact_codes(last)
        only_end = codes >= (length.max_codes(last) if exact is None else exact)
        allowed = torch.zeros_like(self.codes) if only_end else self.codes.clone()
        allowed[end] = exact is None or only_end
        return allowed


def _range(allowed: Tensor) -> slice:
    at = allowed.nonzero()
    return slice(int(at[0]), int(at[-1]) + 1)
