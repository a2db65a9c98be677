"""The id space: which ids are text, codes and delimiters.  Derived from the tokenizer and checked, never hard-coded.

What the forms of `ttt.text.forms` have in common: text, then codes in one range per codebook, and special ids.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ttt.config.load import to_plain
from ttt.errors import DataError, suggest
from ttt.interfaces import CodePattern
from ttt.io.digests import digest_of_json
from ttt.io.json_input import read_json
from ttt.registry import name_of
from ttt.registry.families import PATTERN
from ttt.text.forms import DEFAULT_FORM, FORMS, Form, recognise
from ttt.text.patterns import Flatten, codes_of, grid_of
from ttt.text.special_tokens import ABSENT, TokenId
from ttt.types import CodeSpace

FLATTEN = Flatten()


@dataclass(frozen=True)
class Vocabulary:
    """Ids of everything that is not ordinary text.  ``size``: number of ids.

    ``pattern`` says in which order the codes of a span stand; those of its column k start at ``code_start + k *
    column_size`` (one codebook: the official layout).  ``form``: name of the `ttt.text.forms.Form` (`rules`), which decides
    what other tokens there are and how chats are written; ids that it does not have are `ABSENT`.  ``codec`` and
    ``frame_rate_hz`` say what made the codes, where that is known; they are not part of the layout.
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
    pattern: CodePattern = FLATTEN
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
        return self.code_start + self.columns * self.column_size

    @property
    def columns(self) -> int:
        """Columns of the pattern's grid: a row of it is so many ids."""
        return self.pattern.columns(self.num_codebooks)

    @property
    def column_size(self) -> int:
        """Ids of a column: the codes of a codebook, and the empty code if the pattern has one."""
        return self.num_codes + self.pattern.has_empty

    @property
    def codes_together(self) -> int:
        """Codes that stand at one position of the network."""
        return self.columns if self.pattern.together else 1

    @property
    def code_space(self) -> CodeSpace:
        """The ids of every column of the pattern, and the tokens that end an answer's span."""
        starts = range(self.code_start, self.code_stop, self.column_size or 1)  # of text alone: no columns
        ends = sorted({self.eoa_id, self.eoa_last_id} - {ABSENT})
        columns = tuple((at, at + self.column_size) for at in starts)
        return CodeSpace(columns, tuple(ends), self.frame_rate_hz, self.pattern.together)

    def is_audio(self, ids: Any) -> Any:
        """Audio-class ids (codes, mask, end tokens of the layout ``ttt``): works on arrays and tensors."""
        audio = ids >= self.audio_start
        return audio | (ids == self.mask_id) if self.num_codes and 0 <= self.mask_id < self.audio_start else audio

    def code_ids(self, codes: np.ndarray, where: str = "codes") -> np.ndarray:
        """Codes [F, Q] -> ids [S * K], as the pattern lays them out.

        Raises `DataError` naming the first code outside the codebook.
        """
        if not self.num_codes:
            raise DataError(f"{where}: holds speech, and this vocabulary is of text alone (data.num_codes: 0)")
        if codes.ndim != 2 or codes.shape[1] != self.num_codebooks:
            raise DataError(f"{where}: expected codes [F, {self.num_codebooks}], got {list(codes.shape)}")
        bad = (codes < 0) | (codes >= self.num_codes)
        if bad.any():
            frame, codebook = np.argwhere(bad)[0]
            raise DataError(
                f"{where}: code {codes[frame, codebook]} at frame {frame} is outside the codebook of {self.num_codes}; "
                "tokenize with the codec this vocabulary was made for"
            )
        grid = grid_of(self.pattern, codes.astype(np.int64), self.num_codes)
        return (grid + self.code_start + np.arange(self.columns) * self.column_size).reshape(-1)

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """Ids, or the first ids, of a span -> codes i32 [F, Q] of the frames that they determine.

        Ids that are not codes are left out, and so is every code that is not part of a complete row (one of each column, in
        order); with patterns other than ``flatten``, whose frames may lie in several rows, all behind it too.  Decoding
        without constraints may write such codes, and a code of one codebook must not be read as one of another.
        """
        ids = np.asarray(ids, dtype=np.int64)
        ids = ids[(ids >= self.code_start) & (ids < self.code_stop)] - self.code_start
        column, code = np.divmod(ids, self.column_size or 1)
        starts = np.ones(max(len(ids) - self.columns + 1, 0), dtype=bool)
        for k in range(self.columns):
            starts &= column[k : k + len(starts)] == k
        at = np.flatnonzero(starts)
        if self.pattern != FLATTEN:
            at = at[np.cumprod(at == np.arange(len(at)) * self.columns, dtype=bool)]
        grid = code[at[:, None] + np.arange(self.columns)]
        return codes_of(self.pattern, grid, self.num_codebooks, self.num_codes).astype(np.int32)

    def frames(self, ids: np.ndarray, where: str = "ids") -> np.ndarray:
        """The exact inverse of `code_ids`: ids [S * K], or the first rows of them -> codes i32 [F, Q].

        Raises `DataError` naming the first id that is no code of its place, an unfinished last row, or an empty code too early.
        """
        ids = np.asarray(ids, dtype=np.int64)
        column = np.arange(len(ids)) % self.columns
        codes = ids - self.code_start - column * self.column_size
        bad = np.flatnonzero((codes < 0) | (codes >= self.column_size))
        if len(bad):
            at = int(bad[0])
            first = self.code_start + int(column[at]) * self.column_size
            raise DataError(
                f"{where}: id {ids[at]} at place {at} is no code for position {column[at]} "
                f"of frame {at // self.columns}, whose "
                f"ids are {first} to {first + self.column_size - 1}; mend the data or name the tokenizer they were made with"
            )
        if len(ids) % self.columns:
            raise DataError(
                f"{where}: {len(ids)} codes are no whole frames of {self.columns}; cut the last "
                f"{len(ids) % self.columns} codes off"
            )
        grid = codes.reshape(-1, self.columns)
        found = codes_of(self.pattern, grid, self.num_codebooks, self.num_codes)
        if len(found) and len(self.pattern.index(*found.shape)) < len(grid):
            raise DataError(
                f"{where}: an empty code of pattern {name_of(self.pattern)!r} stands before the end of the span, behind frame "
                f"{len(found) - 1}; mend the data or name the tokenizer they were made with"
            )
        return found.astype(np.int32)

    def places(self, frames: int) -> int:
        """Ids of a span of so many frames."""
        return self.pattern.index(frames, self.num_codebooks).size

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
        for name, default in (("form", DEFAULT_FORM), ("text_open_id", ABSENT), ("text_close_id", ABSENT), ("pattern", FLATTEN)):
            if layout[name] == default:
                del layout[name]
        if "pattern" in layout:
            layout["pattern"] = to_plain(self.pattern)
        return digest_of_json(layout)

    def summary(self) -> dict[str, Any]:
        """The layout under the names that other toolkits' ``vocab.json`` use."""
        return {
            "text_vocab": self.text_vocab, "modality_tokens": self.modality_tokens, "speech_offset": self.code_start,
            "speech_vocab": self.code_stop - self.code_start, "total": self.size, "frame_rate": self.frame_rate_hz,
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write as JSON: the fields, `summary`, and the digest."""
        stored = asdict(self)
        del stored["pattern"]
        if self.pattern != FLATTEN:
            stored["pattern"] = to_plain(self.pattern)
        path.write_text(json.dumps({**stored, **self.summary(), "digest": self.digest}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote.  Raises `DataError` when the summary or the digest contradicts the fields."""
        if not path.is_file():
            raise DataError(f"{path}: no vocabulary here; make it with 'ttt tokenizer' or name another folder")
        raw = read_json(path, "not a vocabulary file; make it with 'ttt tokenizer'")
        try:
            names = {f.name for f in fields(cls)}
            derived = {k: raw.pop(k) for k in list(raw) if k not in names}
            vocab = cls(**{**raw, "pattern": PATTERN.build(raw.get("pattern", FLATTEN), f"{path}: pattern")})
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
    token_id: TokenId, size: int, pad: str = "<|endoftext|>", num_codebooks: int = 0, mask_id: int | None = None,
    pattern: CodePattern = FLATTEN, form: Form | None = None,
) -> Vocabulary:  # fmt: skip
    """Vocabulary of a tokenizer that was extended (`ttt.text.tokenizer.extend`); its tokens tell which form it has.

    ``token_id``: spelling -> id or None; ``num_codebooks``: of equal size (0: as usual in the form); ``mask_id``: an id
    to use as mask, in forms that allow it; ``pattern``: how codes are laid out; ``form``: for a tokenizer that does not
    tell.  Raises `DataError` naming the first token that is missing or out of order.
    """
    form = form or recognise(token_id)
    codebooks = num_codebooks or form.default_codebooks
    ids: dict[str, Any] = {"audio_start": size, "code_start": size}  # where no id is audio
    ids |= form.derive(token_id, pattern.columns(codebooks), pad, mask_id)
    ids |= {"num_codebooks": codebooks, "num_codes": ids["num_codes"] - pattern.has_empty, "pattern": pattern}
    return Vocabulary(size=size, form=form.stored, **ids)
