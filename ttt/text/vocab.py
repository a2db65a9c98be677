"""The id space: which ids are text, codes and delimiters.  Derived from the tokenizer and checked, never hard-coded.

What the forms of `ttt.text.forms` have in common: text, then codes in one range per codebook, and special ids.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import DataError, suggest
from ttt.io.digests import digest_of_json
from ttt.io.json_input import read_json
from ttt.text.forms import ABSENT, DEFAULT_FORM, FORMS, Form, TokenId, recognise
from ttt.types import CodeSpace


@dataclass(frozen=True)
class Vocabulary:
    """Ids of everything that is not ordinary text.  ``size``: number of ids.

    Codes of codebook q start at ``code_start + q * num_codes`` (one codebook: the official layout).  ``form``: name of
    the `ttt.text.forms.Form` (`rules`), which decides what other tokens there are and how chats are written; ids that
    it does not have are `ABSENT`.  ``codec`` and ``frame_rate_hz`` say what made the codes, where that is known; they
    are not part of the layout.
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
    form: str = DEFAULT_FORM
    text_open_id: int = ABSENT
    text_close_id: int = ABSENT
    codec: str = field(default="", compare=False)
    frame_rate_hz: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        names = [name for name, form in FORMS.items() if form.stored == name]
        if self.form not in names:
            raise DataError(f"vocabulary: form {self.form!r} is none of {', '.join(names)}.{suggest(self.form, names)}")
        self.rules.check(self)

    @property
    def rules(self) -> Form:
        """What the form named ``form`` decides: special ids, template, order of an answer."""
        return FORMS[self.form]

    @property
    def text_vocab(self) -> int:
        """Ids below this one are text.

        In the interleaved form that includes the tokens that open a span, because they are written like text.
        """
        return self.rules.text_stop(self)

    @property
    def modality_tokens(self) -> dict[str, int]:
        """The four tags around text and speech and their ids; none in most forms."""
        return self.rules.tags(self)

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

        Ids that are not codes are left out, and so is every code that is not part of a complete frame (one code of each
        codebook, in order).  Decoding without constraints may write such codes, and a code of one codebook must not be
        read as one of another.
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
        token_id = self.soa_last_id if style in ("last", "open_last") else self.soa_id
        return None if token_id == ABSENT else token_id

    def closer(self, style: str) -> int | None:
        """Id that closes an audio span of ``style``; None for an open one, and in a form without delimiters."""
        token_id = {"user": self.user_end_id, "span": self.eoa_id, "last": self.eoa_last_id}.get(style, ABSENT)
        return None if token_id == ABSENT else token_id

    @property
    def digest(self) -> str:
        """Short digest of the layout: two models with one digest agree on every special id.

        Fields that came later count only where they differ from their default, so that digests of older folders hold.
        """
        layout = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        for name, default in (("form", DEFAULT_FORM), ("text_open_id", ABSENT), ("text_close_id", ABSENT)):
            if layout[name] == default:
                del layout[name]
        return digest_of_json(layout)

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
        if not path.is_file():
            raise DataError(f"{path}: no vocabulary here; make it with 'ttt tokenizer' or name another folder")
        raw = read_json(path, "not a vocabulary file; make it with 'ttt tokenizer'")
        try:
            names = {f.name for f in fields(cls)}
            derived = {k: raw.pop(k) for k in list(raw) if k not in names}
            vocab = cls(**raw)
        except TypeError as error:
            raise DataError(f"{path}: not a vocabulary file: {error}") from error
        expected = {**vocab.summary(), "digest": vocab.digest}
        for name, value in derived.items():
            if name not in expected:
                raise DataError(f"{path}: not a vocabulary file: unknown key {name!r}")
            if value != expected[name]:
                raise DataError(
                    f"{path}: {name} is {value!r}, the other fields make it {expected[name]!r}; run 'ttt tokenizer' again"
                )
        return vocab

    @staticmethod
    def is_saved(path: Path) -> bool:
        """Is this a file of `save` (and not the token table of a Hugging Face tokenizer, which has the same name)?"""
        try:
            return {"code_start", "digest"} <= set(read_json(path, ""))
        except DataError:
            return False


def derive(
    token_id: TokenId, size: int, pad: str = "<|endoftext|>", num_codebooks: int = 0, mask_id: int | None = None
) -> Vocabulary:
    """Vocabulary of a tokenizer that was extended (`ttt.text.tokenizer.extend`); its tokens tell which form it has.

    ``token_id``: spelling -> id or None; ``num_codebooks``: of equal size (0: as usual in the form); ``mask_id``: an id
    to use as mask, in forms that allow it.  Raises `DataError` naming the first token that is missing or out of order.
    """
    form = recognise(token_id)
    ids: dict[str, Any] = form.derive(token_id, num_codebooks or form.default_codebooks, pad, mask_id)
    return Vocabulary(size=size, form=form.stored, **ids)
