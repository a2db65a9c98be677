"""Training on text and speech together: which share of the data is text, and how it is counted (``data.ratio_mode``).

``tokens``
    The share of tokens.  Both sources become one stream of examples (`ttt.data.sources.streams.Mixture`).
``batches``
    The share of micro-batches.  Each micro-batch holds one source only; the two alternate as evenly as whole batches allow,
    and all ranks read the same source at a time.
``legacy_10x``
    What the published LLaDA-TTS program does with its ``ratio``: int(10 * ratio) micro-batches of text, then one of speech.
    Its 0.5 therefore means five text batches to one speech batch (83 % text), not one half.  For reproducing its runs only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction

from ttt.config.schema import DataSection, RatioMode
from ttt.data.batches.loader import Loader, fixed_batches
from ttt.data.batches.rows import PackingReport
from ttt.data.batches.seconds import in_tokens, within_limits
from ttt.data.read.keep import Keep
from ttt.data.sources.mix import open_streams, refuse_unlearned
from ttt.data.sources.streams import Joined, Mixture, Streams, digest_of
from ttt.errors import ConfigError
from ttt.interfaces import Strategy
from ttt.registry import Share
from ttt.text.tokenizer import TextTokenizer
from ttt.types import PackedBatch, TokenStream


@dataclasses.dataclass(frozen=True)
class Blend:
    """``ratio``: share of text in [0, 1]; ``mode``: how it is counted (``data.ratio_mode``)."""

    ratio: Share
    mode: RatioMode = "tokens"

    def __post_init__(self) -> None:
        if self.mode == "legacy_10x" and self.ratio < 0.1:
            raise ConfigError(
                f"data.ratio: 'legacy_10x' needs at least 0.1 (int(10 * ratio) batches of text a batch of speech), got "
                f"{self.ratio}; use ratio_mode batches"
            )

    @property
    def cycle(self) -> int:
        """``legacy_10x``: batches of text before each batch of speech."""
        return int(self.ratio * 10)

    def text_before(self, number: int) -> int:
        """How many of the first ``number`` micro-batches are text: the share rounded to whole batches.

        >>> [Blend(0.3, "batches").text_before(n) for n in (1, 2, 4, 10, 1000)]
        [0, 1, 1, 3, 300]
        >>> [Blend(0.5, "legacy_10x").text_before(n) for n in (5, 6, 7, 12)]
        [5, 5, 6, 10]
        """
        if self.mode == "legacy_10x":
            whole, rest = divmod(number, self.cycle + 1)
            return whole * self.cycle + min(rest, self.cycle)
        share = Fraction(str(self.ratio))  # exact, so that no rounding adds up over a long run
        return (2 * share * number + 1).__floor__() // 2 if share < 1 else number

    def turn(self, number: int) -> tuple[bool, int]:
        """(whether it is text, how many batches of the same source came before it) of micro-batch ``number``."""
        before = self.text_before(number)
        is_text = self.text_before(number + 1) > before
        return is_text, before if is_text else number - before


class Alternating:
    """Micro-batches that hold one source each; a pure function of (update, index) like `Loader`, which makes them.

    An epoch has as many micro-batches as one epoch of text and one of speech together; with ``legacy_10x`` it ends when
    the first of the two sources ends.
    """

    def __init__(self, text: Loader, speech: Loader, blend: Blend, accumulate: int) -> None:
        """The loaders count one micro-batch an update; both are of the same rank and number of ranks."""
        if text.accumulate != 1 or speech.accumulate != 1:
            raise ValueError("loaders of one source must have accumulate 1")
        self.text, self.speech, self.blend, self.accumulate = text, speech, blend, accumulate
        self.strategies = speech.strategies
        self.streams = Joined([text.streams, speech.streams])
        self.digest = digest_of(text.digest, speech.digest, f"{blend.mode}:{blend.ratio!r}")
        self.report = _added(text.report, speech.report)
        batches = text.updates_per_epoch + speech.updates_per_epoch
        if blend.mode == "legacy_10x":
            batches = min(text.updates_per_epoch // blend.cycle, speech.updates_per_epoch) * (blend.cycle + 1)
        self.updates_per_epoch = batches // accumulate
        if self.updates_per_epoch == 0:
            raise ConfigError(
                f"data.ratio: an epoch holds {batches} micro-batches a rank, an update needs {accumulate}; lower "
                "train.accumulate or data.batch_tokens"
            )

    def epoch_of(self, update: int) -> float:
        """Epochs finished when ``update`` starts."""
        return update / self.updates_per_epoch

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        """The batch of (update, index) on this rank."""
        is_text, number = self.blend.turn(update * self.accumulate + index)
        return (self.text if is_text else self.speech).micro_batch(number, 0)

    def costliest_batch(self, epoch: int) -> tuple[tuple[float, int], PackedBatch]:
        """The more expensive one of both loaders' costliest batches; see `Loader.costliest_batch`."""
        return max(self.text.costliest_batch(epoch), self.speech.costliest_batch(epoch), key=lambda pair: pair[0])

    def _stream(self, epoch: int, index: int) -> TokenStream:
        n = len(self.text.streams)
        return self.text._stream(epoch, index) if index < n else self.speech._stream(epoch, index - n)


AnyLoader = Loader | Alternating


def _added(a: PackingReport, b: PackingReport) -> PackingReport:
    dropped = {
        reason: [*a.dropped.get(reason, []), *b.dropped.get(reason, [])] for reason in {**a.dropped, **b.dropped}
    }
    cut, truncated = [*a.cut, *b.cut], a.truncated + b.truncated
    return PackingReport(a.rows + b.rows, a.tokens + b.tokens, a.capacity + b.capacity, dropped, cut, truncated)


def blended(
    text: Streams, speech: Streams, blend: Blend, accumulate: int, make: Callable[[Streams, int], Loader]
) -> AnyLoader:
    """A loader of text and speech; ``make(streams, accumulate)`` makes a loader of one source."""
    if blend.mode == "tokens":
        return make(Mixture([text, speech], [blend.ratio, 1 - blend.ratio]), accumulate)
    if blend.ratio in (0, 1) and blend.mode == "batches":
        return make(text if blend.ratio else speech, accumulate)
    return Alternating(make(text, 1), make(speech, 1), blend, accumulate)


def training_loader(
    data: DataSection, tokenizer: TextTokenizer, *, seed: int, accumulate: int = 1, rank: int = 0, world: int = 1,
    strategies: Sequence[Strategy] = (), max_drop_share: float | None = None,
) -> AnyLoader:  # fmt: skip
    """The loader that the config section ``data`` describes; ``max_drop_share`` replaces the section's own value."""

    data = in_tokens(data, tokenizer.vocab)

    def read(path: str, keep: Keep | None = None) -> Streams:
        streams = open_streams(path, tokenizer, prompt_rule=data.prompt_rule, mix=data.mix, keep=keep)
        refuse_unlearned(streams, path)
        return within_limits(streams, data, tokenizer.vocab, path)

    def make(streams: Streams, accumulate: int) -> Loader:
        return Loader(
            streams, tokenizer.vocab, row_tokens=data.row_tokens, batch_tokens=data.batch_tokens,
            batch_samples=data.batch_samples, seed=seed, accumulate=accumulate, rank=rank, world=world,
            strategies=strategies, pack=data.pack,
            buckets=data.buckets, quadratic=data.quadratic_tokens,
            max_drop_share=data.max_drop_share if max_drop_share is None else max_drop_share,
            long_rows=data.long_rows,
        )  # fmt: skip

    if not data.text:
        return make(read(data.train, data.keep), accumulate)
    return blended(read(data.text), read(data.train, data.keep), Blend(data.ratio, data.ratio_mode), accumulate, make)


def validation_batches(
    data: DataSection, tokenizer: TextTokenizer, *, seed: int, strategies: Sequence[Strategy] = ()
) -> list[PackedBatch]:
    """The examples of ``data.dev``, laid out as in training; none without such a file."""
    if not data.dev:
        return []
    streams = open_streams(data.dev, tokenizer, prompt_rule=data.prompt_rule, mix=data.mix, keep=data.keep)
    if not len(streams):
        return []
    refuse_unlearned(streams, data.dev)
    data = in_tokens(data, tokenizer.vocab)
    streams = within_limits(streams, data, tokenizer.vocab, data.dev)
    return fixed_batches(
        streams, tokenizer.vocab, data.row_tokens, data.batch_tokens, seed=seed, strategies=strategies, pack=data.pack,
        long_rows=data.long_rows, buckets=data.buckets, quadratic=data.quadratic_tokens, batch_samples=data.batch_samples,
    )  # fmt: skip
