"""LLaDA-TTS tokens: ten control tokens, then one id range per position of a frame, then a spare one that is the mask.

    i        0       1                2              3, 4          5, 6       7    8, 9      10 + C * q + c         last
    meaning  unused  start of speech  end of speech  human begin,  ai begin,  pad  reserved  code c at position q   mask
                                                     end           end

The i-th added token has id base + i.  With a Llama-3 tokenizer (base 128,256) and SNAC (7 positions of 4,096 codes a coarse
frame) these are the published 28,683 ids; any codec of Q positions and C codes fits.  Two schemes of names give the same ids:
``custom`` (``<custom_token_i>``) and ``audio`` (``<special_token_i>`` for the first ten, then ``<audio_token_j>``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ttt.errors import DataError, suggest
from ttt.text.template import Template
from ttt.text.vocab import LLADA, Vocabulary

SCHEMES = ("custom", "audio")
NAMINGS = {LLADA: "custom", f"{LLADA}_audio": "audio"}  # what `ttt tokenizer` calls them
PREFIXES = ("<custom_token_", "<special_token_", "<audio_token_")  # never part of a text
CONTROLS = 10
START_OF_SPEECH, END_OF_SPEECH, HUMAN, HUMAN_END, AI, AI_END, PAD = range(1, 8)
MASK = "<|mdm_mask|>"  # of the scheme ``audio``; in ``custom`` it is the one token more than codes need
SNAC_BOOKS = 7
Lookup = Callable[[str], Any]


def token(scheme: str, number: int) -> str:
    """Spelling of the added token of this number (the mask of ``audio`` apart).

    >>> token("custom", 12), token("audio", 3), token("audio", 12)
    ('<custom_token_12>', '<special_token_3>', '<audio_token_2>')
    """
    if scheme == "custom":
        return f"<custom_token_{number}>"
    return f"<special_token_{number}>" if number < CONTROLS else f"<audio_token_{number - CONTROLS}>"


def names(scheme: str, num_codes: int, num_codebooks: int) -> list[str]:
    """All added tokens in order: 10 + Q * C + 1 of them."""
    if scheme not in SCHEMES:
        raise DataError(f"token scheme {scheme!r} is none of {', '.join(SCHEMES)}.{suggest(scheme, SCHEMES)}")
    last = CONTROLS + num_codebooks * num_codes
    return [*(token(scheme, i) for i in range(last)), token(scheme, last) if scheme == "custom" else MASK]


def scheme_of(token_id: Lookup) -> str:
    """Which scheme a tokenizer's added tokens follow; "" for none."""
    return next((s for s in SCHEMES if token_id(token(s, START_OF_SPEECH)) is not None), "")


def extend(backend: Any, scheme: str, num_codes: int, num_codebooks: int) -> Any:
    """Add the tokens to a base tokenizer (in place); one that has the scheme's tokens stays as it is.

    Raises `DataError` when only some of them are there.
    """
    from tokenizers import AddedToken

    wanted = names(scheme, num_codes, num_codebooks)
    if all(backend.token_to_id(n) is not None for n in wanted if n != MASK):
        return backend
    known = next((n for n in wanted if backend.token_to_id(n) is not None), None)
    if known is not None:
        raise DataError(f"tokenizer: {known!r} is there already; start from the backbone's own tokenizer")
    ordinary = range(CONTROLS, len(wanted) - 1)  # codes
    backend.add_tokens([
        AddedToken(n, special=i not in ordinary, normalized=False) for i, n in enumerate(wanted)
    ])  # fmt: skip
    return backend


def template(scheme: str) -> Template:
    """``<3> text <4> <5> <1> codes <2> <6>`` (numbers: added tokens); the delimiters of codes belong to the span."""
    marks = {i: (token(scheme, i),) for i in range(CONTROLS)}
    return Template(
        empty_system=False, frames={"user": (marks[HUMAN], marks[HUMAN_END]), "assistant": (marks[AI], marks[AI_END])}
    )


def derive(token_id: Lookup, size: int, num_codebooks: int = 0, mask_id: int | None = None) -> Vocabulary:
    """Vocabulary of a tokenizer that holds these tokens.

    ``num_codebooks``: positions of a frame (0: SNAC's seven); ``mask_id``: a mask that is none of the added tokens, as the constant
    126336 of the published programs (None: the last added token).  Raises `DataError` naming what is missing.
    """
    scheme, codebooks = scheme_of(token_id), num_codebooks or SNAC_BOOKS
    first = token_id(token(scheme, 0))
    count = 0
    while (found := token_id(token(scheme, count))) is not None:
        if found != first + count:
            raise DataError(f"tokenizer: {token(scheme, count)!r} has id {found}, expected {first} + {count}")
        count += 1
    codes = count - CONTROLS - (scheme == "custom")  # whose last token is the mask
    num_codes = codes // codebooks
    if num_codes < 1:
        raise DataError(f"tokenizer: {count} added tokens are too few for {codebooks} positions a frame")
    after = CONTROLS + codebooks * num_codes
    mask_name = token(scheme, after) if scheme == "custom" else MASK
    mask = token_id(mask_name) if mask_id is None else mask_id
    if mask is None:
        raise DataError(
            f"tokenizer: no token is left for the mask ({mask_name!r} is missing); name the id that the model was trained with "
            "as mask_id in vocab.json, or extend the backbone's own tokenizer ('ttt tokenizer')"
        )
    if codes % codebooks:
        raise DataError(
            f"tokenizer: {codes} code tokens are not {codebooks} positions of one size; say num_codebooks in vocab.json"
        )
    start = first + CONTROLS
    return Vocabulary(
        size=size, audio_start=start, code_start=start, num_codes=num_codes, mask_id=int(mask),
        soa_id=first + START_OF_SPEECH, soa_last_id=first + START_OF_SPEECH, user_end_id=first + END_OF_SPEECH,
        eoa_id=first + END_OF_SPEECH, eoa_last_id=first + END_OF_SPEECH, im_start_id=first + HUMAN,
        im_end_id=first + AI_END, pad_id=first + PAD, num_codebooks=codebooks, form=LLADA,
    )  # fmt: skip
