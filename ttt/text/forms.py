"""Vocabulary forms: the tokens added to a text tokenizer, the template of chats, and the order of an answer.

========================= =============================================== ==========================================
form                      ids behind the text                             an answer
========================= =============================================== ==========================================
``interleaved``           20 specials, codes, mask, 2 end tokens          text and audio spans in turn
``roles``                 the same, and 5 tokens for turns before it      the same; chats in LLaDA's template
``text_then_speech``      codes                                           text, then codes without delimiters
``text_then_speech_tags`` 4 tags, codes                                   ``<text>`` text ``</text>``, then codes in
                                                                          ``<speech>`` ``</speech>``
``llada_tts[_audio]``     10 control tokens, codes, mask                  as interleaved; all spans open and end alike
``text``, ``roles_text``  mask, unless the tokenizer has one              text; chats as in ``interleaved``, ``roles``
``headers``               the same                                        text; chats of LLaDA's published models
========================= =============================================== ==========================================

Sources: TtT (arXiv 2509.20072) for ``interleaved``; SLAM-Omni (arXiv 2412.15649) for text then speech; LLaDA (arXiv
2502.09992) for the template of ``roles``.  To add a form, write a subclass of `Form` and put an instance into `FORMS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ttt.errors import DataError, suggest
from ttt.text.form import SPEECH, TEXT, Form, Step
from ttt.text.special_tokens import (
    ABSENT,
    END_OF_TEXT,
    FINAL_SPECIALS,
    HEADER_TOKENS,
    MASK,
    MULTIMODAL_SPECIALS,
    ROLE_TOKENS,
    TAGS,
    TokenId,
    code_ids,
    id_of,
)
from ttt.text.template import Template

if TYPE_CHECKING:
    from ttt.text.vocab import Vocabulary

DEFAULT_FORM = "interleaved"
class Interleaved(Form):
    """Layout of TtT's official program: base vocabulary, `MULTIMODAL_SPECIALS`, codes, `FINAL_SPECIALS`.

    A token is audio iff its id is at least that of ``<|audio|>``, the last of the multimodal specials.  So tokens that
    open a span are text (predicted left to right), and those that end an answer's span are audio (predicted by
    diffusion).
    """

    name = stored = "interleaved"
    before: ClassVar[tuple[str, ...]] = MULTIMODAL_SPECIALS
    after: ClassVar[tuple[str, ...]] = FINAL_SPECIALS
    text_ids: ClassVar[tuple[str, ...]] = ("soa_id", "soa_last_id", "user_end_id", "im_start_id", "im_end_id", "pad_id")
    audio_ids: ClassVar[tuple[str, ...]] = ("code_start", "mask_id", "eoa_id", "eoa_last_id")
    turn_start, turn_end = "<|im_start|>", "<|im_end|>"

    def recognises(self, token_id: TokenId) -> bool:
        return any(token_id(token) is not None for token in (*MULTIMODAL_SPECIALS, *FINAL_SPECIALS))

    def derive(self, token_id: TokenId, num_codebooks: int, pad: str, mask_id: int | None) -> dict[str, int]:
        codes = code_ids(token_id, num_codebooks)
        spelled = {
            "audio_start": "<|audio|>", "mask_id": MASK, "soa_id": "<|begin_of_audio|>",
            "soa_last_id": "<|begin_of_quad|>", "user_end_id": "<|end_of_audio|>", "eoa_id": "<|end_of_audio_new|>",
            "eoa_last_id": "<|end_of_audio_span_last|>", "im_start_id": self.turn_start, "im_end_id": self.turn_end,
            "pad_id": pad,
        }  # fmt: skip
        return codes | {field: id_of(token_id, token) for field, token in spelled.items()}


class Roles(Interleaved):
    """The interleaved layout behind `ROLE_TOKENS`, with which LLaDA's text program writes chats:

    ``<|user|>`` newline content ``<|endoftext|>``, and the same for the other roles.
    """

    name = stored = "roles"
    base = ROLE_TOKENS
    turn_start, turn_end = "<|user|>", END_OF_TEXT

    def recognises(self, token_id: TokenId) -> bool:
        return super().recognises(token_id) and token_id("<|filler|>") is not None

    def derive(self, token_id: TokenId, num_codebooks: int, pad: str, mask_id: int | None) -> dict[str, int]:
        for head in ("<|system|>", "<|assistant|>"):
            id_of(token_id, head)
        return super().derive(token_id, num_codebooks, "<|filler|>", mask_id)

    def template(self, thinks: bool) -> Template:
        roles = ("system", "user", "assistant")
        return Template(False, frames={role: ((f"<|{role}|>", "\n"), (END_OF_TEXT,)) for role in roles})


class TextAlone(Interleaved):
    """No speech (``data.num_codes: 0``): a text tokenizer and a mask, which it may have already; ids are all text."""

    name = stored = "text"
    text_of = "interleaved"
    fixed_mask = False
    before, after = (), (MASK,)
    text_ids = ("im_start_id", "im_end_id", "pad_id")
    audio_ids = ()
    any_ids = ("mask_id",)

    def recognises(self, token_id: TokenId) -> bool:
        """By the mask that was added; with another mask only vocab.json tells."""
        others = (*MULTIMODAL_SPECIALS, *FINAL_SPECIALS[1:])
        return token_id(MASK) is not None and all(token_id(token) is None for token in others)

    def derive(self, token_id: TokenId, num_codebooks: int, pad: str, mask_id: int | None) -> dict[str, int]:
        absent = ("soa_id", "soa_last_id", "user_end_id", "eoa_id", "eoa_last_id")
        return {
            "num_codes": 0, "num_codebooks": 1, **dict.fromkeys(absent, ABSENT), "pad_id": id_of(token_id, pad),
            "mask_id": id_of(token_id, MASK) if mask_id is None else mask_id, "im_start_id": id_of(token_id, self.turn_start),
            "im_end_id": id_of(token_id, self.turn_end),
        }  # fmt: skip

    def not_text(self, v: Vocabulary) -> tuple[int, ...]:
        return (v.mask_id,)

    def steps(self, v: Vocabulary, speak: str) -> Mapping[str, Step]:
        return {TEXT: Step(words=True, tokens=(v.im_end_id,)), SPEECH: Step()}


class RolesTextAlone(TextAlone):
    """The same, with chats as in `Roles`."""

    name = stored = "roles_text"
    text_of = "roles"
    base = Roles.base
    turn_start, turn_end = Roles.turn_start, Roles.turn_end

    def recognises(self, token_id: TokenId) -> bool:
        return super().recognises(token_id) and token_id("<|filler|>") is not None

    def derive(self, token_id: TokenId, num_codebooks: int, pad: str, mask_id: int | None) -> dict[str, int]:
        return super().derive(token_id, num_codebooks, "<|filler|>", mask_id)

    def template(self, thinks: bool) -> Template:
        return Roles().template(thinks)


class Headers(TextAlone):
    """The same, with chats as in LLaDA's published models (and Llama 3): the role between header tokens, then two newlines."""

    name = stored = text_of = "headers"
    base = HEADER_TOKENS
    turn_start, turn_end = "<|start_header_id|>", "<|eot_id|>"

    def recognises(self, token_id: TokenId) -> bool:
        return super().recognises(token_id) and token_id("<|im_start|>") is None and token_id(self.turn_start) is not None

    def template(self, thinks: bool) -> Template:
        frames = {
            role: ((self.turn_start, role, "<|end_header_id|>", "\n\n"), (self.turn_end,))
            for role in ("system", "user", "assistant")
        }
        return Template(False, frames=frames, begin=HEADER_TOKENS[:1])


class TextThenSpeech(Form):
    """Codes alone are added, up to the end of the vocabulary; an answer is text, then codes, then ``<|im_end|>``."""

    name = stored = "text_then_speech"
    text_first, delimited, has_thought = True, False, True
    text_ids: ClassVar[tuple[str, ...]] = ("im_start_id", "im_end_id", "pad_id")
    audio_ids = ("code_start",)
    absent: ClassVar[tuple[str, ...]] = ("mask_id", "text_open_id", "text_close_id", "soa_id", "eoa_id")

    def recognises(self, token_id: TokenId) -> bool:
        return not any(token_id(token) is not None for token in (*MULTIMODAL_SPECIALS, *FINAL_SPECIALS, *TAGS))

    def derive(self, token_id: TokenId, num_codebooks: int, pad: str, mask_id: int | None) -> dict[str, int]:
        codes = code_ids(token_id, num_codebooks)
        text_open, text_close, opener, closer = self._tag_ids(token_id, codes["code_start"])
        return {
            **codes, "audio_start": codes["code_start"], "mask_id": ABSENT, "soa_id": opener, "soa_last_id": opener,
            "user_end_id": closer, "eoa_id": closer, "eoa_last_id": closer, "text_open_id": text_open,
            "text_close_id": text_close, "im_start_id": id_of(token_id, "<|im_start|>"),
            "im_end_id": id_of(token_id, "<|im_end|>"), "pad_id": id_of(token_id, pad),
        }  # fmt: skip

    def _tag_ids(self, token_id: TokenId, code_start: int) -> list[int]:
        return [ABSENT] * len(TAGS)

    def check(self, v: Vocabulary) -> None:
        _check_one_kind_of_span(v)
        for name in self.absent:
            if getattr(v, name) != ABSENT:
                raise DataError(f"vocabulary: form {v.form!r} has no {name}, got {getattr(v, name)}")
        if v.code_stop != v.size:
            raise DataError(
                f"vocabulary: form {v.form!r} ends with its codes, but ids [{v.code_stop}, {v.size}) follow them"
            )
        super().check(v)

    def template(self, thinks: bool) -> Template:
        return Template(False, "answer" if thinks else "", None, False)

    def steps(self, v: Vocabulary, speak: str) -> Mapping[str, Step]:
        end = (v.im_end_id,)
        return {
            TEXT: Step(words=True, codes=speak != "never", tokens=end if speak != "always" else ()),
            SPEECH: Step(codes=True, tokens=end),
        }


class TextThenSpeechTags(TextThenSpeech):
    """Four `TAGS` before the codes mark where text and speech of an answer begin and end."""

    name = stored = "text_then_speech_tags"
    delimited = True
    before = TAGS
    text_ids = ("im_start_id", "im_end_id", "pad_id", "text_open_id", "text_close_id", "soa_id", "eoa_id")
    absent = ("mask_id",)

    def recognises(self, token_id: TokenId) -> bool:
        others = (*MULTIMODAL_SPECIALS, *FINAL_SPECIALS)
        return any(token_id(tag) is not None for tag in TAGS) and not any(token_id(t) is not None for t in others)

    def _tag_ids(self, token_id: TokenId, code_start: int) -> list[int]:
        ids = [id_of(token_id, tag) for tag in TAGS]
        if ids != list(range(code_start - len(TAGS), code_start)):
            raise DataError(
                f"tokenizer: {', '.join(TAGS)} must be the ids right before the codes, which start at {code_start}; got {ids}"
            )
        return ids

    def text_stop(self, v: Vocabulary) -> int:
        return v.text_open_id

    def tags(self, v: Vocabulary) -> dict[str, int]:
        return dict(zip(TAGS, (v.text_open_id, v.text_close_id, v.soa_id, v.eoa_id), strict=True))

    def template(self, thinks: bool) -> Template:
        return Template(False, "prompt" if thinks else "", TAGS[:2], False)

    def state(self, v: Vocabulary, last: int, in_span: bool) -> str:
        between = {-1: "begin", v.text_close_id: "turn", v.eoa_id: "end"}
        return SPEECH if in_span else between.get(last, TEXT)

    def steps(self, v: Vocabulary, speak: str) -> Mapping[str, Step]:
        after_text = {"free": (v.soa_id, v.im_end_id), "always": (v.soa_id,), "never": (v.im_end_id,)}[speak]
        return {
            "begin": Step(tokens=(v.text_open_id,)), TEXT: Step(words=True, tokens=(v.text_close_id,)),
            "turn": Step(tokens=after_text), SPEECH: Step(codes=True), "end": Step(tokens=(v.im_end_id,)),
        }  # fmt: skip


class LladaTts(Form):
    """Layout of LLaDA-TTS: added token i has the id base + i.

        i        0       1                2              3, 4          5, 6       7    8, 9      10 + C * q + c         last
        meaning  unused  start of speech  end of speech  human begin,  ai begin,  pad  reserved  code c at position q   mask
                                                         end           end

    With a Llama-3 tokenizer (base 128,256) and SNAC (7 positions of 4,096 codes a coarse frame) these are the published
    28,683 ids; any codec of Q positions and C codes fits.  In this spelling all tokens are ``<custom_token_i>``; the
    mask is the one token more than the codes need.  A turn is ``<3> text <4>`` or ``<5> text or <1> codes <2> <6>``.
    """

    name = stored = "llada_tts"
    fixed_mask = False
    default_codebooks = 7  # SNAC
    prefixes = ("<custom_token_", "<special_token_", "<audio_token_")
    text_ids = ("soa_id", "eoa_id", "im_start_id", "im_end_id", "pad_id")
    audio_ids = ("code_start",)
    any_ids = ("mask_id",)
    controls: ClassVar[int] = 10
    start_of_speech, end_of_speech, human, human_end, ai, ai_end, pad = range(1, 8)
    mask: ClassVar[str] = ""  # spelling of the mask; "": it is numbered like the codes

    def token(self, number: int) -> str:
        """Spelling of the added token of this number.

        >>> LladaTts().token(12), LladaTtsAudio().token(3), LladaTtsAudio().token(12)
        ('<custom_token_12>', '<special_token_3>', '<audio_token_2>')
        """
        return f"<custom_token_{number}>"

    def tokens(self, num_codes: int, num_codebooks: int) -> list[str]:
        """All added tokens in order: 10 + Q * C + 1 of them."""
        last = self.controls + num_codebooks * num_codes
        return [*(self.token(i) for i in range(last)), self.mask or self.token(last)]

    def num_added(self, num_codes: int, num_codebooks: int = 1) -> int:
        return self.controls + num_codebooks * num_codes + 1

    def recognises(self, token_id: TokenId) -> bool:
        return token_id(self.token(self.start_of_speech)) is not None

    def add_tokens(self, backend: Any, num_codes: int, num_codebooks: int, mask: bool = True) -> None:
        """See `Form.add_tokens`.  Raises `DataError` when only some of the tokens are there."""
        from tokenizers import AddedToken

        tokens = self.tokens(num_codes, num_codebooks)
        if all(backend.token_to_id(t) is not None for t in tokens if t != self.mask):
            return
        present = next((t for t in tokens if backend.token_to_id(t) is not None), None)
        if present is not None:
            raise DataError(f"tokenizer: {present!r} is there already; start from the backbone's own tokenizer")
        codes = range(self.controls, len(tokens) - 1)
        backend.add_tokens([AddedToken(t, special=i not in codes, normalized=False) for i, t in enumerate(tokens)])

    def derive(self, token_id: TokenId, num_codebooks: int, pad: str, mask_id: int | None) -> dict[str, int]:
        """See `Form.derive`.  ``mask_id``: as the constant 126336 of the published programs; None: the last added token."""
        first, count = token_id(self.token(0)), 0
        while (at := token_id(self.token(count))) is not None:
            if at != first + count:
                raise DataError(f"tokenizer: {self.token(count)!r} has id {at}, expected {first} + {count}")
            count += 1
        codes = count - self.controls - (not self.mask)
        num_codes = codes // num_codebooks
        if num_codes < 1:
            raise DataError(f"tokenizer: {count} added tokens are too few for {num_codebooks} positions a frame")
        mask_token = self.mask or self.token(self.controls + num_codebooks * num_codes)
        mask = token_id(mask_token) if mask_id is None else mask_id
        if mask is None:
            raise DataError(
                f"tokenizer: no token is left for the mask ({mask_token!r} is missing); name the id that the model was trained "
                "with as mask_id in vocab.json, or extend the backbone's own tokenizer ('ttt tokenizer')"
            )
        if codes % num_codebooks:
            raise DataError(
                f"tokenizer: {codes} code tokens are not {num_codebooks} positions of one size; say num_codebooks in vocab.json"
            )
        start, end, code_start = first + self.start_of_speech, first + self.end_of_speech, first + self.controls
        return {
            "audio_start": code_start, "code_start": code_start, "num_codes": num_codes, "num_codebooks": num_codebooks,
            "mask_id": int(mask), "soa_id": start, "soa_last_id": start, "user_end_id": end, "eoa_id": end, "eoa_last_id": end,
            "im_start_id": first + self.human, "im_end_id": first + self.ai_end, "pad_id": first + self.pad,
        }  # fmt: skip

    def check(self, v: Vocabulary) -> None:
        _check_one_kind_of_span(v)
        super().check(v)

    def not_text(self, v: Vocabulary) -> tuple[int, ...]:
        return (*range(v.soa_id - self.start_of_speech, v.code_start), v.mask_id)

    def template(self, thinks: bool) -> Template:
        human, human_end, ai, ai_end = (
            (self.token(i),) for i in (self.human, self.human_end, self.ai, self.ai_end)
        )  # fmt: skip
        return Template(empty_system=False, frames={"user": (human, human_end), "assistant": (ai, ai_end)})


class LladaTtsAudio(LladaTts):
    """The same ids under other names: ``<special_token_i>`` for the first ten, then ``<audio_token_j>``, and the mask."""

    name = "llada_tts_audio"
    mask = "<|mdm_mask|>"

    def token(self, number: int) -> str:
        return f"<special_token_{number}>" if number < self.controls else f"<audio_token_{number - self.controls}>"


# From general to special: `recognise` asks the last one first.
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Interleaved(), Roles(), TextAlone(), RolesTextAlone(), Headers(), TextThenSpeech(), TextThenSpeechTags(), LladaTts(),
        LladaTtsAudio(),
    )
}


def form_named(name: str, where: str = "", num_codes: int = 1) -> Form:
    """The form that ``data.form`` calls ``name``; with ``num_codes`` 0 the one without speech that writes its chats.

    Raises `DataError` listing the forms.
    """
    if name not in FORMS:
        raise DataError(f"{where}form {name!r} is none of {', '.join(FORMS)}.{suggest(name, FORMS)}")
    if num_codes:
        if FORMS[name].text_of == name:
            raise DataError(f"{where}form {name!r} is for text alone; say so with data.num_codes=0")
        return FORMS[name]
    alone = {form.text_of: form for form in FORMS.values() if form.text_of}
    if name not in alone:
        raise DataError(f"{where}form {name!r} is for speech, num_codes 0 for text alone; use one of {', '.join(alone)}")
    return alone[name]


def recognise(token_id: TokenId) -> Form:
    """The form whose tokens a tokenizer holds (text alone: `TextThenSpeech` without codes)."""
    return next(form for form in reversed(FORMS.values()) if form.recognises(token_id))


def _check_one_kind_of_span(v: Vocabulary) -> None:
    if v.soa_id != v.soa_last_id or len({v.user_end_id, v.eoa_id, v.eoa_last_id}) > 1:
        raise DataError(f"vocabulary: form {v.form!r} opens and ends all spans alike")
