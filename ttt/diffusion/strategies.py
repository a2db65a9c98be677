"""Training strategies: BANOM, PPM, SST (TtT, arXiv 2509.20072, section 3.4), random lengths and padding (LLaDA, arXiv
2502.09992), and two additions of this toolkit (`EndPadding`, `CleanHistory`).

Each is drawn again at every step or epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from ttt.diffusion.corrupt import per_position, span_starts
from ttt.interfaces import Strategy
from ttt.registry import NonNegativeInt, PositiveInt, Share
from ttt.registry.families import STRATEGY
from ttt.types import Kind, PackedBatch, Segment, TokenStream


@STRATEGY.register("banom")
@dataclass(frozen=True)
class Banom(Strategy):
    """Batchwise AR & NAR objective mixing: with probability ``p`` audio stays clean and only the text loss trains.

    ``scope``: ``batch`` draws one coin per micro-batch (official code), ``sample`` one per document (the
    other reading of the paper; the diffusion loss is still divided by all documents, so that its expectation is that of the
    code).
    """

    p: Share = 0.3
    scope: Literal["batch", "sample"] = "batch"

    def on_maskable(self, batch: PackedBatch, maskable: Tensor, gen: Generator) -> Tensor:
        """No position may be noised where the coin says so."""
        coins = torch.rand(1 if self.scope == "batch" else batch.n_docs, generator=gen) < self.p
        return maskable & ~per_position(coins.expand(batch.n_docs), batch.doc)


@STRATEGY.register("ppm")
@dataclass(frozen=True)
class Ppm(Strategy):
    """Prefix preservation masking: with probability ``p`` (per document) the spans before a random one stay clean.

    The split is uniform over the starts of maskable spans; choosing the first changes nothing (official code and paper agree).
    """

    p: Share = 0.3
    scope: Literal["sample"] = "sample"

    def on_maskable(self, batch: PackedBatch, maskable: Tensor, gen: Generator) -> Tensor:
        """Positions before the chosen start are no longer maskable."""
        flags = torch.rand(batch.n_docs, generator=gen) < self.p
        choice = torch.rand(batch.n_docs, generator=gen)
        return preserve_prefix(batch, maskable, choose_splits(batch, maskable, flags, choice))


def choose_splits(batch: PackedBatch, maskable: Tensor, flags: Tensor, choice: Tensor) -> Tensor:
    """Flat position of the span start at which each flagged document is split, -1 elsewhere.  i64 [n_docs].

    ``flags`` bool [n_docs]; ``choice`` f32 [n_docs] in [0, 1) picks uniformly among the maskable starts.
    """
    starts = (span_starts(batch) & maskable).flatten().nonzero().flatten()
    owners = batch.doc.flatten()[starts]
    counts = torch.bincount(owners, minlength=batch.n_docs)
    first = torch.cumsum(counts, 0) - counts
    starts = starts[torch.argsort(owners, stable=True)]
    picked = first + (choice * counts).long().clamp(max=(counts - 1).clamp(min=0))
    usable = flags & (counts > 0)
    split = torch.full((batch.n_docs,), -1, dtype=torch.long)
    split[usable] = starts[picked[usable]]
    return split


def preserve_prefix(batch: PackedBatch, maskable: Tensor, split: Tensor) -> Tensor:
    """``maskable`` without the positions left of each document's ``split`` (flat, -1: none)."""
    flat = torch.arange(batch.ids.numel()).view(batch.ids.shape)
    keep_from = torch.where(batch.doc >= 0, split[batch.doc.clamp(min=0)], -1)
    return maskable & (flat >= keep_from)


@STRATEGY.register("sst")
@dataclass(frozen=True)
class Sst(Strategy):
    """Stochastic span truncation: with probability ``p`` the answer's last span loses a random tail and its end token.

    The kept number of codes is uniform in [max(int(low n), minimum_kept), int(high n)] when n > ``longer_than`` (the
    official code keeps 30 % to 90 %).  ``turns``: ``last`` truncates the last assistant turn only; ``all`` every turn,
    each with its own coin, as the official code does (a middle turn is then left unclosed).
    """

    p: Share = 0.5
    scope: Literal["sample"] = "sample"
    low: Share = 0.3
    high: Share = 0.9
    minimum_kept: NonNegativeInt = 5
    longer_than: NonNegativeInt = 10
    turns: Literal["last", "all"] = "last"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"need low < high, got low={self.low}, high={self.high}")

    def keep_range(self, n: int) -> tuple[int, int] | None:
        """(lowest, highest) number of kept codes of a span of ``n``, or None when it is left whole.

        >>> Sst().keep_range(20), Sst().keep_range(10), Sst().keep_range(11)
        ((6, 18), None, (5, 9))
        """
        low, high = max(int(self.low * n), self.minimum_kept), int(self.high * n)
        return (low, high) if n > self.longer_than and low < high else None

    def on_stream(self, stream: TokenStream, gen: np.random.Generator) -> TokenStream:
        """Truncate the last quad span of the last (or of every) assistant turn."""
        quads = [s for s in stream.segments if s.target and s.style == "last"]
        if self.turns == "last":  # only a turn that ends the stream may be left unclosed
            quads = [s for s in quads if s.turn_stop == len(stream)]
        for turn in sorted({s.turn for s in quads}):
            if gen.random() >= self.p:
                continue
            number = max(i for i, s in enumerate(stream.segments) if s.turn == turn and s.style == "last")
            segment = stream.segments[number]
            limits = self.keep_range(segment.stop - segment.start)
            if limits is not None:
                stream = stream.truncate(number, int(gen.integers(limits[0], limits[1] + 1)))
        return stream


@STRATEGY.register("end_padding")
@dataclass(frozen=True)
class EndPadding(Strategy):
    """With probability ``p`` the last answer span is padded with its end token.

    0 to ``maximum`` copies follow it; with ``length`` it is padded to that many tokens.

    An addition of this toolkit.  Block-wise decoding predicts the tokens *after* an end that falls inside a block.  Without
    padding these never occur in training, and ends are always written at the last position of a block.  LLaDA's padding with
    EOS is the same idea for a canvas of fixed length (``length``).  Decoding keeps the first end token.
    """

    shapes_canvas = True  # no field: decoding predicts these copies too

    p: Share = 0.5
    scope: Literal["sample"] = "sample"
    maximum: PositiveInt = 12
    length: NonNegativeInt = 0  # codes and end tokens together; 0: a random number of copies

    def growth(self, stream: TokenStream) -> int:
        """Largest number of tokens that may be added; 0 without a closed answer span."""
        closed = self._closed(stream)
        if not closed or not self.length:
            return self.maximum if closed else 0
        last = stream.segments[closed[-1]]
        return max(0, self.length - (last.stop + 1 - last.start))

    def on_stream(self, stream: TokenStream, gen: np.random.Generator) -> TokenStream:
        """Repeat the end token of the last closed answer span."""
        closed = self._closed(stream)
        if not closed or gen.random() >= self.p:
            return stream
        times = self.growth(stream) if self.length else int(gen.integers(0, self.maximum + 1))
        return stream.repeat_end(closed[-1], times)

    def limited(self, stream: TokenStream, room: int) -> Strategy:
        """At most ``room`` copies."""
        if not self.length:
            return replace(self, maximum=room) if room else Strategy()
        return replace(self, length=self.length - (self.growth(stream) - room))

    def _closed(self, stream: TokenStream) -> list[int]:
        return [i for i, s in enumerate(stream.segments) if s.target and s.style in ("span", "last")]


@STRATEGY.register("answer_padding")
@dataclass(frozen=True)
class AnswerPadding(Strategy):
    """With probability ``p`` the last answer is padded to ``length`` tokens with its last token (LLaDA, arXiv 2502.09992).

    For models that write the whole answer at once: decoding starts from a canvas of masks that is longer than the answer, so
    the model has to learn where an answer ends and what follows.  LLaDA pads with its end token; here the token after
    ``<|im_end|>``, a newline, is repeated.  Longer answers, unclosed ones and pre-training documents are not changed.
    """

    shapes_canvas = True  # no field: the canvas that decoding starts from

    p: Share = 1.0
    scope: Literal["sample"] = "sample"
    length: PositiveInt = 128

    def growth(self, stream: TokenStream) -> int:
        """Number of tokens by which the last answer is shorter than ``length``."""
        if stream.target.all() or not stream.target[-1] or stream.kind[-1] != Kind.TEXT:
            return 0
        before = (~stream.target).nonzero()[0]
        return max(0, self.length - (len(stream) - 1 - int(before[-1])))

    def on_stream(self, stream: TokenStream, gen: np.random.Generator) -> TokenStream:
        """Repeat the last token."""
        missing = self.growth(stream)
        return stream.repeat_last(missing) if missing and gen.random() < self.p else stream

    def limited(self, stream: TokenStream, room: int) -> Strategy:
        """Padded only as far as there is room."""
        return replace(self, length=self.length - (self.growth(stream) - room))


@STRATEGY.register("clean_history")
@dataclass(frozen=True)
class CleanHistory(Strategy):
    """With probability ``p`` (per document) everything before a random position of the last span stays clean.

    An addition of this toolkit: prefix preservation inside a span.  Together with SST it is the state of block-wise decoding
    from the second block on, where earlier blocks are finished and later ones do not exist yet.
    """

    p: Share = 0.5
    scope: Literal["sample"] = "sample"

    def on_maskable(self, batch: PackedBatch, maskable: Tensor, gen: Generator) -> Tensor:
        """Positions before one that is drawn uniformly from the document's last maskable run are no longer maskable."""
        flags = torch.rand(batch.n_docs, generator=gen) < self.p
        choice = torch.rand(batch.n_docs, generator=gen)
        flat = maskable.flatten()
        at = flat.nonzero().flatten()
        if not len(at):
            return maskable
        owner, run = batch.doc.flatten()[at], batch.run_id.flatten()[at]
        last_run = torch.full((batch.n_docs,), -1, dtype=run.dtype).scatter_reduce(0, owner, run, "amax")
        at, owner = (x[run == last_run[owner]] for x in (at, owner))
        counts = torch.bincount(owner, minlength=batch.n_docs)
        first = torch.full((batch.n_docs,), flat.numel()).scatter_reduce(0, owner, at, "amin")
        split = torch.where(flags & (counts > 0), first + (choice * counts).long(), -1)
        return preserve_prefix(batch, maskable, split)


@STRATEGY.register("random_length")
@dataclass(frozen=True)
class RandomLength(Strategy):
    """With probability ``p`` a pre-training document is cut to a length uniform in [1, n] (LLaDA, arXiv 2502.09992).

    So that a model with full attention is trained on short texts too.  A pre-training document is a stream in which every token
    is a target; chats are not cut.  ``scope``: ``sample`` draws for every document (1 % of the sequences, as published);
    ``batch`` draws once for a micro-batch and cuts all its rows to one length (as some re-implementations do), unless a chat
    is among them.
    """

    p: Share = 0.01
    scope: Literal["sample", "batch"] = "sample"

    def on_stream(self, stream: TokenStream, gen: np.random.Generator) -> TokenStream:
        """The first tokens of a document."""
        if self.scope == "batch" or not stream.target.all() or gen.random() >= self.p:
            return stream
        return first_tokens(stream, int(gen.integers(1, len(stream) + 1)))

    def on_batch(self, batch: PackedBatch, gen: Generator) -> PackedBatch:
        """The first columns of all rows."""
        if self.scope == "sample" or float(torch.rand((), generator=gen)) >= self.p:
            return batch
        if not bool(batch.target[batch.visible].all()):
            return batch
        return first_columns(batch, int(torch.randint(1, batch.ids.shape[1] + 1, (), generator=gen)))


def first_columns(batch: PackedBatch, n: int) -> PackedBatch:
    """The first ``n`` positions of every row; later documents are dropped, the others keep their order."""
    names = ("ids", "kind", "run_id", "doc", "position", "target", "noisable", "visible")
    cut = {name: getattr(batch, name)[:, :n] for name in names}
    kept = cut["doc"][cut["doc"] >= 0].unique()  # sorted
    number = torch.full((batch.n_docs + 1,), -1)
    number[kept] = torch.arange(len(kept))
    cut["doc"] = number[cut["doc"]]  # -1 takes the last entry, which stays -1
    uids, tasks = (tuple(x[i] for i in kept.tolist()) if x else () for x in (batch.uids, batch.tasks))
    voices = None if batch.voices is None else batch.voices[kept]
    return replace(batch, **cut, n_docs=len(kept), uids=uids, tasks=tasks, voices=voices)


def first_tokens(stream: TokenStream, n: int) -> TokenStream:
    """The first ``n`` tokens of a stream; an audio segment that loses its end token becomes an open segment."""
    segments = []
    for s in stream.segments:
        if s.start > n:
            continue
        whole = s.stop < n  # the end token at ``stop`` is kept
        opened = "open_last" if s.style in ("last", "open_last") else "open_span"
        style = s.style if whole or s.style.startswith("open") else opened
        segments.append(Segment(s.start, min(s.stop, n), style, s.turn, min(s.turn_stop, n), s.target))
    return TokenStream(
        uid=stream.uid, ids=stream.ids[:n], kind=stream.kind[:n], run_id=stream.run_id[:n], target=stream.target[:n],
        noisable=stream.noisable[:n], segments=tuple(segments), task=stream.task, prompt_length=min(stream.prompt_length, n),
        voice=stream.voice,
    )  # fmt: skip
