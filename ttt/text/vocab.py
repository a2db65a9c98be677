"""The id space: which ids are text, codes, delimiters; derived from the tokenizer and checked, never hard-coded.

Official order (spec of TtT, section 1): base vocabulary, twenty multimodal specials of which the last is ``<|audio|>``
(the first audio-class id), ``<|audio_0|>`` ... one per code, then ``<|mask_token|>``, ``<|end_of_audio_new|>``,
``<|end_of_audio_span_last|>``.  A token is audio iff its id >= the id of ``<|audio|>``; the tokens that *open* a span
are therefore text (predicted left to right) and the ones that close an answer's span are audio (predicted by diffusion).

Text-then-speech models (spec of SLAM-Omni, section 4) add less: nothing or four `TAGS`, then one id per code, up to the end
of the vocabulary.  What a form does not have is `ABSENT`.  The layout of LLaDA-TTS is told in `ttt.text.llada`.  The form
`ROLES` is the official order with five tokens before it (`ROLE_TOKENS`), with which LLaDA's text program writes chats.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import DataError, suggest
from ttt.types import CodeSpace

MULTIMODAL_SPECIALS = (
    *(f"<|{part}_of_{what}|>" for what in ("image", "video", "patch") for part in ("begin", "end", "context")),
    *(f"<|{part}_of_{what}|>" for what in ("audio", "quad", "ref", "box") for part in ("begin", "end")),
    "<|image|>", "<|video|>", "<|audio|>",
)  # fmt: skip
FINAL_SPECIALS = ("<|mask_token|>", "<|end_of_audio_new|>", "<|end_of_audio_span_last|>")

TAGS = ("<text>", "</text>", "<speech>", "</speech>")  # around an answer's text, around its codes
END_OF_TEXT = "<|endoftext|>"
# Ends a turn, pads a row, begins turns.
ROLE_TOKENS = (END_OF_TEXT, "<|filler|>", "<|system|>", "<|user|>", "<|assistant|>")
INTERLEAVED, PLAIN, TAGGED, LLADA = "interleaved", "text_then_speech", "text_then_speech_tags", "llada_tts"
ROLES = "roles"
FORMS = (INTERLEAVED, PLAIN, TAGGED, LLADA, ROLES)
ABSENT = -1  # a special id that the layout does not have; no token has it


def code_token(code: int) -> str:
    """Spelling of a code in text data.

    >>> code_token(7)
    '<|audio_7|>'
    """
    return f"<|audio_{code}|>"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of everything that is not ordinary text.  ``size``: number of ids.

    Codes of codebook q start at ``code_start + q * num_codes`` (one codebook: the official layout).  ``form``: which tokens
    there are beside text and codes; it also decides how chats are written (`ttt.text.template.template_of`).  ``codec`` and
    ``frame_rate_hz`` say what made the codes, where that is known; they are no part of the layout.
    """

    size: int
    audio_start: int
    code_start: int
    num_codes: int
    mask_id: int
    soa_id: int
    soa_last_id: int
    user_end_id: int
    eoa_id: int
    eoa_last_id: int
    im_start_id: int
    im_end_id: int
    pad_id: int
    num_codebooks: int = 1
    form: str = INTERLEAVED
    text_open_id: int = ABSENT
    text_close_id: int = ABSENT
    codec: str = field(default="", compare=False)
    frame_rate_hz: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            known = f"{', '.join(FORMS)}.{suggest(self.form, FORMS)}"
            raise DataError(f"vocabulary: form {self.form!r} is none of {known}")
        text, audio = self._special_ids()
        for name, value in text.items():
            if not 0 <= value < self.audio_start:
                raise DataError(f"vocabulary: {name} = {value} must be a text id (< {self.audio_start})")
        for name, value in audio.items():
            if not self.audio_start <= value < self.size:
                raise DataError(
                    f"vocabulary: {name} = {value} must be an audio id in [{self.audio_start}, {self.size})"
                )
        special = {**text, **audio}
        del special["code_start"]
        if self.form == LLADA:
            special["mask_id"] = self.mask_id
            if not 0 <= self.mask_id < self.size:
                raise DataError(f"vocabulary: mask_id = {self.mask_id} must lie in [0, {self.size})")
        if len(set(special.values())) != len(special):
            raise DataError(f"vocabulary: special ids must differ, got {special}")
        codes = range(self.code_start, self.code_stop)
        if any(v in codes for v in special.values()) or self.code_stop > self.size:
            raise DataError(
                f"vocabulary: codes [{codes.start}, {codes.stop}) overlap a special id or the end {self.size}"
            )

    def _special_ids(self) -> tuple[dict[str, int], dict[str, int]]:
        """The special ids that this form has, each once: those that must be text, those that must be audio."""

        def named(*names: str) -> dict[str, int]:
            return {name: getattr(self, name) for name in names}

        frame = ("im_start_id", "im_end_id", "pad_id")
        if self.form in (INTERLEAVED, ROLES):
            audio = named("code_start", "mask_id", "eoa_id", "eoa_last_id")
            return named("soa_id", "soa_last_id", "user_end_id", *frame), audio
        if self.soa_id != self.soa_last_id or len({self.user_end_id, self.eoa_id, self.eoa_last_id}) > 1:
            raise DataError(f"vocabulary: form {self.form!r} opens and ends all spans alike")
        if self.form == LLADA:
            return named("soa_id", "eoa_id", *frame), named("code_start")
        absent = ["mask_id"] + ["text_open_id", "text_close_id", "soa_id", "eoa_id"] * (self.form == PLAIN)
        for name in absent:
            if getattr(self, name) != ABSENT:
                raise DataError(f"vocabulary: form {self.form!r} has no {name}, got {getattr(self, name)}")
        if self.code_stop != self.size:
            raise DataError(
                f"vocabulary: form {self.form!r} ends with its codes, but ids [{self.code_stop}, {self.size}) follow them"
            )
        tags = ("text_open_id", "text_close_id", "soa_id", "eoa_id") if self.form == TAGGED else ()
        return named(*frame, *tags), named("code_start")

    @property
    def text_vocab(self) -> int:
        """Ids below this one are text.

        In the interleaved form that includes the tokens that open a span, because they are written like text.
        """
        return self.text_open_id if self.form == TAGGED else self.audio_start

    @property
    def modality_tokens(self) -> dict[str, int]:
        """The four `TAGS` and their ids; none in other forms."""
        ids = (self.text_open_id, self.text_close_id, self.soa_id, self.eoa_id)
        return dict(zip(TAGS, ids, strict=True)) if self.form == TAGGED else {}

    @property
    def controls(self) -> range:
        """The added tokens before the codes of LLaDA-TTS, delimiters among them; none in other forms."""
        return range(self.soa_id - 1, self.code_start) if self.form == LLADA else range(0)

    @property
    def code_stop(self) -> int:
        """One past the last code id."""
        return self.code_start + self.num_codes * self.num_codebooks

    @property
    def code_space(self) -> CodeSpace:
        """The ids of every code position of a frame, and the tokens that end an answer's span."""
        starts = range(self.code_start, self.code_stop, self.num_codes)
        ends = sorted({self.eoa_id, self.eoa_last_id} - {ABSENT})
        return CodeSpace(tuple((at, at + self.num_codes) for at in starts), tuple(ends), self.frame_rate_hz)

    def is_audio(self, ids: Any) -> Any:
        """Audio-class ids (codes, mask, end tokens of the layout ``ttt``): works on arrays and tensors."""
        audio = ids >= self.audio_start
        return audio | (ids == self.mask_id) if 0 <= self.mask_id < self.audio_start else audio

    def code_ids(self, codes: np.ndarray, where: str = "codes") -> np.ndarray:
        """Codes [F, Q] -> ids [F * Q], frame by frame.  Raises `DataError` naming the first code outside the codebook."""
        if codes.ndim != 2 or codes.shape[1] != self.num_codebooks:
            raise DataError(f"{where}: expected codes [F, {self.num_codebooks}], got {list(codes.shape)}")
        bad = (codes < 0) | (codes >= self.num_codes)
        if bad.any():
            frame, codebook = np.argwhere(bad)[0]
            raise DataError(
                f"{where}: code {codes[frame, codebook]} at frame {frame} is outside the codebook of {self.num_codes}; "
                "tokenize with the codec this vocabulary was made for"
            )
        return (codes.astype(np.int64) + self.code_start + np.arange(self.num_codebooks) * self.num_codes).reshape(-1)

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """Ids -> codes i32 [F, Q].

        Ids that are no codes are left out, and so is every code that is not part of a frame: one code of each codebook, in the
        books' order.  Free decoding may write such codes, and another book's code must not be read as this one's.
        """
        ids = np.asarray(ids, dtype=np.int64)
        ids = ids[(ids >= self.code_start) & (ids < self.code_stop)] - self.code_start
        codebook, code = np.divmod(ids, self.num_codes)
        starts = np.ones(max(len(ids) - self.num_codebooks + 1, 0), dtype=bool)
        for q in range(self.num_codebooks):
            starts &= codebook[q : q + len(starts)] == q
        return code[np.flatnonzero(starts)[:, None] + np.arange(self.num_codebooks)].astype(np.int32)

    def frames(self, ids: np.ndarray, where: str = "ids") -> np.ndarray:
        """The exact inverse of `code_ids`: ids [F * Q] -> codes i32 [F, Q].

        Raises `DataError` naming the first id that is no code of its place in the frame, or an unfinished last frame.
        """
        ids = np.asarray(ids, dtype=np.int64)
        codebook = np.arange(len(ids)) % self.num_codebooks
        codes = ids - self.code_start - codebook * self.num_codes
        bad = np.flatnonzero((codes < 0) | (codes >= self.num_codes))
        if len(bad):
            at = int(bad[0])
            first = self.code_start + int(codebook[at]) * self.num_codes
            raise DataError(
                f"{where}: id {ids[at]} at place {at} is no code for position {codebook[at]} "
                f"of frame {at // self.num_codebooks}, whose "
                f"ids are {first} to {first + self.num_codes - 1}; mend the data or name the tokenizer they were made with"
            )
        if len(ids) % self.num_codebooks:
            raise DataError(
                f"{where}: {len(ids)} codes are no whole frames of {self.num_codebooks}; cut the last "
                f"{len(ids) % self.num_codebooks} codes off"
            )
        return codes.reshape(-1, self.num_codebooks).astype(np.int32)

    def opener(self, style: str) -> int | None:
        """Id that opens an audio span of ``style`` (see `ttt.types.AUDIO_STYLES`); None in a form without delimiters."""
        found = self.soa_last_id if style in ("last", "open_last") else self.soa_id
        return None if found == ABSENT else found

    def closer(self, style: str) -> int | None:
        """Id that closes an audio span of ``style``; None for an open one, and in a form without delimiters."""
        found = {"user": self.user_end_id, "span": self.eoa_id, "last": self.eoa_last_id}.get(style, ABSENT)
        return None if found == ABSENT else found

    @property
    def digest(self) -> str:
        """Short digest of the layout: two models with one digest agree on every special id.

        Fields that came later count only where they differ from their default, so that digests of older folders hold.
        """
        layout = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        for name, default in (("form", INTERLEAVED), ("text_open_id", ABSENT), ("text_close_id", ABSENT)):
            if layout[name] == default:
                del layout[name]
        return hashlib.blake2b(json.dumps(layout, sort_keys=True).encode(), digest_size=8).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The layout under the names that other toolkits' ``vocab.json`` use."""
        return {
            "text_vocab": self.text_vocab, "modality_tokens": self.modality_tokens, "speech_offset": self.code_start,
            "speech_vocab": self.num_codes * self.num_codebooks, "total": self.size, "frame_rate": self.frame_rate_hz,
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write as JSON: the fields, `summary`, and the digest."""
        path.write_text(json.dumps({**asdict(self), **self.summary(), "digest": self.digest}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote.  Raises `DataError` when the summary or the digest contradicts the fields."""
        try:
            raw = json.loads(path.read_text())
            names = {f.name for f in fields(cls)}
            said = {k: raw.pop(k) for k in list(raw) if k not in names}
            vocab = cls(**raw)
        except FileNotFoundError:
            raise DataError(
                f"{path}: no vocabulary here; make it with 'ttt tokenizer' or name another folder"
            ) from None
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a vocabulary file: {error}") from error
        known = {**vocab.summary(), "digest": vocab.digest}
        for name, value in said.items():
            if name not in known:
                raise DataError(f"{path}: not a vocabulary file: unknown key {name!r}")
            if value != known[name]:
                raise DataError(
                    f"{path}: {name} is {value!r}, the other fields make it {known[name]!r}; run 'ttt tokenizer' again"
                )
        return vocab

    @staticmethod
    def is_saved(path: Path) -> bool:
        """Is this a file of `save` (and not the token table of a Hugging Face tokenizer, which has the same name)?"""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(raw, dict) and {"code_start", "digest"} <= set(raw)


def derive(token_id: Any, size: int, pad: str = "<|endoftext|>", num_codebooks: int = 1) -> Vocabulary:
    """Vocabulary of a tokenizer that was extended (`ttt.text.tokenizer.extend`); its tokens tell which form it has.

    ``token_id``: spelling -> id or None; ``num_codebooks``: of equal size.  Raises `DataError` naming the first token that is
    missing or out of order.
    """

    def need(token: str) -> int:
        found = token_id(token)
        if found is None:
            raise DataError(f"tokenizer: token {token!r} is missing; extend the vocabulary first ('ttt tokenizer')")
        return int(found)

    code_start = need(code_token(0))
    num_codes = 0
    while token_id(code_token(num_codes)) is not None:
        if token_id(code_token(num_codes)) != code_start + num_codes:
            raise DataError(
                f"tokenizer: {code_token(num_codes)!r} breaks the run of codes that starts at id {code_start}"
            )
        num_codes += 1
    if num_codes % num_codebooks:
        raise DataError(f"tokenizer: {num_codes} code tokens are not {num_codebooks} codebooks of one size; make it anew")
    num_codes //= num_codebooks
    if all(token_id(token) is None for token in (*MULTIMODAL_SPECIALS, *FINAL_SPECIALS)):
        return _text_then_speech(token_id, need, size, code_start, num_codes, pad, num_codebooks)
    form = INTERLEAVED if token_id(ROLE_TOKENS[1]) is None else ROLES
    if form == ROLES:  # a turn's head, its end, padding
        end, pad, _, start, _ = ROLE_TOKENS
        need("<|system|>"), need("<|assistant|>")
    else:
        start, end = "<|im_start|>", "<|im_end|>"
    return Vocabulary(
        size=size, audio_start=need("<|audio|>"), code_start=code_start, num_codes=num_codes,
        mask_id=need("<|mask_token|>"), soa_id=need("<|begin_of_audio|>"), soa_last_id=need("<|begin_of_quad|>"),
        user_end_id=need("<|end_of_audio|>"), eoa_id=need("<|end_of_audio_new|>"),
        eoa_last_id=need("<|end_of_audio_span_last|>"), im_start_id=need(start), im_end_id=need(end), pad_id=need(pad),
        num_codebooks=num_codebooks, form=form,
    )  # fmt: skip


def _text_then_speech(
    token_id: Any, need: Any, size: int, code_start: int, num_codes: int, pad: str, num_codebooks: int
) -> Vocabulary:
    """Text, the four tags or none, codes."""
    tags = [ABSENT] * len(TAGS)
    if any(token_id(tag) is not None for tag in TAGS):
        tags = [need(tag) for tag in TAGS]
        if tags != list(range(code_start - len(TAGS), code_start)):
            raise DataError(
                f"tokenizer: {', '.join(TAGS)} must be the ids right before the codes, which start at {code_start}; got {tags}"
            )
    text_open, text_close, opener, closer = tags
    return Vocabulary(
        size=size, audio_start=code_start, code_start=code_start, num_codes=num_codes, mask_id=ABSENT, soa_id=opener,
        soa_last_id=opener, user_end_id=closer, eoa_id=closer, eoa_last_id=closer, im_start_id=need("<|im_start|>"),
        im_end_id=need("<|im_end|>"), pad_id=need(pad), form=PLAIN if opener == ABSENT else TAGGED,
        text_open_id=text_open, text_close_id=text_close, num_codebooks=num_codebooks,
    )  # fmt: skip
