"""The checks of sounds and codes that all codecs share, and how code vectors are scaled.

Letters: ``F`` frames, ``Q`` code positions per frame (codebooks), ``C`` codes per codebook, ``S`` wav samples, ``E``
dimensions of a code vector.
"""

from __future__ import annotations

import numpy as np

from ttt.errors import DataError
from ttt.types import Waveform


def check_wave(wave: Waveform, rate_hz: int, codec: str) -> None:
    """Refuse what cannot be encoded: another rate, no samples, NaN or infinity."""
    if wave.rate_hz != rate_hz:
        raise DataError(
            f"codec {codec!r}: waveform has {wave.rate_hz} Hz, expected {rate_hz} Hz: "
            "resample it with ttt.audio.signal.resample"
        )
    if len(wave.samples) == 0:
        raise DataError(f"codec {codec!r}: a waveform holds no samples: make it again or drop the item")
    if not np.isfinite(wave.samples).all():
        bad = int((~np.isfinite(wave.samples)).sum())
        raise DataError(
            f"codec {codec!r}: {bad} of {len(wave.samples)} samples are NaN or infinite: make the wav again"
        )


def check_codes(ids: np.ndarray, num_codes: int, num_codebooks: int, codec: str) -> None:
    """Refuse codes [F, Q] of another shape or outside the codebook."""
    if ids.ndim != 2 or ids.shape[1] != num_codebooks:
        raise DataError(
            f"codec {codec!r}: codes have shape {list(ids.shape)}, expected [F, {num_codebooks}] (codebooks last)"
        )
    wrong = ids[(ids < 0) | (ids >= num_codes)]
    if wrong.size:
        raise DataError(
            f"codec {codec!r}: code {int(wrong[0])} is outside the codebook of {num_codes} (0 to {num_codes - 1}): "
            "decode with the codec that made the codes"
        )


def same_codes(one: str, other: str) -> bool:
    """Do two ``codec_id`` stand for the same codes?  That of a codec without its codebook lacks the digest at the end.

    >>> same_codes("glm4voice-16384-0a1b2c3d", "glm4voice-16384"), same_codes("glm4voice-16384", "glm4voice-163")
    (True, False)
    """
    return one == other or one.startswith(f"{other}-") or other.startswith(f"{one}-")


def standardize(vectors: np.ndarray) -> np.ndarray:
    """Each codebook centred and divided by its overall standard deviation: f32 [Q, C, E] -> f32 [Q, C, E]."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    spread = centred.std(axis=(1, 2), keepdims=True)
    return (centred / np.maximum(spread, 1e-8)).astype(np.float32)
