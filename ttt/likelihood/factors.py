"""How an objective factorises an answer: a chain of tokens, and sets that are filled in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.errors import ConfigError
from ttt.registry import name_of
from ttt.types import CodeSpace, Kind, TokenStream, audio_runs

if TYPE_CHECKING:
    from ttt.interfaces import Objective


@dataclass(frozen=True)
class Part:
    """A set of tokens and all the network may see of their example: ``stream`` ends where their history does.

    ``at`` i64 [n]: positions; ``tokens`` of them are the example's own, the others fill the last block up.  ``before``: they
    are predicted by the position before (``objective.logit_alignment=next``).
    """

    stream: TokenStream
    at: np.ndarray
    tokens: int
    span: int = 0
    before: bool = False

    def sources(self, at: np.ndarray) -> np.ndarray:
        """Positions that predict ``at``; a first one, which nothing precedes, predicts itself."""
        return np.maximum(at - 1, 0) if self.before else at


@dataclass(frozen=True)
class Factors:
    """How an objective factorises an example: ``chain`` i64 positions predicted by the one before; ``parts``."""

    chain: np.ndarray
    parts: tuple[Part, ...]


def factorise(
    objective: Objective, stream: TokenStream, block_length: int | None = None, space: CodeSpace | None = None
) -> Factors:
    """The factors of one example's answer; ``block_length``: tokens of a span filled together (None: the mask's; 0: all).

    `Ar` is a chain.  `Nar` is one set, what may be noised, seen with all the rest (``space``: which ids are codes, where it
    noises codes only).  `TtT` and what derives from it is a chain of text, and one
    set per audio span (per block), given everything before.  Raises `ConfigError` for objectives of other families.
    """
    from ttt.objective.library import Ar, Nar, TtT

    target = stream.target.copy()
    target[first_at_position(stream, space) == 0] = False  # nothing predicts the first position
    audio = stream.kind == Kind.AUDIO
    before = getattr(objective, "logit_alignment", "same") == "next"
    if isinstance(objective, Ar):
        return Factors(np.flatnonzero(target), ())
    if isinstance(objective, Nar):
        at = np.flatnonzero(_noised(objective, stream, space))
        return Factors(at[:0], (Part(stream, at, len(at), before=before),) if len(at) else ())
    if not isinstance(objective, TtT):
        raise ConfigError(
            f"objective: {name_of(objective)!r} has no likelihood: "
            "its class must derive from Ar, Nar or TtT (ttt.objective.library)"
        )
    together = len(space.codebooks) if space is not None and space.together else 1
    if block_length is None:
        block_length = objective.mask.block_length * together
    if block_length % together:
        raise ConfigError(f"block: {block_length} codes end inside a position of {together} codes; take a multiple")
    parts: list[Part] = []
    at = np.flatnonzero(stream.target & audio)
    for number, run in enumerate(np.split(at, np.flatnonzero(np.diff(stream.run_id[at])) + 1) if len(at) else []):
        step = block_length or len(run)
        fill = bool(block_length) and getattr(objective, "fill_blocks", False) and run[-1] + 1 < len(stream)
        for begin in range(0, len(run), step):
            block = run[begin : begin + step]
            extra = step - len(block) if fill else 0
            cut = _cut(stream, int(block[-1]) + 1, extra)
            parts.append(Part(cut, np.arange(block[0], len(cut)), len(block), number, before))
    return Factors(np.flatnonzero(target & ~audio), tuple(parts))


def first_at_position(stream: TokenStream, space: CodeSpace | None) -> np.ndarray:
    """First token of the network's position that each token stands at, i64 [n]: itself where none stand together."""
    at = np.arange(len(stream))
    return at if space is None else np.maximum.accumulate(np.where(space.joins(stream.ids), 0, at))


def _noised(objective: Any, stream: TokenStream, space: CodeSpace | None) -> np.ndarray:
    """Targets of one stream that the objective may mask, bool [n]."""
    from ttt.data.batches.rows import collate

    batch = collate([[stream]], len(stream), 0, -1, space)
    return (objective.maskable(batch) & batch.target)[0].numpy()


def _cut(stream: TokenStream, stop: int, repeats: int = 0) -> TokenStream:
    """The first ``stop`` tokens, the last of them ``repeats`` times more."""

    def cut(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:stop], np.repeat(values[stop - 1 : stop], repeats)])

    kind = cut(stream.kind)
    return TokenStream(
        uid=stream.uid, ids=cut(stream.ids), kind=kind, run_id=audio_runs(kind), target=cut(stream.target),
        noisable=cut(stream.noisable), task=stream.task, prompt_length=stream.prompt_length,
    )  # fmt: skip
