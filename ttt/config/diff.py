"""Where two configurations differ, and which keys may.

Two lists, because two questions are asked: may a run go on in its folder (`MAY_CHANGE`), and is this the experiment whose
card is there (`NOT_IDENTITY`)?
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# May differ when a run goes on: they change neither the data nor the arithmetic of an update.  The paths of the data may
# differ because their contents are compared by digest.
MAY_CHANGE = (
    "run.dir", "run.overwrite", "run.threads", "run.device", "data.corpus", "data.splits", "data.dir", "data.jobs",
    "data.train", "data.mix", "data.dev", "data.tokenizer", "data.bpe_size", "train.steps", "train.epochs", "train.max_seconds",
    "train.max_time", "train.max_tokens", "train.log_every_steps", "train.eval_every_steps", "train.save_every_steps",
    "train.keep_checkpoints", "train.save_every_epochs", "train.keep_best", "train.keep_best_mode", "train.resume",
    "train.generate_every_steps", "train.tensorboard", "eval", "judge", "speaker", "tasks", "codec",
    "train.check_memory", "data.prefetch", "model.attention", "model.compile",
    # Where an update is computed, not what it is: the number of micro-batches is compared with the checkpoint's.
    "train.accumulate", "train.engine", "train.zero_stage", "train.offload", "train.deepspeed", "train.rank_timeout_s",
)  # fmt: skip

# No part of what an experiment is: where it lies and how it is watched.  Decoding counts here, so this is the shorter list.
NOT_IDENTITY = (
    "run.dir", "run.overwrite", "run.threads", "data.jobs", "eval.out", "eval.checkpoint", "train.keep_checkpoints",
    "train.save_every_steps", "train.save_every_epochs", "train.keep_best", "train.keep_best_mode", "train.log_every_steps",
    "train.tensorboard", "train.resume",
)  # fmt: skip

ABSENT = "(absent)"


class Change(NamedTuple):
    """One key with another value; ``old`` or ``new`` is `ABSENT` where the key is not there."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}".replace(repr(ABSENT), ABSENT)


def differences(old: Any, new: Any, key: str = "") -> list[Change]:
    """Every leaf that differs, sorted by key; lists are compared entry by entry.

    >>> [str(c) for c in differences({"train": {"steps": 5, "lr": 1}}, {"train": {"steps": 6, "lr": 1}})]
    ['train.steps: 5 -> 6']
    >>> [c.key for c in differences({"a": [1, 2]}, {"a": [1, 3], "b": 0})]
    ['a[1]', 'b']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = [(f"{key}.{k}" if key else str(k), old.get(k, ABSENT), new.get(k, ABSENT)) for k in sorted({*old, *new})]
    elif isinstance(old, list) and isinstance(new, list):
        pairs = [(f"{key}[{i}]", a, b) for i, (a, b) in enumerate(itertools.zip_longest(old, new, fillvalue=ABSENT))]
    else:
        return [] if old == new else [Change(key, old, new)]
    return [change for inner, a, b in pairs for change in differences(a, b, inner)]


def is_under(key: str, prefixes: Iterable[str]) -> bool:
    """Is ``key`` one of ``prefixes``, or a part of one?

    >>> is_under("eval.sampler.steps", MAY_CHANGE), is_under("data.train[0]", MAY_CHANGE), is_under("train.lr", MAY_CHANGE)
    (True, True, False)
    """
    return any(key == p or key.startswith((f"{p}.", f"{p}[")) for p in prefixes)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by key: ``{"a": {"b": [1]}}`` -> ``{"a.b[0]": 1}``."""
    if isinstance(node, Mapping) and node:
        parts = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in node.items()]
    elif isinstance(node, list) and node:
        parts = [flatten(v, f"{prefix}[{i}]") for i, v in enumerate(node)]
    else:
        return {prefix: node}
    return {k: v for part in parts for k, v in part.items()}
