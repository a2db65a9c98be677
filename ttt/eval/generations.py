"""Generation records: what the decoder writes, one JSON line per example, and their examples.

{"uid", "task", "split", "text", "codes": [[c, ..Q], ..], "calls": {"ar": n, "diffusion": m}, "seconds": the item's share of the
batch's wall time, "first_block_s": float | null, "stopped", "n_tokens", "forced": {name: [sum, count]} of the objective's
statistics on the true answer}.

Letters: ``F`` audio frames, ``Q`` codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttt.data.read.examples import read_records
from ttt.errors import DataError
from ttt.types import Example


@dataclass(frozen=True)
class Generated:
    """One generation record; ``codes`` i32 [F, Q], ``where`` its file and line."""

    uid: str
    task: str
    split: str
    text: str
    codes: np.ndarray
    calls: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    first_block_s: float | None = None
    stopped: str = ""
    n_tokens: int = 0
    forced: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    where: str = "generation"

    @classmethod
    def from_json(cls, record: Any, where: str) -> Generated:
        """Check one line; raises `DataError` naming ``where`` and the field."""
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: expected an object, got {type(record).__name__}")
        for name, kind in (("uid", str), ("task", str), ("text", str), ("codes", list)):
            if not isinstance(record.get(name), kind):
                raise DataError(
                    f"{where}: {name!r} must be {kind.__name__}, got {record.get(name)!r:.60}; decode again"
                )
        try:
            codes = np.asarray(record["codes"], dtype=np.int32)
            codes = codes.reshape(len(codes), -1) if codes.size else np.zeros((0, 1), dtype=np.int32)
            first = record.get("first_block_s")
            return cls(
                uid=record["uid"],
                task=record["task"],
                split=str(record.get("split", "")),
                text=record["text"],
                codes=codes,
                calls={str(k): int(v) for k, v in record.get("calls", {}).items()},
                seconds=float(record.get("seconds", 0.0)),
                first_block_s=None if first is None else float(first),
                stopped=str(record.get("stopped", "")),
                n_tokens=int(record.get("n_tokens", 0)),
                forced={str(k): (float(a), float(n)) for k, (a, n) in record.get("forced", {}).items()},
                where=where,
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: not a generation record: {error}; decode again") from error


def read_generations(*paths: str | Path) -> list[Generated]:
    """All records of some files, in order.  Raises `DataError` for a file that holds none."""
    records: list[Generated] = []
    for path in paths:
        of_file = [Generated.from_json(record, where) for where, record in read_records(path)]
        if not of_file:
            raise DataError(f"{path}: no generations in it; decode again with 'ttt generate --overwrite'")
        records += of_file
    return records


Pair = tuple[Example, Generated]  # an example and what was generated for it


def pair_up(records: Sequence[Generated], examples: Sequence[Example]) -> list[Pair]:
    """Examples with their generations, in the order of the examples; exactly one each, else `DataError`."""
    if not examples:
        raise DataError("score: no examples to score; check eval.examples")
    by_uid: dict[str, Example] = {}
    for example in examples:
        if example.uid in by_uid:
            raise DataError(f"score: example uid {example.uid!r} occurs twice; give every example its own")
        by_uid[example.uid] = example
    generated: dict[str, Generated] = {}
    for record in records:
        if record.uid not in by_uid:
            raise DataError(
                f"{record.where}: uid {record.uid!r} is not among the {len(by_uid)} examples; decode these again, "
                "or score with the limit they were decoded with"
            )
        if record.uid in generated:
            raise DataError(
                f"{record.where}: uid {record.uid!r} was already generated at {generated[record.uid].where}; keep one"
            )
        if record.task != by_uid[record.uid].task:
            raise DataError(
                f"{record.where}: uid {record.uid!r} is task {record.task!r} here and "
                f"{by_uid[record.uid].task!r} in the examples; decode again"
            )
        generated[record.uid] = record
    missing = [uid for uid in by_uid if uid not in generated]
    if missing:
        files = ", ".join(sorted({r.where.rpartition(":")[0] or r.where for r in records})) or "no generations"
        raise DataError(
            f"{files}: no generation for {len(missing)} of {len(by_uid)} examples, first {missing[0]!r}; decode them, "
            "or score with the same limit"
        )
    return [(example, generated[uid]) for uid, example in by_uid.items()]


def group_of(pair: Pair) -> tuple[str, str]:
    """(split, task): items of one group are averaged together."""
    example, record = pair
    return str(example.meta.get("split") or record.split), example.task


def answer_codes(example: Example) -> np.ndarray | None:
    """Codes of the example's own answer i32 [F, Q]; None when it has no answer or the answer is not spoken."""
    if example.turns[-1].role != "assistant":
        return None
    parts = [s.codes for s in example.turns[-1].spans if s.kind == "audio" and s.codes is not None]
    return np.concatenate(parts) if parts else None


def prompt_codes(example: Example) -> np.ndarray | None:
    """Codes of all speech before the answer i32 [F, Q]; None when there is none."""
    parts = [s.codes for t in example.turns[:-1] for s in t.spans if s.kind == "audio" and s.codes is not None]
    return np.concatenate(parts) if parts else None
