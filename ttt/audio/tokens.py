"""Speech tokens in a JSON file, as other programs read and write them.

    {"speech_tokens": [...], "num_tokens": n, "vocab_size": C, "frame_rate_hz": r, "duration_seconds": n / r, "codec": id}

A bare list is accepted too.  With several codebooks the codes are listed frame by frame.  "durations": frames that each code
lasts, where runs of equal codes were removed.  SlamOmni's program says 8192 codes, 25 a second, whatever they
are.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ttt.errors import DataError
from ttt.io.json_input import read_json

log = logging.getLogger(__name__)
SLAMOMNI_HEADER = (8192, 25)


def token_record(codes: np.ndarray, num_codes: int, frame_rate_hz: float, codec: str = "") -> dict[str, Any]:
    """The file's contents for codes i32 [F, Q]; ``frame_rate_hz``: `Codec.code_rate_hz`; 0 is unknown: no duration then."""
    record: dict[str, Any] = {
        "speech_tokens": codes.reshape(-1).tolist(),
        "num_tokens": int(codes.size),
        "vocab_size": num_codes,
    }
    if codes.shape[1] > 1:
        record["num_codebooks"] = int(codes.shape[1])
    if frame_rate_hz:
        record |= {"frame_rate_hz": frame_rate_hz, "duration_seconds": len(codes) / frame_rate_hz}
    return record | ({"codec": codec} if codec else {})


def read_tokens(path: str | Path, num_codes: int, num_codebooks: int = 1, frame_rate_hz: float = 0.0) -> np.ndarray:
    """Codes i32 [F, Q] of a file.  Raises `DataError` for tokens that a codec of this size and rate cannot have."""
    path = Path(path)
    content = read_json(path, "name a file of tokens", kind=None)
    header = content if isinstance(content, dict) else {}
    tokens = content.get("speech_tokens") if isinstance(content, dict) else content
    if "codec" not in header and (header.get("vocab_size"), header.get("frame_rate_hz")) == SLAMOMNI_HEADER:
        log.warning("%s: vocab_size 8192 and frame_rate_hz 25 are constants of SlamOmni's program; the codec's own count", path)
        header = {}
    if not isinstance(tokens, list) or not tokens or any(type(t) is not int for t in tokens):
        raise DataError(
            f'{path}: expected a list of whole numbers, or {{"speech_tokens": [...]}} with one, and not an empty one'
        )
    if header.get("num_tokens") not in (None, len(tokens)):
        raise DataError(f"{path}: num_tokens is {header['num_tokens']}, but it holds {len(tokens)}; copy it again")
    for key, own in (("vocab_size", num_codes), ("frame_rate_hz", frame_rate_hz)):
        if own and header.get(key) not in (None, own) and abs(float(header[key]) - own) > 1e-3:
            raise DataError(
                f"{path}: {key} is {header[key]}, the codec's is {own}; name the codec the tokens were made for"
            )
    bad = next((i for i, t in enumerate(tokens) if not 0 <= t < num_codes), None)
    if bad is not None:
        raise DataError(
            f"{path}: speech_tokens[{bad}] is {tokens[bad]}, codes go from 0 to {num_codes - 1}; subtract the offset of the "
            "vocabulary if these are token ids"
        )
    if len(tokens) % num_codebooks:
        raise DataError(f"{path}: {len(tokens)} tokens are no whole frames of {num_codebooks}")
    return np.asarray(tokens, dtype=np.int32).reshape(-1, num_codebooks)


def read_durations(path: str | Path, count: int) -> np.ndarray | None:
    """Frames i32 [F] that each of ``count`` codes of a file lasts, or None where it does not say.  Raises `DataError`."""
    content = read_json(path, "name a file of tokens", kind=None)
    durations = content.get("durations") if isinstance(content, dict) else None
    if durations is None:
        return None
    if not isinstance(durations, list) or len(durations) != count or any(type(d) is not int or d < 1 for d in durations):
        raise DataError(f"{path}: durations must be a list of {count} whole numbers >= 1, one for each code; or leave it out")
    return np.asarray(durations, dtype=np.int32)
