"""The objects that cross package borders.  They check themselves once, here; inner functions then trust them.

Letters: ``B`` rows, ``T`` positions, ``V`` vocabulary, ``N`` selected positions, ``F`` audio frames, ``Q`` codebooks,
``S`` wav samples, ``n`` tokens of one stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ttt.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


class Kind(IntEnum):
    """What a position is.  Set once, in `ttt.data.encode`, from the vocabulary's classes."""

    PAD = 0
    TEXT = 1
    AUDIO = 2


# What a sampler fills: the audio spans that text opens; the whole answer, text included; or one span that is the answer.
Canvas = Literal["span", "answer", "speech"]
# What the unconditional pass of guidance hides behind mask tokens: everything before the window, as the official TtT
# program does (arXiv 2509.20072, inference_TtT.py); or only what came from the data, not the chat template.
GuidanceMode = Literal["mask_all", "mask_prompt_content"]
# Network calls are counted by what they write: one token from left to right, or masked positions.
CallKind = Literal["ar", "diffusion"]
# Which row of logits predicts a masked token: its own, or the one before it, as in models that began left to right.
LogitAlignment = Literal["same", "next"]
# How an audio span is delimited (the official TtT program's token order).  `open` is a span without an end: a truncated one.
AUDIO_STYLES = ("user", "span", "last", "open_span", "open_last")
ROLES = ("system", "user", "assistant", "document")


@dataclass(frozen=True)
class Waveform:
    """Mono sound.  ``samples`` f32 [S] in [-1, 1]; ``rate_hz`` samples per second."""

    samples: np.ndarray
    rate_hz: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise DataError(
                f"Waveform: samples must be float32 [S], got {self.samples.dtype} {list(self.samples.shape)}"
            )
        if self.rate_hz <= 0:
            raise DataError(f"Waveform: rate_hz must be > 0, got {self.rate_hz}")

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True)
class AudioCodes:
    """Codes of one recording.  ``ids`` i32 [F, Q] (one codebook: Q = 1), ``frame_rate_hz`` frames per second.

    ``durations`` i32 [F]: frames that each row of ``ids`` lasts, >= 1, where runs of equal codes were removed; None: one each.
    """

    ids: np.ndarray
    frame_rate_hz: float
    codec: str
    durations: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2:
            raise DataError(f"AudioCodes: ids must be [F, Q], got {list(self.ids.shape)}")
        lasts = self.durations
        if lasts is not None and (lasts.shape != self.ids.shape[:1] or lasts.dtype.kind != "i" or lasts.min(initial=1) < 1):
            raise DataError(f"AudioCodes: durations must be {len(self.ids)} whole numbers >= 1, one for each row of ids")

    @property
    def frames(self) -> int:
        """Frames that the codes last."""
        return len(self.ids) if self.durations is None else int(self.durations.sum())

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.frames / self.frame_rate_hz


@dataclass(frozen=True)
class Span:
    """A stretch of one modality inside a turn: ``text``, or ``codes`` i32 [F, Q] delimited by ``style``."""

    kind: str
    text: str = ""
    codes: np.ndarray | None = None
    style: str = "span"

    def __post_init__(self) -> None:
        if self.kind not in ("text", "audio"):
            raise DataError(f"span kind must be 'text' or 'audio', got {self.kind!r}")
        if self.kind == "audio":
            if self.codes is None or self.codes.ndim != 2:
                raise DataError("audio span needs codes [F, Q]")
            if self.style not in AUDIO_STYLES:
                raise DataError(f"audio span style must be one of {', '.join(AUDIO_STYLES)}, got {self.style!r}")


def written_text(spans: Iterable[Span]) -> str:
    """The text of spans as it was written: text spans put together with nothing between them.

    A span may end inside a word (chunks are counted in tokens); a blank at a border is part of one of the spans.

    >>> written_text([Span("text", "the capi"), Span("audio", codes=np.zeros((2, 1), np.int32)), Span("text", "tal is Rome")])
    'the capital is Rome'
    """
    return "".join(span.text for span in spans if span.kind == "text")


@dataclass(frozen=True)
class Turn:
    """What one role says.  Role ``document`` is plain text or interleaved pre-training data without a template.

    ``history``: was said before and is only read: an assistant's turn without loss.
    """

    role: str
    spans: tuple[Span, ...]
    history: bool = False

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            from ttt.errors import suggest

            raise DataError(f"unknown role {self.role!r}.{suggest(self.role, ROLES)} Roles: {', '.join(ROLES)}")

    @property
    def is_target(self) -> bool:
        """Does this turn carry loss?"""
        return self.role in ("assistant", "document") and not self.history


@dataclass(frozen=True)
class Example:
    """One training or test item: turns, the task it belongs to, and free ``meta`` (references, answer keys).

    ``rejected``: in a preference pair, the answer that was liked less than the last turn, which is the chosen one.
    """

    uid: str
    turns: tuple[Turn, ...]
    task: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    rejected: Turn | None = None

    def __post_init__(self) -> None:
        if not self.turns:
            raise DataError(f"example {self.uid!r} has no turns")


@dataclass(frozen=True)
class Segment:
    """Where one audio span lies in a stream: codes at [start, stop), its end token (if any) at ``stop``."""

    start: int
    stop: int
    style: str
    turn: int
    turn_stop: int
    target: bool


@dataclass(frozen=True)
class TokenStream:
    """One example as tokens; all arrays [n].

    ``ids`` i64; ``kind`` u8 (`Kind`); ``run_id`` i32: number of text tokens at or before the position, so two audio
    positions with one value lie in one maximal audio run; ``target`` bool: carries loss; ``noisable`` bool: may be noised
    (equal to ``target`` unless the official ``prompt_length`` rule is asked for); ``content`` bool: comes from the data,
    not from the chat template (kept for prompts only).  ``rejected``: of a preference pair, where the second document begins
    (the prompt once more, with the rejected answer); 0: no pair.  ``voice`` f32 [E]: who speaks (`Example.meta`,
    ``voice_vector``); None: nobody said.
    """

    uid: str
    ids: np.ndarray
    kind: np.ndarray
    run_id: np.ndarray
    target: np.ndarray
    noisable: np.ndarray
    segments: tuple[Segment, ...] = ()
    task: str = ""
    prompt_length: int = 0
    content: np.ndarray | None = None
    rejected: int = 0
    voice: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("ids", "kind", "run_id", "target", "noisable")}
        if len(set(lengths.values())) != 1:
            raise DataError(f"stream {self.uid!r}: arrays must share one length, got {lengths}")

    def __len__(self) -> int:
        return len(self.ids)

    def refuse_pair(self) -> None:
        """Raise `DataError` for a preference pair, whose answers are compared whole."""
        if self.rejected:
            raise DataError(
                f"pair {self.uid!r}: answers of a preference pair are neither cut nor filled up; leave long pairs out "
                "(data.long_rows=drop) and use no strategies"
            )

    def truncate(self, number: int, kept: int) -> TokenStream:
        """The stream with segment ``number`` cut to its first ``kept`` codes; the rest of its turn falls away too."""
        self.refuse_pair()
        cut = self.segments[number]
        start, stop = cut.start + kept, cut.turn_stop
        if not 0 <= kept <= cut.stop - cut.start:
            raise DataError(f"stream {self.uid!r}: cannot keep {kept} of {cut.stop - cut.start} codes")
        keep = np.ones(len(self), dtype=bool)
        keep[start:stop] = False
        segments = []
        for i, s in enumerate(self.segments):
            if i == number:
                style = "open_last" if s.style in ("last", "open_last") else "open_span"
                segments.append(Segment(s.start, start, style, s.turn, start, s.target))
            elif s.start < start:
                segments.append(Segment(s.start, s.stop, s.style, s.turn, min(s.turn_stop, start), s.target))
            elif s.start >= stop:
                d = stop - start
                segments.append(Segment(s.start - d, s.stop - d, s.style, s.turn, s.turn_stop - d, s.target))
        kind = self.kind[keep]
        return TokenStream(
            uid=self.uid, ids=self.ids[keep], kind=kind, run_id=audio_runs(kind), target=self.target[keep],
            noisable=self.noisable[keep], segments=tuple(segments), task=self.task, prompt_length=self.prompt_length,
            voice=self.voice,
        )  # fmt: skip

    def first(self, longest: int, frame: int = 1) -> TokenStream:
        """The first ``longest`` tokens; a span that goes on behind them is open, and ends with a whole frame of ``frame`` codes."""
        if len(self) <= longest:
            return self
        self.refuse_pair()
        stop, segments = longest, []
        for s in self.segments:
            if s.start < longest <= s.stop:
                stop = s.start + (longest - s.start) // frame * frame
                style = "open_last" if s.style in ("last", "open_last") else "open_span"
                if stop > s.start:
                    segments.append(Segment(s.start, stop, style, s.turn, stop, s.target))
            elif s.stop < longest:
                segments.append(s)
        return dataclasses.replace(
            self, ids=self.ids[:stop], kind=self.kind[:stop], run_id=self.run_id[:stop], target=self.target[:stop],
            noisable=self.noisable[:stop], content=None if self.content is None else self.content[:stop],
            segments=tuple(dataclasses.replace(s, turn_stop=min(s.turn_stop, stop)) for s in segments),
        )  # fmt: skip

    def repeat_end(self, number: int, times: int) -> TokenStream:
        """The stream with the end token of closed segment ``number`` written ``times`` more times."""
        self.refuse_pair()
        segment = self.segments[number]
        if segment.style.startswith("open"):
            raise DataError(f"stream {self.uid!r}: segment {number} has no end token to repeat")
        at = np.full(times, segment.stop + 1)

        def longer(values: np.ndarray) -> np.ndarray:
            return np.insert(values, at, values[segment.stop])

        def moved(s: Segment) -> Segment:
            d = times if s.start > segment.stop else 0
            return Segment(
                s.start + d, s.stop + d, s.style, s.turn, s.turn_stop + times * (s.turn_stop > segment.stop), s.target
            )

        kind = longer(self.kind)
        return TokenStream(
            uid=self.uid, ids=longer(self.ids), kind=kind, run_id=audio_runs(kind), target=longer(self.target),
            noisable=longer(self.noisable), segments=tuple(map(moved, self.segments)), task=self.task,
            prompt_length=self.prompt_length, voice=self.voice,
        )  # fmt: skip

    def repeat_last(self, times: int) -> TokenStream:
        """The stream with its last token, a text token, written ``times`` more times as part of the last turn."""
        self.refuse_pair()
        if self.kind[-1] != Kind.TEXT:
            raise DataError(f"stream {self.uid!r}: ends inside an audio span; there is no last text token to repeat")
        size = len(self)

        def longer(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values, np.repeat(values[-1:], times)])

        segments = (
            dataclasses.replace(s, turn_stop=s.turn_stop + times) if s.turn_stop == size else s for s in self.segments
        )
        kind = longer(self.kind)
        return dataclasses.replace(
            self, ids=longer(self.ids), kind=kind, run_id=audio_runs(kind), target=longer(self.target),
            noisable=longer(self.noisable), segments=tuple(segments),
            content=None if self.content is None else longer(self.content),
        )  # fmt: skip


def audio_runs(kind: np.ndarray) -> np.ndarray:
    """Number of text tokens at or before each position: equal on two audio positions iff no text lies between them.

    >>> audio_runs(np.array([1, 2, 2, 1, 2], dtype=np.uint8)).tolist()
    [1, 1, 1, 2, 2]
    """
    return np.cumsum(kind != Kind.AUDIO).astype(np.int32)


@dataclass(frozen=True)
class CodeSpace:
    """Which ids audio has: ``codebooks``, the ids [start, stop) of every code position of a frame; ``ends``: what ends a span.

    ``frame_rate_hz``: frames of a second, where the vocabulary knows (0: it does not).  ``together``: the codes of a frame (of
    a row, `ttt.interfaces.CodePattern`) stand at one position of the network.
    """

    codebooks: tuple[tuple[int, int], ...]
    ends: tuple[int, ...] = ()
    frame_rate_hz: float = field(default=0.0, compare=False)
    together: bool = False

    def joins(self, ids: Any) -> Any:
        """Ids, an array or tensor, that stand at the network's position of the id before them: bool, of the same shape."""
        first, last = (self.codebooks[0][1], self.codebooks[-1][1]) if self.together else (0, 0)  # text alone has no codes
        return (ids >= first) & (ids < last)


@dataclass(frozen=True)
class PackedBatch:
    """Rows of packed documents; every tensor [B, T] on the CPU until `to`.

    ``doc`` i64: number of the document within the batch (0 .. n_docs-1), -1 on padding; ``position`` i64 restarts with
    each document; ``visible`` bool: may be looked at (False on padding); ``mask_id``: the absorbing token of the vocabulary;
    ``space``: which ids are codes, where an objective has to know; ``progress``: share of the training's updates that were
    done before this one (0 outside training); ``uids``, ``tasks``: names of the documents and of their tasks, in order;
    ``pairs``: numbers of the documents (chosen, rejected) of every preference pair; ``voices`` f32 [n_docs, E]: who speaks in
    each document, None unless all of them say so with vectors of one size.
    """

    ids: Tensor
    kind: Tensor
    run_id: Tensor
    doc: Tensor
    position: Tensor
    target: Tensor
    noisable: Tensor
    visible: Tensor
    n_docs: int
    mask_id: int
    uids: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    space: CodeSpace | None = None
    progress: float = 0.0
    pairs: tuple[tuple[int, int], ...] = ()
    voices: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {f.name: tuple(getattr(self, f.name).shape) for f in fields(self)[:8]}
        if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
            raise DataError(f"PackedBatch: fields must share one [B, T], got {shapes}")

    @property
    def joined(self) -> Tensor | None:
        """bool [B, T]: stands at the network's position of the id before it; None: no id does."""
        if self.space is None or not self.space.together:
            return None
        joined = self.space.joins(self.ids)
        joined[:, 0] = False
        joined[:, 1:] &= self.doc[:, 1:] == self.doc[:, :-1]
        return joined

    @property
    def n_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(self.visible.sum())

    def layout(self) -> Layout:
        """What an attention mask may look at."""
        return Layout(
            kind=self.kind, run_id=self.run_id, doc=self.doc, position=self.position,
            prompt=~self.noisable, visible=self.visible, stream=self.kind.new_zeros(self.kind.shape),
        )  # fmt: skip


@dataclass(frozen=True)
class Words:
    """Text tokens of the prompts of networks that read frames: ``ids`` i64 [D, L], 0 on padding, ``lens`` i64 [D]."""

    ids: Tensor
    lens: Tensor

    def to(self, device: Any) -> Words:
        """The same on another device."""
        return Words(self.ids.to(device), self.lens.to(device))


@dataclass(frozen=True)
class Voices:
    """Who speaks in some documents: ``vectors`` f32 [D, E]; ``given`` bool [D]: False where the network is not told."""

    vectors: Tensor
    given: Tensor

    def to(self, device: Any) -> Voices:
        """The same on another device."""
        return Voices(self.vectors.to(device), self.given.to(device))


@dataclass(frozen=True)
class Layout:
    """All that an attention mask may look at (never the ids); every tensor [B, T].

    ``stream`` is 0 for ordinary rows; objectives that put a noisy copy beside the clean sample mark the copy with 1.
    """

    kind: Tensor
    run_id: Tensor
    doc: Tensor
    position: Tensor
    prompt: Tensor
    visible: Tensor
    stream: Tensor

    def to(self, device: Any) -> Layout:
        """The same layout on another device."""
        return Layout(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.kind.shape[0], self.kind.shape[1]


@dataclass(frozen=True)
class Partition:
    """Classes of a term's targets, for the log only.  ``index`` i64 [n]: number in ``names``, or -1 for none of them."""

    index: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """The ids that the softmax of each target goes over: ``index`` i64 [n], on the CPU, numbers ``sets``; -1: all ids.

    A set is a tuple of disjoint ranges [start, stop) of ids.
    """

    index: Tensor
    sets: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class PlanTerm:
    """One loss term before any network ran.

    ``source`` i64 [n]: flat positions (row * T + column) whose logits predict ``target`` i64 [n]; ``weight`` f32 [n];
    ``count``: what the sum over the whole window and all ranks is divided by; ``scale``: factor of the term in the loss;
    ``partitions``: by what the log tells targets apart (task, mask ratio, ...); ``columns``: what the softmax goes
    over (None: all ids); ``accuracy``: also log how often the target is the likeliest id; ``stats``: (sum, count) by name
    that are known already.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    count: float
    scale: float = 1.0
    partitions: tuple[Partition, ...] = ()
    columns: Columns | None = None
    accuracy: bool = False
    stats: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What one forward pass has to compute: inputs [B, T], the mask's layout and rule, and the loss terms.

    ``joined`` bool [B, T]: ids that stand at the network's position of the id before them (None: none does).
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    mask: Any
    terms: Mapping[str, PlanTerm]
    joined: Tensor | None = None


@dataclass(frozen=True)
class ModelInputs:
    """What the network sees: ids and positions [B, T], a mask made for its attention, flat positions ``select`` [N].

    Ids may be [B, T, K]: K of them at a position, -1 where there are fewer; the network reads the mean of their embeddings.
    With ``targets`` i64 [N] it answers with their negative log-likelihoods [N] instead of logits [N, V]; ``weight`` f32 [N]:
    the factor each of them will have in the loss, up to a common one (a hint: gradients are right without it too).
    ``columns``: over which ids each softmax goes (None: all).  ``hits``: the answer is (-log p, bool [N]: the target is the
    likeliest of its ids).
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Any
    select: Tensor
    targets: Tensor | None = None
    weight: Tensor | None = None
    columns: Columns | None = None
    hits: bool = False


@dataclass(frozen=True)
class LossTerm:
    """A sum and what to divide it by.  They travel together and are divided once, by the global count."""

    sum: Tensor
    count: float
    scale: float = 1.0


@dataclass(frozen=True)
class LossTerms:
    """Loss terms by name, and plain statistics (sum, count) for the log."""

    terms: Mapping[str, LossTerm]
    stats: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """What a decoder continues: ``ids`` of one prompt, as long as every other field that says something of each token.

    ``content``: the token comes from the data and not from the chat template (guidance hides these).  ``noisable``: the
    token is of a turn that the model wrote earlier, which masks treat as in training (`TokenStream.noisable`); None: no
    token is.  ``known``: ids of the answer as far as they are given, mask tokens where it is to be written (in-filling).
    ``voice`` f32 [E]: who is to speak (`TokenStream.voice`).
    """

    uid: str
    ids: Sequence[int]
    content: Sequence[bool] | None = None
    noisable: Sequence[bool] | None = None
    known: Sequence[int] = ()
    voice: np.ndarray | None = None

    @classmethod
    def of(cls, stream: TokenStream, uid: str = "", known: Sequence[int] = ()) -> Prompt:
        """From an example without its answer, as tokens (`ttt.data.encode.encode_example` with ``open_answer``)."""
        content = None if stream.content is None else stream.content.tolist()
        return cls(uid or stream.uid, stream.ids.tolist(), content, stream.noisable.tolist(), known, stream.voice)


@dataclass(frozen=True)
class LogitsRequest:
    """Logits f32 [R, p, ids] that a decoder or sampler asks of a session (`ttt.sampling.decoder.session.Session.run`).

    ``rows`` i64 [R]: numbers of the session's rows.  ``tails`` i64 [R, m]: for each row the tokens behind its context, mask
    tokens among them.  ``places`` i64 [R, p]: columns of the tails, ascending; -1 is the last token of the context.
    ``window``: how many last columns hold all places.  ``ids``: the range of ids that logits cover; None: all.
    ``guidance``: a mode of classifier-free guidance, or empty; with one the logits are those of the unconditional pass, in which
    everything before the window is hidden (see `GuidanceMode`), or with ``no_voice`` the prompt's voice.
    ``kind``: what the network call is counted as.
    ``ahead``: how many last columns are masks of blocks whose turn comes later.
    ``settled_as_prompt``: networks that read frames take the tokens that are settled already as more of the prompt.
    """

    rows: Tensor
    tails: Tensor
    places: Tensor
    window: int
    ids: slice | None = None
    guidance: GuidanceMode | Literal["", "no_voice"] = ""
    kind: CallKind = "diffusion"
    settled_as_prompt: bool = False
    ahead: int = 0


@dataclass(frozen=True)
class Generation:
    """What the model answered to one prompt.

    ``ids``: new token ids; ``spans``: the same as text and audio spans; ``calls``: network calls it took part in, apart
    by "ar" and "diffusion"; ``seconds``: wall time of its batch; ``first_block_s``: until the first finished audio block;
    ``stopped``: "im_end", "length", "eos" or (all holes of a document) "filled".
    """

    uid: str
    ids: Sequence[int]
    spans: tuple[Span, ...]
    calls: Mapping[str, int]
    seconds: float
    first_block_s: float | None = None
    stopped: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All text, as the tokenizer decodes the text ids in one go (`written_text`)."""
        return written_text(self.spans)

    @property
    def codes(self) -> np.ndarray:
        """All audio codes, concatenated: i32 [F, Q]."""
        parts = [s.codes for s in self.spans if s.kind == "audio" and s.codes is not None and len(s.codes)]
        return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.int32)


@dataclass(frozen=True)
class Value:
    """A measured number: value, 95 % interval, and how many items it rests on."""

    value: float
    low: float
    high: float
    n: int
