"""A store: token streams in flat files that are mapped into memory, so that opening is instant and only what is used is read.

    store.json          what it was made of and what it holds, with the digest of every file; written last
    vocab.json          the ids' meaning, as in the tokenizer's folder (`ttt data pack` writes it)
    00000.ids           u32 [tokens]     ids
    00000.flags         u8  [tokens]     kind (2 bits), target (4), answer (8), first of a rejected answer's document (16)
    00000.segments      i32 [m, 6]       audio segments: start, stop, style, turn, turn_stop, target
    00000.uids          bytes            UTF-8, one after the other
    00000.index         `INDEX` [n]      where each example lies in the four files
    00001.ids ...

Size: 5 bytes a token and 44 an example, plus uid and segments.  The number of shards depends on ``shard_tokens`` alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttt.data.sources.streams import Digest, Streams, digest_of
from ttt.errors import DataError
from ttt.io.atomic import put_folder, recover, temporary_name, write_json
from ttt.io.digests import digest_of_json, hash64
from ttt.io.json_input import read_json
from ttt.io.json_output import to_json
from ttt.io.outputs import check_replaced_folder, holds_only
from ttt.io.sealed import check_files
from ttt.types import AUDIO_STYLES, Segment, TokenStream, audio_runs

FORMAT = 1
INDEX = np.dtype([
    ("token", "<i8"), ("length", "<i4"), ("segment", "<i8"), ("segments", "<i4"),
    ("uid", "<i8"), ("uid_bytes", "<i4"), ("task", "<i4"), ("prompt_length", "<i4"),
])  # fmt: skip
STORE_FILES = (r"store\.json", r"vocab\.json", r"[0-9]{5,}\.[a-z]+")  # patterns of all names in a store
FILES: dict[str, Any] = {"ids": "<u4", "flags": "u1", "segments": "<i4", "uids": "u1", "index": INDEX}
TARGET, NOISABLE, REJECTED, KIND_BITS = 4, 8, 16, 3


log = logging.getLogger(__name__)
SEAL = "seal"  # key of store.json: digest of all the others
DIGEST_BYTES = 16


def seal_of(manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest's values."""
    return digest_of_json(json.loads(to_json(manifest)))


@dataclass
class Block:
    """Several streams as flat arrays, in the layout of a shard (`pack_streams`)."""

    arrays: dict[str, np.ndarray]
    tasks: list[str]  # names that ``index["task"]`` counts
    with_voice: str = ""  # uid of the first stream with a voice, which a store does not keep

    def __len__(self) -> int:
        return len(self.arrays["index"])


def pack_streams(streams: Sequence[TokenStream]) -> Block:
    """Flat arrays of some streams; positions are relative to the block."""
    index = np.zeros(len(streams), dtype=INDEX)
    tasks = list(dict.fromkeys(s.task for s in streams))
    uids = [s.uid.encode() for s in streams]
    segments = [
        (g.start, g.stop, AUDIO_STYLES.index(g.style), g.turn, g.turn_stop, int(g.target))
        for s in streams
        for g in s.segments
    ]
    for name, bytes_or_counts, start in (
        ("length", [len(s) for s in streams], "token"), ("segments", [len(s.segments) for s in streams], "segment"),
        ("uid_bytes", [len(u) for u in uids], "uid"),
    ):  # fmt: skip
        index[name] = bytes_or_counts
        index[start] = np.cumsum([0, *bytes_or_counts])[:-1]
    index["task"] = [tasks.index(s.task) for s in streams]
    index["prompt_length"] = [s.prompt_length for s in streams]
    flags = [
        s.kind | (TARGET * s.target) | (NOISABLE * s.noisable)
        | (REJECTED * ((np.arange(len(s)) == s.rejected) & (s.rejected > 0)))
        for s in streams
    ]  # fmt: skip
    arrays = {
        "ids": np.concatenate([s.ids for s in streams] or [np.zeros(0)]).astype("<u4"),
        "flags": np.concatenate(flags or [np.zeros(0)]).astype("u1"),
        "segments": np.asarray(segments, dtype="<i4").reshape(-1, 6),
        "uids": np.frombuffer(b"".join(uids), dtype="u1"),
        "index": index,
    }
    return Block(arrays, tasks, next((s.uid for s in streams if s.voice is not None), ""))


class StoreWriter:
    """Writes a store beside its place and moves it there when complete.

    ``add`` blocks in order, then `finish`; as a context manager it leaves nothing behind after an error.
    """

    def __init__(self, folder: str | Path, shard_tokens: int = 1 << 26) -> None:
        self.folder, self.shard_tokens = Path(folder), shard_tokens
        check_replaced_folder(
            self.folder, (), lambda path: is_store(path) and holds_only(path, STORE_FILES), "'ttt data pack'", overwrite=True
        )
        self.work = temporary_name(self.folder)
        self.work.mkdir(parents=True)
        self.shards: list[dict[str, Any]] = []
        self.tasks: dict[str, int] = {}
        self.digest = Digest()
        self.uid_keys = array("Q")
        self.tokens = 0
        self._files: dict[str, Any] = {}
        self._at: dict[str, int] = {}
        self._hashers: dict[str, Any] = {}

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def __len__(self) -> int:
        return len(self.uid_keys)

    def add(self, block: Block, source: str = "") -> None:
        """Append the streams of a block; uids have to differ within a ``source``."""
        if not len(block):
            return
        if block.with_voice:
            raise DataError(
                f"example {block.with_voice!r}: has a voice_vector, which a store does not keep; train on the examples themselves, "
                "or leave the field out"
            )
        if not self._files or self._at["ids"] >= self.shard_tokens:
            self._next_shard()
        index = block.arrays["index"].copy()
        for column, name in (("token", "ids"), ("segment", "segments"), ("uid", "uids")):
            index[column] += self._at[name]
        numbers = np.asarray([self.tasks.setdefault(t, len(self.tasks)) for t in block.tasks])
        index["task"] = numbers[index["task"]]
        for name, values in {**block.arrays, "index": index}.items():
            content = np.ascontiguousarray(values).tobytes()
            self._files[name].write(content)
            self._hashers[name].update(content)
            self._at[name] += len(values)
        raw, target = block.arrays["uids"].tobytes(), (block.arrays["flags"] & TARGET) > 0
        for row in block.arrays["index"]:
            uid = raw[row["uid"] : row["uid"] + row["uid_bytes"]]
            here = slice(row["token"], row["token"] + row["length"])
            self.digest.add(uid.decode(), block.arrays["ids"][here], target[here])
            self.uid_keys.append(hash64(source.encode() + b"\0" + uid))
        self.tokens += len(block.arrays["ids"])

    def finish(self, about: Mapping[str, Any]) -> Store:
        """Write ``store.json`` with ``about`` in it and move the store to its place.  Raises `DataError` on double uids."""
        self._close_shard()
        if not len(self):
            raise DataError(
                f"{self.folder}: no example to store; the sources are empty or all of their records are broken"
            )
        manifest = {
            "format": FORMAT, "examples": len(self), "tokens": self.tokens, "digest": self.digest.hexdigest(),
            "tasks": list(self.tasks), "shards": self.shards, **about,
        }  # fmt: skip
        write_json(self.work / "store.json", {**manifest, SEAL: seal_of(manifest)})
        self._refuse_double_uids()
        put_folder(self.work, self.folder)
        return Store(self.folder, verify=False)

    def _refuse_double_uids(self) -> None:
        keys = np.frombuffer(self.uid_keys, dtype="u8")
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        store = Store(self.work, verify=False)
        for at in same[:1]:
            a, b = (int(i) for i in order[at : at + 2])
            raise DataError(
                f"{self.folder}: uid {store.uid(a)!r} is used by examples {a} and {b} ({len(same)} such pairs); give every "
                "record its own id ('ttt data check' lists the lines)"
            )

    def _next_shard(self) -> None:
        self._close_shard()
        number = len(self.shards)
        self._files = {name: (self.work / f"{number:05d}.{name}").open("wb") for name in FILES}
        self._at = dict.fromkeys(FILES, 0)
        self._hashers = {name: hashlib.blake2b(digest_size=DIGEST_BYTES) for name in FILES}

    def _close_shard(self) -> None:
        if self._files:
            for file in self._files.values():
                file.close()
            files = {
                Path(file.name).name: {
                    "bytes": Path(file.name).stat().st_size,
                    "blake2b": self._hashers[name].hexdigest(),
                }
                for name, file in self._files.items()
            }
            counts = {"examples": self._at["index"], "tokens": self._at["ids"], "segments": self._at["segments"]}
            self.shards.append({**counts, "files": files})
            self._files = {}


class Store(Streams):
    """A store that `StoreWriter` wrote.  Opening reads the manifest and maps the indices; tokens stay on the disk.

    Shards are mapped when first used.  Copies in other processes open the folder anew instead of copying it.  All files are
    compared with the digests in the manifest; they are read for it once, not at every opening (`ttt.io.sealed`).
    """

    def __init__(self, folder: str | Path, verify: bool = True) -> None:
        self.folder = Path(folder)
        path = self.folder / "store.json"
        recover(self.folder)
        if not path.is_file():
            raise DataError(f"{self.folder}: no store here (store.json is missing); make one with 'ttt data pack'")
        try:
            self.about = read_json(path, "run 'ttt data pack' again")
            if self.about["format"] != FORMAT:
                raise DataError(
                    f"{path}: format {self.about['format']}, this version reads {FORMAT}; run 'ttt data pack' again"
                )
            if verify:
                self._verify(path)
            self.digest, self.tasks = self.about["digest"], self.about["tasks"]
            counts = [s["examples"] for s in self.about["shards"]]
            _check_manifest(self.about)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a store's manifest ({error!r}); run 'ttt data pack' again") from error
        self.first = np.cumsum([0, *counts])
        self._maps: dict[tuple[int, str], np.ndarray] = {}
        self.lengths = np.concatenate([self._map(i, "index")["length"] for i in range(len(counts))]).astype(np.int32)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder, False)

    def _verify(self, path: Path) -> None:
        """Compare the manifest with its own seal, and every file with the manifest."""
        again = "run 'ttt data pack' again"
        rest = {key: value for key, value in self.about.items() if key != SEAL}
        listed = {name: entry for shard in rest["shards"] for name, entry in shard.get("files", {}).items()}
        if SEAL not in self.about and not listed:
            log.warning("%s: written without digests by an older version; what it holds is not compared", self.folder)
            self._check_index()
            return
        if self.about.get(SEAL) != seal_of(rest):
            raise DataError(f"{path}: was changed after it was written; {again}")
        expected = {f"{i:05d}.{name}" for i in range(len(rest["shards"])) for name in FILES}
        if set(listed) != expected:
            raise DataError(f"{path}: lists other files than those of {len(rest['shards'])} shards; {again}")
        check_files(self.folder, listed, "store.json", again, DataError)

    def _check_index(self) -> None:
        """Refuse an index that points beyond the other files, which is all that can be told without digests."""
        self._maps = {}
        for shard, about in enumerate(self.about["shards"]):
            rows = self._map(shard, "index")
            columns = (("token", "length", "ids"), ("segment", "segments", "segments"), ("uid", "uid_bytes", "uids"))
            for start, length, name in columns:
                ends = rows[start] + rows[length]
                if len(rows) and (rows[start].min() < 0 or rows[length].min() < 0 or ends.max() > len(self._map(shard, name))):
                    raise DataError(
                        f"{self.folder}: {shard:05d}.index and {shard:05d}.{name} do not belong together ({about}); run 'ttt data "
                        "pack' again"
                    )

    def stream(self, index: int) -> TokenStream:
        """The example of this number."""
        shard, row = self._row(index)
        start, stop = int(row["token"]), int(row["token"]) + int(row["length"])
        flags = np.asarray(self._map(shard, "flags")[start:stop])
        kind = flags & KIND_BITS
        first = int(row["segment"])
        segments = self._map(shard, "segments")[first : first + int(row["segments"])].tolist()
        return TokenStream(
            uid=self._uid(shard, row), ids=self._map(shard, "ids")[start:stop].astype(np.int64), kind=kind,
            run_id=audio_runs(kind), target=(flags & TARGET) > 0, noisable=(flags & NOISABLE) > 0,
            segments=tuple(Segment(a, b, AUDIO_STYLES[s], turn, end, bool(t)) for a, b, s, turn, end, t in segments),
            task=self.tasks[row["task"]], prompt_length=int(row["prompt_length"]),
            rejected=int(np.argmax((flags & REJECTED) > 0)) if len(flags) else 0,
        )  # fmt: skip

    def uid(self, index: int) -> str:
        """Name of the example of this number, without reading its tokens."""
        return self._uid(*self._row(index))

    def sources(self) -> list[Streams]:
        """The sources it was packed from, one after the other, each as a source of its own."""
        parts, first = [], 0
        for source in self.about["sources"]:
            parts.append(StoreRange(self, first, first + source["examples"]))
            first += source["examples"]
        return list(parts)

    def _row(self, index: int) -> tuple[int, np.void]:
        shard = int(np.searchsorted(self.first, index, side="right")) - 1
        return shard, self._map(shard, "index")[index - self.first[shard]]

    def _uid(self, shard: int, row: np.void) -> str:
        return self._map(shard, "uids")[row["uid"] : row["uid"] + row["uid_bytes"]].tobytes().decode()

    def _map(self, shard: int, name: str) -> np.ndarray:
        if (shard, name) not in self._maps:
            path = self.folder / f"{shard:05d}.{name}"
            about = self.about["shards"][shard]
            try:
                size = path.stat().st_size
                mapped: np.ndarray = (
                    np.memmap(path, dtype=FILES[name], mode="r") if size else np.zeros(0, dtype=FILES[name])
                )
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: not readable ({error}); run 'ttt data pack' again") from error
            rows = {"index": "examples", "ids": "tokens", "flags": "tokens", "segments": "segments"}.get(name)
            if name == "segments":
                mapped = mapped.reshape(-1, 6)
            if rows and len(mapped) != about[rows]:
                raise DataError(
                    f"{path}: holds {len(mapped)} entries, store.json says {about[rows]}; run 'ttt data pack' again"
                )
            self._maps[shard, name] = mapped.view(np.ndarray)
        return self._maps[shard, name]


class StoreRange(Streams):
    """Examples [first, stop) of a store."""

    def __init__(self, store: Store, first: int, stop: int) -> None:
        self.store, self.first, self.lengths = store, first, store.lengths[first:stop]
        self.digest = store.digest if len(self) == len(store) else digest_of(store.digest, f"{first}:{stop}")

    def stream(self, index: int) -> TokenStream:
        """The example of this number."""
        return self.store.stream(self.first + index)

    def uid(self, index: int) -> str:
        """Name of the example of this number, without reading its tokens."""
        return self.store.uid(self.first + index)


def _check_manifest(about: Mapping[str, Any]) -> None:
    """Raise `TypeError` naming the first key of a manifest that is not of its type."""

    def need(holds: bool, key: str) -> None:
        if not holds:
            raise TypeError(f"{key} is not of its type")

    def is_count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62

    need(isinstance(about["digest"], str), "digest")
    need(isinstance(about["tasks"], list) and all(isinstance(t, str) for t in about["tasks"]), "tasks")
    sources = about.get("sources", [])
    for name, listed in (("shards", about["shards"]), ("sources", sources)):
        need(isinstance(listed, list) and all(isinstance(x, Mapping) for x in listed), name)
    for i, shard in enumerate(about["shards"]):
        for key in ("examples", "tokens", "segments"):
            need(is_count(shard[key]), f"shards[{i}].{key}")
    for i, source in enumerate(sources):
        need(all(isinstance(source.get(key, ""), str) for key in ("name", "data_type")), f"sources[{i}]")
        ratio = source.get("ratio", 1.0)
        need(isinstance(ratio, int | float) and not isinstance(ratio, bool) and ratio >= 0, f"sources[{i}].ratio")
        need(is_count(source["examples"]), f"sources[{i}].examples")


def is_store(path: str | Path) -> bool:
    """Is there a store at ``path``?"""
    return (Path(path) / "store.json").is_file()
