"""The id space: which ids are text, codes, delimiters; derived from the tokenizer and checked, never hard-coded.

Official order (spec of TtT, section 1): base vocabulary, twenty multimodal specials of which the last is ``<|audio|>``
(the first audio-class id), ``<|audio_0|>`` ... one per code, then ``<|mask_token|>``, ``<|end_of_audio_new|>``,
``<|end_of_audio_span_last|>``.  A token is audio iff its id >= the id of ``<|audio|>``; the tokens that *open* a span
are therefore text (predicted left to right) and the ones that close an answer's span are audio (predicted by diffusion).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import DataError

MULTIMODAL_SPECIALS = (
    *(f"<|{part}_of_{what}|>" for what in ("image", "video", "patch") for part in ("begin", "end", "context")),
    *(f"<|{part}_of_{what}|>" for what in ("audio", "quad", "ref", "box") for part in ("begin", "end")),
    "<|image|>", "<|video|>", "<|audio|>",
)  # fmt: skip
FINAL_SPECIALS = ("<|mask_token|>", "<|end_of_audio_new|>", "<|end_of_audio_span_last|>")


def code_token(code: int) -> str:
    """Spelling of a code in text data.

    >>> code_token(7)
    '<|audio_7|>'
    """
    return f"<|audio_{code}|>"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of everything that is not ordinary text.  ``size``: number of ids.

    Codes of book q start at ``code_start + q * num_codes`` (one code book: the official layout).
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
    num_books: int = 1

    def __post_init__(self) -> None:
        text = {n: getattr(self, n) for n in (
            "soa_id", "soa_last_id", "user_end_id", "im_start_id", "im_end_id", "pad_id")}  # fmt: skip
        audio = {n: getattr(self, n) for n in ("code_start", "mask_id", "eoa_id", "eoa_last_id")}
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
        if len(set(special.values())) != len(special):
            raise DataError(f"vocabulary: special ids must differ, got {special}")
        codes = range(self.code_start, self.code_stop)
        if any(v in codes for v in special.values()) or self.code_stop > self.size:
            raise DataError(
                f"vocabulary: codes [{codes.start}, {codes.stop}) overlap a special id or the end {self.size}"
            )

    @property
    def code_stop(self) -> int:
        """One past the last code id."""
        return self.code_start + self.num_codes * self.num_books

    def is_audio(self, ids: Any) -> Any:
        """Audio-class ids (codes, mask, end tokens): works on arrays and tensors."""
        return ids >= self.audio_start

    def code_ids(self, codes: np.ndarray, where: str = "codes") -> np.ndarray:
        """Codes [F, Q] -> ids [F * Q], frame by frame.  Raises `DataError` naming the first code outside the book."""
        if codes.ndim != 2 or codes.shape[1] != self.num_books:
            raise DataError(f"{where}: expected codes [F, {self.num_books}], got {list(codes.shape)}")
        bad = (codes < 0) | (codes >= self.num_codes)
        if bad.any():
            frame, book = np.argwhere(bad)[0]
            raise DataError(
                f"{where}: code {codes[frame, book]} at frame {frame} is outside the code book of {self.num_codes}; "
                "tokenize with the codec this vocabulary was made for"
            )
        return (codes.astype(np.int64) + self.code_start + np.arange(self.num_books) * self.num_codes).reshape(-1)

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """Ids -> codes i32 [F, Q]; ids that are no codes are left out, an incomplete last frame too."""
        ids = np.asarray(ids, dtype=np.int64)
        ids = ids[(ids >= self.code_start) & (ids < self.code_stop)] - self.code_start
        frames = len(ids) // self.num_books
        return (ids[: frames * self.num_books] % self.num_codes).reshape(frames, self.num_books).astype(np.int32)

    def opener(self, style: str) -> int:
        """Id that opens an audio span of ``style`` (see `ttt.types.AUDIO_STYLES`)."""
        return self.soa_last_id if style in ("last", "open_last") else self.soa_id

    def closer(self, style: str) -> int | None:
        """Id that closes an audio span of ``style``; None for an open one."""
        return {"user": self.user_end_id, "span": self.eoa_id, "last": self.eoa_last_id}.get(style)

    @property
    def digest(self) -> str:
        """Short digest of the layout: two models with one digest agree on every special id."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps({**asdict(self), "digest": self.digest}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote."""
        try:
            raw = json.loads(path.read_text())
            raw.pop("digest", None)
            return cls(**raw)
        except FileNotFoundError:
            raise DataError(
                f"{path}: no vocabulary here; make it with 'ttt tokenizer' or name another folder"
            ) from None
        except (json.JSONDecodeError, TypeError) as error:
            raise DataError(f"{path}: not a vocabulary file: {error}") from error


def derive(token_id: Any, size: int, pad: str = "<|endoftext|>") -> Vocabulary:
    """Vocabulary of a tokenizer that holds the official audio tokens.

    ``token_id``: spelling -> id or None.  Raises `DataError` naming the first token that is missing or out of order.
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
    return Vocabulary(
        size=size, audio_start=need("<|audio|>"), code_start=code_start, num_codes=num_codes,
        mask_id=need("<|mask_token|>"), soa_id=need("<|begin_of_audio|>"), soa_last_id=need("<|begin_of_quad|>"),
        user_end_id=need("<|end_of_audio|>"), eoa_id=need("<|end_of_audio_new|>"),
        eoa_last_id=need("<|end_of_audio_span_last|>"), im_start_id=need("<|im_start|>"),
        im_end_id=need("<|im_end|>"), pad_id=need(pad),
    )  # fmt: skip
