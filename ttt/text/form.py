"""What a vocabulary form decides: its tokens, its template of chats, and in which order an answer may go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ttt.errors import DataError
from ttt.text.special_tokens import BASE_SPECIALS, MASK, TokenId, code_token
from ttt.text.template import CHATML, Template

if TYPE_CHECKING:
    from ttt.text.vocab import Vocabulary

TEXT, SPEECH = "text", "speech"  # states of an answer that every form has


@dataclass(frozen=True)
class Step:
    """How an answer may continue in one state: ordinary ``words``, ``codes`` of a span, and special ``tokens`` (ids).

    Which codes, how many, and (in forms with delimiters) the token that ends them are the decoder's to decide.
    """

    words: bool = False
    codes: bool = False
    tokens: tuple[int, ...] = ()


class Form(ABC):
    """One way to lay out ids and to write chats.  Forms have no state; `FORMS` holds one object of each."""

    name: ClassVar[str]  # of ``data.form``
    stored: ClassVar[str]  # of `Vocabulary.form` in vocab.json; spellings of one layout share it
    text_first: ClassVar[bool] = False  # an answer is all text, then all speech, written token by token
    delimited: ClassVar[bool] = True  # tokens open and close audio spans
    has_thought: ClassVar[bool] = False  # the template knows Qwen3's <think> and </think>
    fixed_mask: ClassVar[bool] = True  # the mask is one of the added tokens (or absent); False: vocab.json may name another
    default_codebooks: ClassVar[int] = 1
    text_of: ClassVar[str] = ""  # of a form without speech: the form whose chats it writes
    base: ClassVar[tuple[str, ...]] = BASE_SPECIALS  # special tokens that the text tokenizer must have
    before: ClassVar[tuple[str, ...]] = ()  # special tokens added before the codes
    after: ClassVar[tuple[str, ...]] = ()  # special tokens added after the codes
    prefixes: ClassVar[tuple[str, ...]] = ()  # beginnings of added tokens that do not start with "<|"
    text_ids: ClassVar[tuple[str, ...]]  # fields of `Vocabulary` whose ids must lie below ``audio_start``
    audio_ids: ClassVar[tuple[str, ...]]  # fields whose ids must not
    any_ids: ClassVar[tuple[str, ...]] = ()  # fields whose ids may lie anywhere

    # -------------------------------------------------------------------------------------------------- tokens

    @abstractmethod
    def recognises(self, token_id: TokenId) -> bool:
        """Does a tokenizer hold the tokens of this form?  See `recognise`."""

    def add_tokens(self, backend: Any, num_codes: int, num_codebooks: int, mask: bool = True) -> None:
        """Add the form's tokens to a `tokenizers` tokenizer in place; tokens that exist stay as they are.

        ``mask``: whether it needs a mask token, where `fixed_mask` is False.
        """
        from tokenizers import AddedToken

        def missing(names: Iterable[str], special: bool) -> list[Any]:
            return [AddedToken(n, special=special, normalized=False) for n in names if backend.token_to_id(n) is None]

        backend.add_special_tokens(missing(self.base, True))
        backend.add_special_tokens(missing(self.before, True))
        backend.add_tokens(missing((code_token(c) for c in range(num_codes * num_codebooks)), False))
        backend.add_special_tokens(missing((t for t in self.after if mask or t != MASK), True))

    def num_added(self, num_codes: int, num_codebooks: int = 1) -> int:
        """How many tokens the form adds to a backbone that has its ``base`` tokens."""
        return len(self.before) + num_codes * num_codebooks + len(self.after)

    @abstractmethod
    def derive(self, token_id: TokenId, num_codebooks: int, pad: str, mask_id: int | None) -> dict[str, int]:
        """Fields of the `Vocabulary` of a tokenizer with these tokens (all but ``size`` and ``form``).

        ``pad``: spelling of the padding token; ``mask_id``: an id to use as mask, where `fixed_mask` is False.  Raises
        `DataError` naming the first token that is missing or out of order.
        """

    def check(self, v: Vocabulary) -> None:
        """Raise `DataError` for ids that this form cannot have."""
        text, audio, anywhere = (
            {n: getattr(v, n) for n in names} for names in (self.text_ids, self.audio_ids, self.any_ids)
        )
        for name, value in text.items():
            if not 0 <= value < v.audio_start:
                raise DataError(f"vocabulary: {name} = {value} must be a text id (< {v.audio_start})")
        for name, value in audio.items():
            if not v.audio_start <= value < v.size:
                raise DataError(f"vocabulary: {name} = {value} must be an audio id in [{v.audio_start}, {v.size})")
        for name, value in anywhere.items():
            if not 0 <= value < v.size:
                raise DataError(f"vocabulary: {name} = {value} must lie in [0, {v.size})")
        special = {**text, **audio, **anywhere}
        special.pop("code_start", None)
        if len(set(special.values())) != len(special):
            raise DataError(f"vocabulary: special ids must differ, got {special}")
        codes = range(v.code_start, v.code_stop)
        if any(i in codes for i in special.values()) or v.code_stop > v.size:
            raise DataError(f"vocabulary: codes [{codes.start}, {codes.stop}) overlap a special id or the end {v.size}")

    def text_stop(self, v: Vocabulary) -> int:
        """Ids below this one are text."""
        return v.audio_start

    def tags(self, v: Vocabulary) -> dict[str, int]:
        """`TAGS` and their ids, where the form has them."""
        return {}

    def not_text(self, v: Vocabulary) -> tuple[int, ...]:
        """Added ids that may lie below `text_stop` although no text consists of them."""
        return ()

    # ----------------------------------------------------------------------------------------- chats and answers

    def template(self, thinks: bool) -> Template:
        """The template of chats.  ``thinks``: the tokenizer has ``<think>`` and ``</think>``."""
        return CHATML

    def state(self, v: Vocabulary, last: int, in_span: bool) -> str:
        """State of an answer whose last token is ``last`` (-1: none yet): a key of `steps`."""
        return SPEECH if in_span else TEXT

    def steps(self, v: Vocabulary, speak: str) -> Mapping[str, Step]:
        """What may follow in each state; ``speak`` (free, always, never): may, must or must not speech follow the text."""
        return {TEXT: Step(words=True, tokens=(v.im_end_id, v.soa_id, v.soa_last_id)), SPEECH: Step(codes=True)}
