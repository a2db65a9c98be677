"""Streaming: pieces of text, final audio blocks and their sound, while the answer is written.

Letters: ``F`` frames, ``Q`` codebooks, ``S`` wav samples.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ttt.audio.streaming import CHUNK_FRAMES, ChunkedSound, check_chunks
from ttt.errors import ConfigError
from ttt.interfaces import Codec
from ttt.sampling.decoder.decoder import Decoder, spans_of
from ttt.text.delta import AnswerText
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Generation, Prompt


@dataclass(frozen=True)
class StreamEvent:
    """One piece of an answer, final.  ``kind`` says which fields hold something:

    * ``text``: ``text``, new characters of span number ``span``; a span's pieces put together are its text;
    * ``block``: ``codes`` i32 [F, Q] of span ``span`` (one frame at a time from the ar sampler);
    * ``sound``: ``samples`` f32 [S] at ``rate_hz``, the answer's sound from ``start_s`` on.  Sound runs on over spans:
      all of it put together is the sound of `Generation.codes`;
    * ``end``: ``generation``, the whole answer; nothing follows.

    Spans are numbered like `Generation.spans`.  ``elapsed_s``: wall time since the stream was started, ``calls``: network
    calls that this answer has taken so far.
    """

    kind: str
    row: int
    elapsed_s: float
    calls: int
    span: int = -1
    text: str = ""
    codes: np.ndarray | None = None
    samples: np.ndarray | None = None
    rate_hz: int = 0
    start_s: float = 0.0
    generation: Generation | None = None


def stream(
    decoder: Decoder, prompts: Sequence[Prompt], codec: Codec | None = None, chunk_frames: Sequence[int] = CHUNK_FRAMES
) -> Iterator[StreamEvent]:
    """Decode and yield everything as soon as it is final; rows of a batch take turns.

    ``codec`` None: no ``sound`` events.  ``chunk_frames``: see `ChunkedSound`.  Decoding runs between two events, in the
    caller's thread; closing the iterator stops it and leaves the model in the mode it was in.  Raises `ConfigError`, before
    anything runs, for a codec that is not the vocabulary's.
    """
    if codec is not None:
        check_codec(codec, decoder.model.tokenizer)
    check_chunks(chunk_frames)
    rows = [
        _Answer(i, p, decoder, ChunkedSound(codec, chunk_frames) if codec else None, codec)
        for i, p in enumerate(prompts)
    ]
    return _events(decoder, prompts, rows)


def check_codec(codec: Codec, tokenizer: TextTokenizer) -> None:
    """Raise `ConfigError` unless the codec's codebooks are those of the vocabulary."""
    vocab = tokenizer.vocab
    if (codec.num_codebooks, codec.num_codes) != (vocab.num_codebooks, vocab.num_codes):
        raise ConfigError(
            f"codec: {codec.codec_id!r} has {codec.num_codebooks} codebook(s) of {codec.num_codes} codes, the model's vocabulary "
            f"{vocab.num_codebooks} of {vocab.num_codes}; name the codec the data were made with"
        )


def _events(decoder: Decoder, prompts: Sequence[Prompt], rows: Sequence[_Answer]) -> Iterator[StreamEvent]:
    started = time.perf_counter()
    for answer in rows:
        answer.started = started
    with contextlib.closing(decoder.events(prompts)) as events:
        for event in events:
            answer = rows[event.row]
            yield from answer.push(event.ids)
            if event.kind == "end":
                yield from answer.finish(event.reason)


class _Answer:
    """One row: its ids so far, and how much of them has been yielded."""

    def __init__(
        self, row: int, prompt: Prompt, decoder: Decoder, sound: ChunkedSound | None, codec: Codec | None
    ) -> None:
        self.row, self.prompt, self.decoder, self.sound, self.codec = row, prompt, decoder, sound, codec
        self.tokenizer = decoder.model.tokenizer
        self.started = 0.0
        self.ids: list[int] = []
        self._text = AnswerText(self.tokenizer, self.tokenizer.vocab.rules.text_first)
        self._span = -1  # number of the span that was last begun
        self._kind = ""  # what it holds
        self._codes: list[int] = []  # ids of the open audio span
        self._frames = 0  # of these, frames handed on
        self._samples = 0
        self._first_block_s: float | None = None

    def push(self, ids: Sequence[int]) -> Iterator[StreamEvent]:
        """What settled ids add, in order.  Where spans begin and end: the rules of `spans_of`."""
        vocab = self.tokenizer.vocab
        for token in ids:
            self.ids.append(token)
            opens = token in (vocab.soa_id, vocab.soa_last_id)
            if not opens and not vocab.is_audio(token):
                yield from self._blocks()
                if self._kind == "audio":
                    self._kind = ""
                yield from self._words(self._text.push(token))
                continue
            if opens:
                yield from self._words(self._text.at_speech())
                yield from self._blocks()
                self._begin("audio")
            elif token in (vocab.eoa_id, vocab.eoa_last_id):
                if self._kind == "audio":
                    yield from self._blocks()
                    self._kind = ""
            else:
                if self._kind != "audio":
                    yield from self._words(self._text.at_speech())
                    self._begin("audio")
                self._codes.append(token)
        yield from self._blocks()

    def finish(self, reason: str) -> Iterator[StreamEvent]:
        """What was held back, and the end."""
        yield from self._words(self._text.finish())
        if self.sound is not None:
            yield from self._sound(self.sound.finish())
        calls = self.decoder.calls_of(self.row)
        seconds = time.perf_counter() - self.started
        generation = Generation(
            uid=self.prompt.uid, ids=tuple(self.ids), spans=spans_of(self.ids, self.tokenizer), calls=calls,
            seconds=seconds, first_block_s=self._first_block_s, stopped=reason,
        )  # fmt: skip
        yield self._event("end", generation=generation)

    def _begin(self, kind: str) -> None:
        self._span, self._kind, self._codes, self._frames = self._span + 1, kind, [], 0

    def _words(self, text: str) -> Iterator[StreamEvent]:
        if text:
            if self._kind != "text":
                self._begin("text")
            yield self._event("text", span=self._span, text=text)

    def _blocks(self) -> Iterator[StreamEvent]:
        codes = self.tokenizer.vocab.codes(np.asarray(self._codes, dtype=np.int64))[self._frames :]
        if not len(codes):
            return
        self._frames += len(codes)
        if self._first_block_s is None:
            self._first_block_s = time.perf_counter() - self.started
        yield self._event("block", span=self._span, codes=codes)
        if self.sound is not None:
            for samples in self.sound.push(codes):
                yield from self._sound(samples)

    def _sound(self, samples: np.ndarray) -> Iterator[StreamEvent]:
        if len(samples) and self.codec is not None:
            start_s = self._samples / self.codec.rate_hz
            self._samples += len(samples)
            yield self._event("sound", samples=samples, rate_hz=self.codec.rate_hz, start_s=start_s)

    def _event(self, kind: str, **fields: object) -> StreamEvent:
        elapsed_s = time.perf_counter() - self.started
        calls = sum(self.decoder.calls_of(self.row).values())
        return StreamEvent(kind, self.row, elapsed_s, calls, **fields)  # type: ignore[arg-type]
