"""What may be written next, token by token: the steps that the vocabulary's form prescribes (`ttt.text.forms.Form.steps`).

Interleaved answers go from text to spans and back as the model likes.  Text-then-speech answers depend on the last token
written (``|``: where ``eval.speak`` decides):

    text_then_speech_tags    <text>  words ...  </text> | <speech>  codes ...  </speech>  <|im_end|>
    text_then_speech         words ... | codes ...  <|im_end|>
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ttt.config.schema import Speak
from ttt.errors import ConfigError
from ttt.interfaces import LengthRule, SpanSampler
from ttt.sampling.decoder.state import DecoderRow
from ttt.sampling.samplers.allowed import AllowedIds
from ttt.text.forms import SPEECH
from ttt.text.tokenizer import TextTokenizer


class Order:
    """The order of text and speech in answers of a tokenizer's vocabulary form.

    ``length``: how long a span may be; ``strict``: False restricts nothing; ``speak``: whether speech may (``free``), must or
    must not follow the text of a text-then-speech form.
    """

    def __init__(
        self, allowed_ids: AllowedIds, tokenizer: TextTokenizer, length: LengthRule, strict: bool, speak: Speak = "free"
    ) -> None:
        self.allowed_ids, self.vocab, self.length, self.strict = allowed_ids, tokenizer.vocab, length, strict
        self.form = self.vocab.rules
        self._steps = self.form.steps(self.vocab, speak)
        self._thought_ids = tokenizer.thought_ids if self.form.text_first else ()

    def state(self, row: DecoderRow) -> str:
        """Where in its answer a row is (a key of `Form.steps`); rows in one state choose from one range of ids."""
        return self.form.state(self.vocab, row.last_token, row.in_span)

    def ids(self, state: str) -> slice | None:
        """The range of ids that may be written in ``state``; None: all."""
        text_range, span_range = self.allowed_ids.text_range, self.allowed_ids.span_range
        if text_range is None or span_range is None:  # not strict
            return None
        if state == SPEECH:
            return slice(min((span_range.start, *self._steps[SPEECH].tokens)), span_range.stop)
        if not self.form.text_first:
            return text_range
        return slice(0, self.vocab.code_stop if self._steps[state].codes else self.vocab.code_start)

    def allowed(self, row: DecoderRow) -> Tensor:
        """Ids that may be written next, bool [V] (strict mode only)."""
        if row.in_span:
            inside = self.allowed_ids.next_in_span
            return inside(row.span_codes, row.last_span, self.length) if self.form.delimited else self._undelimited(row.span_codes)
        step = self._steps[self.state(row)]
        allowed = self._words.clone() if step.words else torch.zeros_like(self._words)
        allowed[list(step.tokens)] = True
        return allowed | self._codes(0) if step.codes else allowed

    def forced(self, row: DecoderRow) -> int | None:
        """The only id that may come next, where no network has to be asked."""
        step = self._steps[self.state(row)]
        alone = self.strict and not step.words and not step.codes and len(step.tokens) == 1
        return step.tokens[0] if alone else None

    @cached_property
    def _words(self) -> Tensor:
        """Ordinary text, bool [V]: without the tokens that only some steps allow, and without a second thought."""
        words = self.allowed_ids.text.clone()
        words[[i for step in self._steps.values() for i in step.tokens]] = False
        if self.form.text_first:
            words[[*self.vocab.modality_tokens.values(), *self._thought_ids]] = False
        return words

    def _codes(self, place: int) -> Tensor:
        """Codes that may stand at a place of the speech."""
        constraint = self.allowed_ids.constraint
        return self.allowed_ids.codes.clone() if constraint is None else self.allowed_ids.codes & constraint.at(torch.tensor(place))

    def _undelimited(self, codes: int) -> Tensor:
        """What may follow ``codes`` codes of speech that only the answer's end will close."""
        constraint, most = self.allowed_ids.constraint, self.length.max_codes(True)
        over = codes >= (most if constraint is None else constraint.codes_within(most))
        allowed = torch.zeros_like(self.allowed_ids.codes) if over else self._codes(codes)
        allowed[self.vocab.im_end_id] = over or constraint is None or constraint.may_end(codes)
        return allowed


def checked_order(
    allowed_ids: AllowedIds,
    tokenizer: TextTokenizer,
    length: LengthRule,
    strict: bool,
    speak: Speak,
    sampler: SpanSampler,
    owed: int,
) -> Order:
    """The order of answers under these settings.

    ``owed``: ``min_text_tokens_after_audio``.  Raises `ConfigError` for settings that the form cannot follow.
    """
    form = tokenizer.vocab.rules
    if not form.text_first and speak != "free":
        raise ConfigError(
            f"eval.speak: {speak!r} is for text-then-speech models, this vocabulary is {form.name!r}; leave it at free"
        )
    if form.text_first and not sampler.autoregressive:
        raise ConfigError(
            f"eval.sampler: a vocabulary of form {form.name!r} has no mask token, so its speech is written token by token; "
            "use eval.sampler=ar"
        )
    if form.text_first and owed:
        raise ConfigError(
            "eval.min_text_tokens_after_audio: no text follows the speech of a text-then-speech model; set 0"
        )
    return Order(allowed_ids, tokenizer, length, strict, speak)
