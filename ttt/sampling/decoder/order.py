"""What may be written next, token by token: the order of text and speech that the vocabulary's form prescribes.

Interleaved answers go from text to spans and back as the model likes.  Text-then-speech answers are a small machine on the
last token written (the bar: where `eval.speak` decides):

    tagged   <text>  words ...  </text> | <speech>  codes ...  </speech>  <|im_end|>
    plain    words ... | codes ...  <|im_end|>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ttt.errors import ConfigError, suggest
from ttt.interfaces import LengthRule, SpanSampler
from ttt.sampling.decoder.filling import Row
from ttt.sampling.samplers.allowed import Allowed
from ttt.text.template import NO_THOUGHT
from ttt.text.tokenizer import TextTokenizer
from ttt.text.vocab import PLAIN, TAGGED, Vocabulary

SPEAK = ("free", "always", "never")
TEXT, SPEECH = "text", "speech"


@dataclass(frozen=True)
class Interleaved:
    """Text and spans in turn: text ids in text, in a span codes and the end token that fits it."""

    may: Allowed
    vocab: Vocabulary
    length: LengthRule
    strict: bool
    ends_in_speech: bool = field(default=False, init=False)  # <|im_end|> inside a span is no end of the answer

    def state(self, row: Row) -> str:
        """Rows in one state choose from one range of ids."""
        return SPEECH if row.open else TEXT

    def ids(self, state: str) -> slice | None:
        """The range of ids that may be written in ``state``; None: all."""
        return self.may.in_span if state == SPEECH else self.may.in_text

    def allowed(self, row: Row) -> Tensor:
        """Ids that may be written next, bool [V] (strict mode only)."""
        return self.may.inside(row.codes, row.last, self.length) if row.open else self.may.text

    def forced(self, row: Row) -> int | None:
        """The only id that may come next, where no network has to be asked."""
        return None


@dataclass(frozen=True)
class TextThenSpeech(Interleaved):
    """All text, then all speech.

    ``speak``: whether speech may (``free``), must or must not follow the text; ``thoughts``: ids around a thought, which the
    prompt holds already.
    """

    speak: str = "free"
    thoughts: tuple[int, ...] = ()
    ends_in_speech: bool = field(default=True, init=False)

    def state(self, row: Row) -> str:
        """``text``, ``speech``, and where only tags or the end may stand: ``begin``, ``turn``, ``end``."""
        v = self.vocab
        if row.open:
            return SPEECH
        if v.form == PLAIN:
            return TEXT
        return {-1: "begin", v.text_close_id: "turn", v.eoa_id: "end"}.get(row.token, TEXT)

    def ids(self, state: str) -> slice | None:
        """See `Interleaved.ids`."""
        if not self.strict:
            return None
        v = self.vocab
        first, stop = (0, v.code_start)
        if v.form == PLAIN:
            first, stop = (
                v.im_end_id if state == SPEECH else 0,
                v.audio_start if self.speak == "never" else v.code_stop,
            )
        elif state == SPEECH:
            first, stop = v.eoa_id, v.code_stop
        return slice(first, stop)

    def allowed(self, row: Row) -> Tensor:
        """See `Interleaved.allowed`."""
        v, state = self.vocab, self.state(row)
        if state == SPEECH:
            return self._undelimited(row.codes) if v.form == PLAIN else self.may.inside(row.codes, True, self.length)
        allowed = self.may.text.clone()
        allowed[[v.im_end_id, *v.modality_tokens.values(), *self.thoughts]] = False
        if v.form == TAGGED:
            if state == TEXT:
                allowed[v.text_close_id] = True
                return allowed
            return torch.isin(torch.arange(len(allowed)), torch.tensor(self._next(state)))
        allowed[v.im_end_id] = self.speak != "always"
        return allowed if self.speak == "never" else allowed | self._codes(0)

    def forced(self, row: Row) -> int | None:
        """See `Interleaved.forced`."""
        if not self.strict or self.vocab.form == PLAIN or self.state(row) in (TEXT, SPEECH):
            return None
        found = self._next(self.state(row))
        return found[0] if len(found) == 1 else None

    def _codes(self, place: int) -> Tensor:
        """Codes that may stand at a place of the speech."""
        places = self.may.places
        return self.may.codes.clone() if places is None else self.may.codes & places.at(torch.tensor(place))

    def _undelimited(self, codes: int) -> Tensor:
        """What may follow ``codes`` codes that nothing but the answer's end will close."""
        places, most = self.may.places, self.length.max_codes(True)
        over = codes >= (most if places is None else places.codes_within(most))
        allowed = torch.zeros_like(self.may.codes) if over else self._codes(codes)
        whole = places is None or bool(places.constraint.may_end(torch.tensor(codes), places.codebooks))
        allowed[self.vocab.im_end_id] = over or whole
        return allowed

    def _next(self, state: str) -> Sequence[int]:
        """Tags, or the end, that may follow outside text and speech."""
        v = self.vocab
        behind = {"free": (v.soa_id, v.im_end_id), "always": (v.soa_id,), "never": (v.im_end_id,)}[self.speak]
        return {"begin": (v.text_open_id,), "turn": behind, "end": (v.im_end_id,)}[state]


def order_of(
    may: Allowed,
    tokenizer: TextTokenizer,
    length: LengthRule,
    strict: bool,
    speak: str,
    sampler: SpanSampler,
    owed: int,
) -> Interleaved:
    """The order that the form of the tokenizer's vocabulary prescribes.

    ``owed``: ``min_text_tokens_after_audio``.  Raises `ConfigError` for settings that the form cannot follow.
    """
    vocab = tokenizer.vocab
    if speak not in SPEAK:
        raise ConfigError(f"eval.speak: {speak!r} is none of {', '.join(SPEAK)}.{suggest(speak, SPEAK)}")
    if vocab.form not in (PLAIN, TAGGED):
        if speak != "free":
            raise ConfigError(
                f"eval.speak: {speak!r} is for text-then-speech models, this vocabulary is {vocab.form!r}; leave it at free"
            )
        return Interleaved(may, vocab, length, strict)
    if not sampler.autoregressive:
        raise ConfigError(
            f"eval.sampler: a vocabulary of form {vocab.form!r} has no mask token, so its speech is written token by token; "
            "use eval.sampler=ar"
        )
    if owed:
        raise ConfigError(
            "eval.min_text_tokens_after_audio: no text follows the speech of a text-then-speech model; set 0"
        )
    thoughts = (tokenizer.backend.token_to_id(mark) for mark in NO_THOUGHT[::2])
    return TextThenSpeech(may, vocab, length, strict, speak, tuple(i for i in thoughts if i is not None))
