"""Mixes of sources: TtT's data configuration, a JSON list of ``{"path", "sample_ratio", "data_type"}`` (arXiv 2509.20072).

``data.mix`` says what ``sample_ratio`` means.  ``records`` (as in TtT's official program): int(n * ratio) of the n
records of a source, drawn once; all of them from a ratio of 1 on.  The draw depends on the source's name and size
alone, so it is the same in every epoch and for every seed.  ``tokens``: the ratio is a weight, see
`ttt.data.sources.streams.Mixture`.  ``data_type`` ("IT" or "PT") is kept and has no effect.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttt.config.schema import MixReading, PromptRule
from ttt.data.read.keep import Keep, kept_records, plain_keep
from ttt.data.read.records import RecordError, kind_of, raw_records, read_records
from ttt.data.read.tables import is_saved
from ttt.data.read.token_ids import stream_of
from ttt.data.sources.store import Store, is_store
from ttt.data.sources.streams import InMemory, Joined, Mixture, Streams
from ttt.errors import DataError, suggest
from ttt.rng import derive_seed
from ttt.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)
KEYS = ("path", "sample_ratio", "data_type")


@dataclass(frozen=True)
class Source:
    """One entry of a mix.  ``name`` is unique within it: the file's name, with folders in front where two are alike."""

    path: Path
    ratio: float = 1.0
    data_type: str = ""
    name: str = ""


def is_mix(path: str | Path) -> bool:
    """Does this ``.json`` file list sources (and not records)?"""
    path = Path(path)
    if path.suffix != ".json" or not path.is_file():
        return False
    first = next(iter(read_records(path)), ("", None))[1]
    return isinstance(first, Mapping) and "path" in first and set(first) <= set(KEYS)


def read_mix(path: str | Path) -> list[Source]:
    """Sources of a mix, those with ratio 0 included.  Paths count from the working folder, else from the mix's own.

    Raises `DataError` naming the entry.
    """
    sources = []
    for where, entry in read_records(path):
        if not isinstance(entry, Mapping) or "path" not in entry:
            raise DataError(f"{where}: a source needs 'path' (and sample_ratio, data_type), got {entry!r}")
        for key in entry:
            if key not in KEYS:
                raise DataError(f"{where}: no such key {key!r}.{suggest(str(key), KEYS)} Keys: {', '.join(KEYS)}")
        name = entry["path"]
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: path must name a file or store, got {name!r}")
        ratio, kind = entry.get("sample_ratio", 1.0), entry.get("data_type", "")
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < float("inf"):
            raise DataError(f"{where}: sample_ratio must be a number >= 0, got {ratio!r}")
        if kind not in ("", "IT", "PT"):
            raise DataError(f"{where}: data_type must be IT or PT, got {kind!r}")
        existing = next((p for p in (Path(name), Path(path).parent / name) if p.exists()), None)
        if existing is None and ratio:
            raise DataError(f"{where}: {name}: no such file or store (looked from here and beside the mix)")
        sources.append(Source(existing or Path(name), float(ratio), kind))
    if not any(s.ratio for s in sources):
        raise DataError(f"{path}: every sample_ratio is 0; nothing to train on")
    return named(sources)


def sources_of(path: str | Path) -> list[Source]:
    """The sources behind a path: those of a mix that are used, or the one file or store."""
    path = Path(path)
    if is_mix(path):
        return [s for s in read_mix(path) if s.ratio]
    if not (is_store(path) or is_saved(path)):
        if path.is_dir():
            raise DataError(
                f"{path}: a folder without a store (store.json is missing) or a saved dataset (dataset_info.json, state.json); "
                "make a store with 'ttt data pack'"
            )
        kind_of(path)
    return named([Source(path)])


def named(sources: Sequence[Source]) -> list[Source]:
    """The same with unique names."""
    out = []
    for source in sources:
        parts, depth = source.path.parts, 1
        while depth < len(parts) and sum(s.path.parts[-depth:] == parts[-depth:] for s in sources) > 1:
            depth += 1
        out.append(Source(source.path, source.ratio, source.data_type, "/".join(parts[-depth:])))
    twice = [name for name, n in Counter(s.name for s in out).items() if n > 1]
    if twice:
        raise DataError(f"the mix names {twice[0]} twice; write one entry with the sum of the ratios")
    return out


def open_streams(
    path: str | Path, tokenizer: TextTokenizer, *, prompt_rule: PromptRule = "labels", mix: MixReading = "records",
    keep: Keep | None = None,
) -> Streams:  # fmt: skip
    """The training data behind a path: examples (tokenized now, in memory), a store (mapped), or a mix of both.

    ``keep``: see `ttt.data.read.keep`.  Raises `DataError` for a store that was made with another tokenizer or prompt rule.
    """
    parts: list[Streams] = []
    sources: list[Source] = []
    for source in sources_of(path):
        if not is_store(source.path):
            parts.append(InMemory(encode_file(source, tokenizer, prompt_rule, keep)))
            sources.append(source)
            continue
        store = Store(source.path)
        check_store(store, tokenizer, prompt_rule)
        if keep and store.about.get("keep") != plain_keep(keep):
            raise DataError(f"data.keep: {source.path} is a store, which has tokens only; pack it with 'ttt data pack --keep'")
        inside = [
            Source(source.path, s["ratio"] * source.ratio, s["data_type"], s["name"]) for s in store.about["sources"]
        ]
        parts += store.sources()
        sources += inside
    return mixed(parts, sources, mix)


def refuse_unlearned(streams: Streams, path: str | Path) -> None:
    """Raise `DataError` when no example of ``path`` holds a token to learn; log how many do not, where that costs nothing.

    Stores are read up to their first example that does.
    """
    if not len(streams):
        return
    if isinstance(streams, InMemory):
        without = [s.uid for s in streams if not s.target.any()]
        if 0 < len(without) < len(streams):
            log.warning(
                "%s: %d of %d examples hold nothing to learn (no answer and no document), the first is %r",
                path, len(without), len(streams), without[0],
            )  # fmt: skip
        nothing = len(without) == len(streams)
    else:
        nothing = not any(s.target.any() for s in streams)
    if nothing:
        raise DataError(
            f"{path}: nothing to learn in any of its {len(streams)} examples: no turn of the assistant, and no document; "
            "'ttt data show' shows what is learned of an example"
        )


def mixed(parts: Sequence[Streams], sources: Sequence[Source], reading: MixReading) -> Streams:
    """Sources under one of the two readings of their ratios."""
    if reading == "tokens":
        return Mixture(parts, [s.ratio for s in sources]) if len(parts) > 1 else parts[0]
    chosen = [
        part if source.ratio >= 1 else part.subset(select(len(part), source.ratio, source.name))
        for part, source in zip(parts, sources, strict=True)
    ]
    return chosen[0] if len(chosen) == 1 else Joined(chosen)


def select(n: int, ratio: float, name: str) -> np.ndarray:
    """Which records of a source the official reading keeps: int(n * ratio) of n, in file order, i64.

    >>> len(select(10, 0.35, "a")), len(select(10, 2, "a"))
    (3, 10)
    """
    order = np.random.default_rng(derive_seed(0, f"mix {name}", n)).permutation(n)
    return np.sort(order[: int(n * ratio)])


def encode_file(
    source: Source, tokenizer: TextTokenizer, prompt_rule: PromptRule, keep: Keep | None = None
) -> list[Any]:
    """All token streams of a file, or those of ``keep``; duplicate uids are refused with both places."""
    seen: dict[str, str] = {}
    streams = []
    records = raw_records(source.path)
    for where, raw in kept_records(records, keep, source.path) if keep else records:
        stream = stream_of(where, raw, source.name, tokenizer, prompt_rule=prompt_rule)
        if stream.uid in seen:
            raise RecordError(
                where, "duplicate uid", f"uid {stream.uid!r} was already used at {seen[stream.uid]}; rename one"
            )
        seen[stream.uid] = where
        streams.append(stream)
    return streams


def check_store(store: Store, tokenizer: TextTokenizer, prompt_rule: PromptRule) -> None:
    """Refuse a store whose ids mean something else than in this run."""
    made = store.about
    for name, found, wanted in (
        ("tokenizer", made["tokenizer"], tokenizer.digest), ("prompt_rule", made["prompt_rule"], prompt_rule),
    ):  # fmt: skip
        if found != wanted:
            raise DataError(
                f"{store.folder}: packed with {name} {found!r}, this run has {wanted!r}; run 'ttt data pack --overwrite' or "
                f"set data.{name} to what it was packed with"
            )
