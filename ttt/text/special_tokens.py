"""The special tokens that vocabulary forms add to a text tokenizer (`ttt.text.forms`), and codes: spellings and ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ttt.errors import DataError

TokenId = Callable[[str], Any]  # spelling -> id, None for a token that the tokenizer does not have
ABSENT = -1  # a special id that a form does not have; no token has it
BASE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MULTIMODAL_SPECIALS = (
    *(f"<|{part}_of_{what}|>" for what in ("image", "video", "patch") for part in ("begin", "end", "context")),
    *(f"<|{part}_of_{what}|>" for what in ("audio", "quad", "ref", "box") for part in ("begin", "end")),
    "<|image|>", "<|video|>", "<|audio|>",
)  # fmt: skip
MASK = "<|mask_token|>"
FINAL_SPECIALS = (MASK, "<|end_of_audio_new|>", "<|end_of_audio_span_last|>")
TAGS = ("<text>", "</text>", "<speech>", "</speech>")  # around an answer's text, around its codes
END_OF_TEXT = "<|endoftext|>"
# Of LLaDA's text program: end of a turn, padding, heads of turns.
ROLE_TOKENS = (END_OF_TEXT, "<|filler|>", "<|system|>", "<|user|>", "<|assistant|>")

# Of LLaDA's published models: beginning of a text, padding, heads and end of turns.
HEADER_TOKENS = ("<|startoftext|>", END_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def code_token(code: int) -> str:
    """Spelling of a code in text data.

    >>> code_token(7)
    '<|audio_7|>'
    """
    return f"<|audio_{code}|>"


def id_of(token_id: TokenId, token: str) -> int:
    """Id of a token.  Raises `DataError` when the tokenizer does not have it."""
    found = token_id(token)
    if found is None:
        raise DataError(f"tokenizer: token {token!r} is missing; extend the vocabulary first ('ttt tokenizer')")
    return int(found)


def code_ids(token_id: TokenId, num_codebooks: int) -> dict[str, int]:
    """Where the codes ``<|audio_0|>`` ... start, and how many each of ``num_codebooks`` codebooks of equal size has."""
    first, count = id_of(token_id, code_token(0)), 0
    while (at := token_id(code_token(count))) is not None:
        if at != first + count:
            raise DataError(f"tokenizer: {code_token(count)!r} breaks the run of codes that starts at id {first}")
        count += 1
    if count % num_codebooks:
        raise DataError(f"tokenizer: {count} code tokens are not {num_codebooks} codebooks of one size; make it anew")
    return {"code_start": first, "num_codes": count // num_codebooks, "num_codebooks": num_codebooks}
