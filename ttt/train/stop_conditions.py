"""When a run is over: updates, seconds, wall time as schedulers write it, tokens."""

from __future__ import annotations

import re

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError

REASONS = ("steps", "max_seconds", "max_time", "max_tokens")
_TIME = re.compile(r"(?:(\d+)-)?(\d{1,2}):([0-5]?\d):([0-5]?\d)")


def seconds_of(spelled: str) -> float:
    """``D-HH:MM:SS``, ``HH:MM:SS`` or seconds; 0 for nothing.  Raises `ConfigError`.

    >>> seconds_of("1-02:00:05"), seconds_of("00:10:00"), seconds_of("90"), seconds_of("")
    (93605.0, 600.0, 90.0, 0.0)
    """
    text = str(spelled).strip()
    if not text:
        return 0.0
    parts = _TIME.fullmatch(text)
    if parts is not None:
        days, hours, minutes, seconds = (int(p or 0) for p in parts.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"train.max_time: expected D-HH:MM:SS, HH:MM:SS or seconds > 0, got {spelled!r}")
    return value


def time_limit_s(train: TrainSection) -> float:
    """The nearer of ``max_seconds`` and ``max_time``; 0: neither is set."""
    return min((s for s in (train.max_seconds, seconds_of(train.max_time)) if s), default=0.0)


def reached(train: TrainSection, step: int, tokens: int, elapsed_s: float) -> str:
    """The limit that a run has come to, one of `REASONS`; empty: it goes on.  Same on every rank for the same numbers."""
    if step >= train.steps:
        return "steps"
    if train.max_seconds and elapsed_s >= train.max_seconds:
        return "max_seconds"
    if train.max_time and elapsed_s >= seconds_of(train.max_time):
        return "max_time"
    if train.max_tokens and tokens >= train.max_tokens:
        return "max_tokens"
    return ""
