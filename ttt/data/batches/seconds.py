"""Sizes and limits that the section ``data`` gives in seconds of sound."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from ttt.config.schema import DataSection
from ttt.data.sources.streams import Streams
from ttt.errors import ConfigError, DataError
from ttt.text.vocab import Vocabulary

log = logging.getLogger(__name__)
KEYS = ("batch_s", "quadratic_s", "min_s", "max_s")


def in_tokens(data: DataSection, vocab: Vocabulary) -> DataSection:
    """The section with ``batch_s`` and ``quadratic_s`` as ``batch_tokens`` and ``quadratic_tokens``.

    Raises `ConfigError` where seconds are given and the vocabulary does not know its frame rate.
    """
    given = [key for key in KEYS if getattr(data, key)]
    if not given:
        return data
    if not vocab.frame_rate_hz:
        raise ConfigError(
            f"data.{given[0]}: seconds need the frames of a second, and {data.tokenizer}/vocab.json does not say them; make "
            "the tokenizer with codec= (or data.codes_of, data.codes_hz), or count in tokens"
        )
    if data.max_s and data.max_s < data.min_s:
        raise ConfigError(f"data.max_s: {data.max_s:g} is less than data.min_s = {data.min_s:g}")
    tokens_per_s = vocab.frame_rate_hz * vocab.columns
    return dataclasses.replace(
        data,
        batch_tokens=round(data.batch_s * tokens_per_s) if data.batch_s else data.batch_tokens,
        quadratic_tokens=data.quadratic_s * tokens_per_s if data.quadratic_s else data.quadratic_tokens,
    )


def within_limits(streams: Streams, data: DataSection, vocab: Vocabulary, path: str) -> Streams:
    """The examples whose sound, prompt and answer together, lasts ``data.min_s`` to ``data.max_s`` seconds.

    Examples without sound stay.  Raises `DataError` when none is left.
    """
    if not (data.min_s or data.max_s):
        return streams
    per_s = vocab.frame_rate_hz * vocab.columns
    more = vocab.places(1) - vocab.columns  # ids of a span that a pattern with delays adds
    seconds = np.asarray([sum(s.stop - s.start - more for s in stream.segments) / per_s for stream in streams])
    short = (seconds > 0) & (seconds < data.min_s)
    long = seconds > (data.max_s or np.inf)
    kept = np.flatnonzero(~(short | long))
    if not len(kept):
        raise DataError(
            f"{path}: none of {len(seconds)} examples has {data.min_s:g} to {data.max_s or np.inf:g} s of sound (they have "
            f"{seconds.min():.2f} to {seconds.max():.2f}); change data.min_s or data.max_s"
        )
    if len(kept) < len(seconds):
        log.info(
            "%s: %d of %d examples left out: %d with less than data.min_s = %g s of sound, %d with more than data.max_s = %g s",
            path, len(seconds) - len(kept), len(seconds), short.sum(), data.min_s, long.sum(), data.max_s,
        )  # fmt: skip
        return streams.subset(kept)
    return streams
