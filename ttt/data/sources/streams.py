"""Sources of token streams for a loader: a list in memory, a `Store` on disk, a subset of one, or a mix of several.

A source is a sequence of `TokenStream`s that knows all lengths without reading any tokens, a digest of its content, and
which of its examples an epoch shows.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from ttt.errors import DataError
from ttt.rng import derive_seed
from ttt.types import TokenStream


class Streams(ABC, Sequence[TokenStream]):
    """A source.  ``lengths`` i32 [n]: tokens of each example; ``digest``: two sources with one digest hold the same data."""

    lengths: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> TokenStream: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenStream]: ...
    def __getitem__(self, index: int | slice) -> TokenStream | Sequence[TokenStream]:
        if isinstance(index, slice):
            return [self.stream(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.stream(int(index) % len(self))

    def __iter__(self) -> Iterator[TokenStream]:
        return (self.stream(i) for i in range(len(self)))

    @abstractmethod
    def stream(self, index: int) -> TokenStream:
        """The example of this number; tokens are read here and nowhere else."""

    def uid(self, index: int) -> str:
        """Name of the example of this number."""
        return self.stream(index).uid

    def subset(self, kept: np.ndarray) -> Streams:
        """Only the examples ``kept`` i64 [m], in that order."""
        return Subset(self, kept)

    def epoch(self, number: int) -> np.ndarray | None:
        """Examples shown in this epoch i64 [m], before shuffling; None: every one once."""
        return None


class InMemory(Streams):
    """A list of streams."""

    def __init__(self, streams: Sequence[TokenStream]) -> None:
        self.items = list(streams)
        self.lengths = np.asarray([len(s) for s in self.items], dtype=np.int32)
        self._digest = ""

    @property
    def digest(self) -> str:  # type: ignore[override]
        """`streams_digest`, computed when first asked for."""
        self._digest = self._digest or streams_digest(self.items)
        return self._digest

    def stream(self, index: int) -> TokenStream:
        """The example of this number."""
        return self.items[index]

    def subset(self, kept: np.ndarray) -> Streams:
        """A shorter list."""
        return InMemory([self.items[i] for i in kept])


class Subset(Streams):
    """Some examples of a source."""

    def __init__(self, source: Streams, kept: np.ndarray) -> None:
        self.source, self.kept = source, np.asarray(kept, dtype=np.int64)
        self.lengths = source.lengths[self.kept]
        self.digest = digest_of(source.digest, self.kept.astype("<i8").tobytes())

    def stream(self, index: int) -> TokenStream:
        """The example of this number."""
        return self.source[int(self.kept[index])]

    def uid(self, index: int) -> str:
        """Name of the example of this number."""
        return self.source.uid(int(self.kept[index]))

    def subset(self, kept: np.ndarray) -> Streams:
        """Some of these."""
        return Subset(self.source, self.kept[kept])


class Joined(Streams):
    """Sources one after the other."""

    def __init__(self, parts: Sequence[Streams]) -> None:
        if not parts:
            raise DataError("no source of training data; name at least one")
        self.parts = list(parts)
        self.lengths = np.concatenate([p.lengths for p in self.parts])
        self.first = np.cumsum([0, *(len(p) for p in self.parts)])  # i64 [parts + 1]
        self.digest = self.parts[0].digest if len(self.parts) == 1 else digest_of(*(p.digest for p in self.parts))

    def stream(self, index: int) -> TokenStream:
        """The example of this number, counted over all sources."""
        part, inside = self._place(index)
        return part[inside]

    def uid(self, index: int) -> str:
        """Name of the example of this number."""
        part, inside = self._place(index)
        return part.uid(inside)

    def _place(self, index: int) -> tuple[Streams, int]:
        number = int(np.searchsorted(self.first, index, side="right")) - 1
        return self.parts[number], index - int(self.first[number])


class Mixture(Joined):
    """Sources in the proportion of their weights, by tokens.

    An epoch holds as many tokens as all sources together, w_i / sum(w) of them from source i: every example of it as
    often as that needs (never, once or more), and the rest drawn without replacement, anew in every epoch.  Shares are
    exact up to the spread of lengths in the part that is drawn.
    """

    def __init__(self, parts: Sequence[Streams], weights: Sequence[float]) -> None:
        super().__init__(parts)
        self.weights = [float(w) for w in weights]
        if min(self.weights) < 0 or not sum(self.weights) > 0:
            raise DataError(f"a mix needs weights >= 0 that are not all 0, got {self.weights}")
        self.digest = digest_of(*(f"{p.digest}:{w!r}" for p, w in zip(self.parts, self.weights, strict=True)))

    def subset(self, kept: np.ndarray) -> Streams:
        """The same mix of fewer examples; the order within the whole is kept."""
        kept = np.sort(np.asarray(kept, dtype=np.int64))
        cuts = np.searchsorted(kept, self.first)
        bounds = zip(self.parts, cuts[:-1], cuts[1:], self.first[:-1], strict=True)
        return Mixture([part.subset(kept[a:b] - first) for part, a, b, first in bounds], self.weights)

    def epoch(self, number: int) -> np.ndarray:
        """Examples of an epoch i64 [m]; an example may come several times."""
        total = float(self.lengths.sum(dtype=np.int64))
        chosen = []
        for i, (part, weight) in enumerate(zip(self.parts, self.weights, strict=True)):
            n = len(part)
            if n and weight:
                examples = weight / sum(self.weights) * total / float(part.lengths.mean(dtype=np.float64))
                times, rest = divmod(round(examples), n)
                drawn = np.random.default_rng(derive_seed(0, "mix", number, i)).permutation(n)[:rest]
                chosen += [self.first[i] + np.tile(np.arange(n), times), self.first[i] + np.sort(drawn)]
        return np.concatenate(chosen).astype(np.int64)


def as_streams(streams: Sequence[TokenStream]) -> Streams:
    """A list as a source; a source stays what it is."""
    return streams if isinstance(streams, Streams) else InMemory(streams)


def digest_of(*parts: str | bytes) -> str:
    """Short digest of several parts, apart from each other."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class Digest:
    """`streams_digest` of streams that come one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, uid: str, ids: np.ndarray, target: np.ndarray, voice: np.ndarray | None = None) -> None:
        """One more stream: ids [n] of any integer type, target bool [n], voice f32 [E] where it has one."""
        self._digest.update(uid.encode())
        self._digest.update(ids.astype("<i4").tobytes())
        self._digest.update(target.tobytes())
        if voice is not None:
            self._digest.update(voice.astype("<f4").tobytes())

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._digest.hexdigest()


def streams_digest(streams: Sequence[TokenStream]) -> str:
    """Digest of uids, ids, targets and voices: two runs with one digest saw the same data."""
    digest = Digest()
    for stream in streams:
        digest.add(stream.uid, stream.ids, stream.target, stream.voice)
    return digest.hexdigest()
