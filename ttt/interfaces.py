"""The extension surface: one small abstract class per plug-in family, on one page.

A plug-in derives from one of these, is a (frozen) dataclass, and is registered under a name
(`ttt.registry.families`).  Its fields are its configuration.  Shapes use the letters of `ttt.types`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Generator, Tensor
    from typing_extensions import Self

    from ttt.types import (
        AudioCodes,
        Example,
        Layout,
        LossTerms,
        PackedBatch,
        Plan,
        TokenStream,
        Waveform,
    )  # fmt: skip

    # (b, h, q, k) index tensors -> bool: may position q of row b look at position k?
    MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Choices:
    """Choices of a text that a `Literal` cannot list: ``shown`` names them, the regular expression ``pattern`` matches them."""

    shown: tuple[str, ...]
    pattern: str

    def holds(self, value: str) -> bool:
        """Is ``value`` one of them?"""
        return re.fullmatch(self.pattern, value) is not None


Device = Annotated[str, Choices(("auto", "cpu", "cuda", "cuda:N"), "auto|cpu|cuda(:[0-9]{1,3})?")]
OwnDevice = Annotated[str, Choices(("", "auto", "cpu", "cuda", "cuda:N"), "(auto|cpu|cuda(:[0-9]{1,3})?)?")]
Dtype = Literal["float32", "bfloat16", "float16"]


class OnDevice:
    """Base of the families whose plug-ins have weights beside the network: every plug-in has these two fields as its last ones.

    They are the user's word, and `ttt.audio.loading` gives them to ``load``.  They are given by name only, so that a
    subclass may add fields without a default.  The class is no dataclass itself: plug-ins may then be frozen or not.
    """

    device: OwnDevice = ""  # where it computes; empty: run.device
    dtype: Dtype = "float32"  # precision of its network, where it allows another than float32

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        own = cls.__dict__.get("__annotations__", {})
        if "device" in getattr(cls, "__dataclass_fields__", {}):  # a base class has them already
            return
        named = any(kind is KW_ONLY or str(kind).endswith("KW_ONLY") for kind in own.values())
        by_name = {} if named else {"_": KW_ONLY}
        cls.__annotations__ = {**own, **by_name, "device": OwnDevice, "dtype": Dtype, **own}


class MaskRule(ABC):
    """Who may look at whom.  One predicate serves every attention implementation (`ttt.masks.materialize`).

    ``block_length``: positions of one audio run see the run up to the end of their own block of this length; 0: no
    blocks.  Objectives and samplers that work block by block must agree with it.  ``text_sees_future``: text positions may
    look ahead (else never, and audio only inside its own run).  ``looks_ahead``: who sees what lies behind it, exactly:
    ``nothing``, ``runs`` (an audio run sees itself), ``answer_runs`` (the answer's runs only), ``blocks`` (prompt runs see
    themselves, an answer's run its own block), ``prompt`` (every unbroken stretch of prompt sees itself), ``document``; empty:
    not said.  `ttt check` holds a rule to what it says.
    """

    block_length: int = 0
    text_sees_future: bool = False
    looks_ahead: str = ""

    @abstractmethod
    def allow(self, layout: Layout) -> MaskMod:
        """The predicate for one layout.  It must never let one document look at another, nor at invisible keys."""

    def frozen_prefix(self, layout: Layout, closed: Tensor) -> Tensor:
        """How many leading positions of each row can never look at anything appended later.  -> i64 [B].

        ``closed`` bool [B]: no audio will be appended to the row's trailing audio run.  What is appended is never prompt.
        The decoder caches exactly these positions; the safe default is none.
        """
        return layout.kind.new_zeros(layout.kind.shape[0], dtype=closed.new_zeros(1).long().dtype)


class NoiseSchedule(ABC):
    """Share of tokens still clean at time t: falls from ``ends[0]`` to ``ends[1]``, both in [0, 1].  [*] -> [*].

    ``ends``: alpha(0) and alpha(1).  (1, 0) unless a schedule stays away from one of them (clipped masking rates, an eps); it
    then overrides the property.  alpha and dalpha keep the shape and type of t; only at the ends may dalpha be infinite.
    """

    @property
    def ends(self) -> tuple[float, float]:
        """(alpha(0), alpha(1))."""
        return 1.0, 0.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still clean at time ``t`` in [0, 1]."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """Derivative of `alpha` at ``t``; <= 0."""


class LossWeighting(ABC):
    """Weight of a masked token's cross-entropy."""

    @abstractmethod
    def weight(self, t: Tensor, p: Tensor, schedule: NoiseSchedule) -> Tensor:
        """``t`` time and ``p`` masking probability (after the floor), both [*] -> weights [*], >= 0."""


class MaskingRate(ABC):
    """At which times of the noise schedule documents are noised, as training goes on."""

    @abstractmethod
    def times(self, t: Tensor, progress: float, gen: Generator) -> Tensor:
        """``t`` f32 [n], uniform on [0, 1) -> times in [0, 1]; ``progress`` in [0, 1]: share of updates done."""


class Constraint(ABC):
    """Which codes may stand at which place of an audio span; the loss and decoding follow the same rule.

    Places count from 0 at the token behind the one that opens the span.  ``codebooks``: the ids [start, stop) of every code
    position of a frame (`Vocabulary.code_space`).  ``restricts``: False for the rule that allows everything.
    """

    restricts: ClassVar[bool] = True

    @abstractmethod
    def ranges(self, codebooks: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """The ranges of ids [start, stop) that places take their codes from."""

    @abstractmethod
    def range_at(self, places: Tensor, codebooks: Sequence[tuple[int, int]]) -> Tensor:
        """Number of the range each place takes its code from.  i64 [*] -> i64 [*]."""

    @abstractmethod
    def may_end(self, places: Tensor, codebooks: Sequence[tuple[int, int]]) -> Tensor:
        """May a span's end token stand at these places?  i64 [*] -> bool [*]; true at place 0."""

    def period(self, codebooks: Sequence[tuple[int, int]]) -> int:
        """Places that differ by it are alike; 0: no period (whole answers cannot be written then, only spans)."""
        return 0


class CodePattern(ABC):
    """In which order the codes [F, Q] of a span stand in a sequence: a grid [S, K], written row by row.

    Every column has ids of its own; column k holds codes of codebook k mod Q.  Cells without a code hold the empty code of
    their column (``has_empty``: there may be some).  Where a code stands does not depend on how many frames follow: the grid
    of fewer frames is that of more, later codes left out, up to the last row that holds a code.

    ``together``: the ids of a row stand at one position of the network, which reads the mean of their embeddings and predicts
    all of them at once, each among the ids of its column.
    """

    has_empty: bool = False
    together: bool = False

    def columns(self, codebooks: int) -> int:
        """K, a multiple of Q."""
        return codebooks

    @abstractmethod
    def index(self, frames: int, codebooks: int) -> np.ndarray:
        """Which code stands in each cell: f * Q + q, or -1 for none.  -> i64 [S, K]."""


class Strategy(ABC):  # noqa: B024  (every hook is optional)
    """A training strategy.  Fields of every strategy: ``p``, its probability, and what it applies to.

    Each hook draws from the generator it is handed and from nothing else; it is called anew every epoch and step.
    ``shapes_canvas``: it says what an example is (how far an answer is filled up), not which variants of it training sees;
    such a strategy acts by `on_stream` alone, and validation applies it too, with the same draws every time.
    """

    shapes_canvas: ClassVar[bool] = False

    def growth(self, stream: TokenStream) -> int:
        """By how many tokens `on_stream` may lengthen this example at most (batches keep room for them)."""
        return 0

    def limited(self, stream: TokenStream, room: int) -> Strategy:
        """This strategy for an example that may grow by ``room`` tokens only, less than `growth`; by default it does nothing."""
        return Strategy()

    def on_stream(self, stream: TokenStream, gen: np.random.Generator) -> TokenStream:
        """Change one example before packing (SST).  Must not change its input."""
        return stream

    def on_batch(self, batch: PackedBatch, gen: Generator) -> PackedBatch:
        """Change a whole training batch before it is noised (one random length for all rows).  Must not change its input."""
        return batch

    def on_maskable(self, batch: PackedBatch, maskable: Tensor, gen: Generator) -> Tensor:
        """Change which positions may be noised (PPM, BANOM).  bool [B, T] -> bool [B, T]."""
        return maskable


class Objective(ABC):
    """The one place that knows what is noised and which position predicts what.

    ``canvas``: what a model trained so can only write by diffusion, ``span`` or the whole ``answer`` or ``speech`` (see
    `SpanSampler`; ``canvases``: all of a sampler's that fit); a sampler for spans
    would let the latter's text be written left to right, which it never learned.  ``arch``: the class it trains.
    ``reads_pairs``: its batches are preference pairs (`ttt.types.PackedBatch.pairs`); others refuse them.
    """

    canvas: str = "span"
    arch: str = "causal_lm"
    reads_pairs: ClassVar[bool] = False

    @property
    def canvases(self) -> tuple[str, ...]:
        """Samplers' canvases that fit."""
        return ("span", "speech") if self.canvas == "span" else (self.canvas,)

    @abstractmethod
    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Noise the batch and list the loss terms with their counts.  Runs no network."""

    def clean_plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """The plan used for validation; by default the training plan with the generator's fixed draws.

        The batch went through the strategies that shape the canvas already, and through no other.
        """
        return self.plan(batch, gen)

    @abstractmethod
    def terms(self, model: Any, plan: Plan) -> LossTerms:
        """Run the network, bare or wrapped by a training engine (``model.module``), on a plan; -> sums and counts."""


class Network(Protocol):
    """What every part of the toolkit may ask of a network: a `torch.nn.Module` with these members.

    Its ``forward`` takes what its objectives give it.  The network of one architecture may have more members, declared in
    the protocols below.  Code that needs them asks for a network of that protocol (`ttt.api.open_model`), which refuses
    others with one line.  ``ttt check arch NAME`` tests all of it.
    """

    tokenizer: Any  # ttt.text.tokenizer.TextTokenizer
    training: bool

    @property
    def attention(self) -> str:
        """The attention implementation that masks are made for (`ttt.masks.materialize.IMPLEMENTATIONS`)."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def num_ids(self) -> int:
        """Number of token ids that logits cover; at least the size of the vocabulary."""

    @property
    def max_positions(self) -> int:
        """Most tokens of a sequence; 0: the network sets no limit."""

    def save(self, folder: str | Path) -> None:
        """Write weights, tokenizer and ``config.json`` with the architecture's block (`ttt.model.folder.KEY`)."""

    def prepare(self) -> None:
        """Get ready for decoding; results stay the same.  ``train()`` takes it back."""

    # Members of torch.nn.Module.
    def __call__(self, inputs: Any) -> Any: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...
    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...


class LanguageModel(Network, Protocol):
    """A network that reads one sequence of token ids, text and audio alike, and predicts ids at any position.

    Its ``forward`` takes `ttt.types.ModelInputs` and gives logits f32 [N, V], or -log p [N] of the targets.
    """

    def hidden(self, input_ids: Tensor, position_ids: Tensor, attention_mask: Any) -> Tensor:
        """Last hidden states [B, T, D] of ids and positions i64 [B, T]; the mask is made by `ttt.masks.materialize`.

        Ids may be [B, T, K]: several at a position (`ttt.types.ModelInputs`).
        """

    def hidden_of_rows(self, call: Any) -> Tensor:
        """Last hidden states [n, D] of the wanted tokens of a decoding call (`ttt.model.cache.PackedCall`)."""

    def head(self, hidden: Tensor, ids: slice | None = None) -> Tensor:
        """Logits f32 [..., V] of hidden states [..., D]; ``ids``: of these ids only."""

    def token_tables(self) -> Mapping[str, Tensor]:
        """The weights that belong to single ids, [V, D] each: ``embedding``, and ``head`` where it is not the same."""


class ShowsAttention(LanguageModel, Protocol):
    """A language model that gives its attention probabilities."""

    @property
    def num_layers(self) -> int:
        """Number of Transformer layers."""

    @property
    def num_heads(self) -> int:
        """Number of query heads of a layer."""

    def attention_map_bytes(self, positions: int) -> int:
        """Memory that `attention_maps` needs for a row of ``positions`` tokens."""

    def attention_maps(self, plan: Plan) -> list[Tensor]:
        """Attention probabilities of a plan of one row: for each layer f32 [H, T, T] on the CPU, rows sum to 1."""


class OwnSession(Network, Protocol):
    """A network that keeps a decoding state of its own; others are decoded by `ttt.sampling.decoder.session.Session`."""

    def session(self, mask: MaskRule, *, cache: str = "exact", room: int = 0, slots: int = 1) -> Any:
        """``slots`` empty rows, with the methods of `ttt.sampling.decoder.session.Session`."""


class Arch(ABC):
    """An architecture: which network a run trains.

    Fields: what decides its shape, beyond the keys that the section `model` has for all architectures.  Objectives and
    samplers name the architecture they work with (``arch``).  ``works_like``: they also work with this one if they work
    with the architecture of that name.  ``example``: keys of `model` for a small network, which ``ttt check arch`` starts.
    """

    works_like: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def start(
        self, section: Any, tokenizer: Any, seed: int, code_vectors: Any = None, weights: str | Path = ""
    ) -> Network:
        """The network a run starts with; ``section``: `ModelSection`; ``weights``: a folder to take them from (or none)."""

    @abstractmethod
    def open(self, folder: Path, attention: str, dtype: torch.dtype) -> Network:
        """The network that ``save`` wrote to ``folder``.  Raises `CheckpointError` for what is not one."""


class Initializer(ABC):
    """How rows that were added to the embedding are initialised."""

    @abstractmethod
    def initialize(self, rows: Tensor, ids: Tensor, context: Mapping[str, Any], gen: Generator) -> Tensor:
        """New values for ``rows`` f32 [n, D] of token ``ids`` i64 [n].

        ``context``: ``old`` f32 [V_old, D] the rows there were before, ``vocab`` the `Vocabulary`, ``std`` the model's
        initializer range, ``code_vectors`` f32 [Q, C, E] or None.
        """


class RemaskRule(ABC):
    """Which candidates are kept: the score by which a step's tokens are committed, highest first."""

    @abstractmethod
    def score(self, logits: Tensor, chosen: Tensor, gens: Sequence[Generator]) -> Tensor:
        """``logits`` f32 [R, m, V] before temperature, ``chosen`` i64 [R, m]; one generator per row -> f32 [R, m]."""


class LengthRule(ABC):
    """How long a span may be and how it ends."""

    @abstractmethod
    def exact_codes(self, last: bool) -> int | None:
        """Number of codes that a span must have (its end token is then forced), or None: until the end token.

        ``last`` says whether the span was opened as the answer's last one (quad span).
        """

    @abstractmethod
    def max_codes(self, last: bool) -> int:
        """A span is cut after this many codes."""


class SpanSampler(ABC):
    """Fills audio spans, or whole answers, of several rows at once.  It requests logits and never sees a model.

    ``span`` yields finished blocks (`ttt.sampling.samplers.steps.Block`); after the block that ends a row there is none of
    that row.  Logits come from ``request.predict(rows, tails, last)``, where ``tails`` i64 [R, m] are the tokens behind each
    row's context, mask tokens among them: f32 [R, last, ids] of their last positions.  Column c stands for the id
    c + ``request.first``.  Other rows wait while ``span`` works.  A sampler may instead have ``steps(request)``, which
    yields lists of `ttt.types.LogitsRequest` between its blocks and is sent their logits, so that other rows share its
    network calls (`ttt.sampling.samplers.steps`).

    ``canvas``: ``span`` (text opens spans, the sampler fills them), ``answer`` (the sampler writes everything after the
    prompt) or ``speech`` (the answer is one span, open from the start and over when it ends).  ``autoregressive`` samplers
    fill no spans: audio is written token by token like text.  ``arch``: the architecture it decodes; empty: any.
    ``fills_holes``: it keeps what a prompt knows of its answer (`ttt.types.Prompt.known`).
    """

    autoregressive: ClassVar[bool] = False
    arch: ClassVar[str] = ""
    fills_holes = False  # no field
    canvas: str = "span"

    @abstractmethod
    def span(self, request: Any) -> Iterator[Any]:
        """Fill one span per row; see `ttt.sampling.samplers.request.SpanRequest`."""


class StreamDecoder(ABC):
    """Turns codes into sound as they arrive; the concatenation equals the one-shot decode for linear codecs."""

    @abstractmethod
    def push(self, codes: np.ndarray) -> np.ndarray:
        """Take codes [F, Q], give the samples f32 [S] that are final by now (possibly none)."""

    @abstractmethod
    def finish(self) -> np.ndarray:
        """The samples still held back."""


class Codec(OnDevice, ABC):
    """Waveform <-> codes.  Fields are configuration and cheap; `load` brings the weights.

    After `load`: ``rate_hz`` (samples per second of the decoded sound), ``encode_rate_hz`` (of the recordings it takes; the
    same unless the codec says otherwise), ``frame_rate_hz`` (frames per second), ``num_codes`` (per codebook),
    ``num_codebooks``, ``codec_id`` (name and digest, stored beside every code).  ``exact_stream``: its
    stream gives the samples of the one-shot decode, not only as many (up to rounding); it may depend on the weights.

    A codec of one direction only refuses the other with a `ConfigError`, even for an empty list.
    """

    exact_stream: bool = False  # no field
    rate_hz: int
    frame_rate_hz: float
    num_codes: int
    num_codebooks: int
    codec_id: str

    @property
    def encode_rate_hz(self) -> int:
        """Samples per second of the recordings that `encode` takes; callers resample once, to this rate."""
        return self.rate_hz

    @property
    def code_rate_hz(self) -> float:
        """Codes per second: ``frame_rate_hz``, or 0 where runs of equal codes become one code and no such number exists.

        What cuts sound in seconds by counting codes asks for this and says so when it is 0.
        """
        return self.frame_rate_hz

    def duration_s(self, ids: np.ndarray) -> float:
        """Seconds that codes [F, Q] last when `decode` gets them without their durations."""
        return len(ids) / self.frame_rate_hz

    @abstractmethod
    def load(self, device: str = "cpu", dtype: str = "float32") -> Codec:
        """Bring the weights to ``device``, once; returns self.

        ``dtype``: of the network's layers.  Spectra, distances to codebook entries and arithmetic of codes stay float32, and so
        does ``codec_id``.  Raises `CheckpointError` naming the folder when the weights are not there, `ConfigError` for a type
        that the codec cannot compute in (one without weights ignores both arguments).
        """

    @abstractmethod
    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Codes of each recording; its rate must be ``encode_rate_hz``."""

    @abstractmethod
    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Sound of each code sequence."""

    @abstractmethod
    def open_stream(self) -> StreamDecoder:
        """A fresh stream of codes to sound; `ttt.audio.streaming.WindowStream` makes one of any `decode`."""

    def code_vectors(self) -> np.ndarray | None:
        """One vector per code, f32 [Q, num_codes, E], to initialise embeddings; None if the codec has none."""
        return None


class TrainableCodec(Codec):
    """A codec that learns from waveforms and saves itself to a folder."""

    @abstractmethod
    def fit(self, waves: Sequence[Waveform], seed: int) -> Mapping[str, float]:
        """Learn; returns what was measured on the way (losses, use of codes)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write ``codec.safetensors`` + ``codec.json``, complete or not at all."""


class Task(ABC):
    """What an item asks for, how it is judged, and how a corpus item becomes an example.

    ``reads_text``: its items need the words of their utterances (``text_in``, ``text_out``).  ``speech_is_optional``: in a
    run without codec or judge, the metrics that need them are left out, with a line; other tasks cannot be scored then.
    ``codec_is_optional``: the same without a codec alone.  ``reads_voice``: its items name another recording of the same
    speaker (``voice``) and what it says (``voice_text``), where the speaker has one.
    """

    reads_text: ClassVar[bool] = True
    speech_is_optional: ClassVar[bool] = False
    codec_is_optional: ClassVar[bool] = False
    reads_voice: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """What results are reported under; `Example.task` holds it."""
        return getattr(type(self), "registered_name", type(self).__name__)

    def at_rate(self, frame_rate_hz: float) -> Task:
        """The task for codes of so many frames a second; by default itself.  `build` is called on what this gives."""
        return self

    def with_tokenizer(self, tokenizer: Any) -> Task:
        """The task for texts of a `ttt.text.tokenizer.TextTokenizer`; by default itself.  `build` is called on what this gives."""
        return self

    @abstractmethod
    def build(self, item: Mapping[str, Any], codes: Mapping[str, np.ndarray]) -> Example:
        """One training or test example from a corpus item; ``codes`` maps utterance ids to i32 [F, Q]."""

    def with_reference(self, example: Example) -> Example:
        """An example as a file holds it, with what metrics compare with in ``meta``; by default as it is."""
        return example

    @abstractmethod
    def prompt(self, example: Example) -> Example:
        """The example without its answer: what the model is given."""

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, str]:
        """Metric names to report -> registered metric, e.g. ``{"wer": "wer", "judged_wer": "judged_wer"}``."""


class Metric(ABC):
    """A score with sufficient statistics per item, so that intervals come from resampling items."""

    needs_audio: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = False

    def load(self) -> None:
        """Open what it computes with, before any answer is heard; most need nothing.  Errors: as of `Codec.load`."""
        return None

    @abstractmethod
    def item(self, scored: Mapping[str, Any]) -> np.ndarray | None:
        """Sufficient statistics f64 [k] of one item (its keys: `ttt.eval.metrics`); None: does not apply."""

    @abstractmethod
    def total(self, statistics: np.ndarray) -> float:
        """The score of summed statistics f64 [k]."""


class Judge(OnDevice, ABC):
    """An independent recogniser.  Its ``judge_id`` (name and version) is part of the metric's name."""

    judge_id: str

    @abstractmethod
    def load(self, device: str = "cpu", dtype: str = "float32") -> Judge:
        """Bring the weights to ``device``, the network's in ``dtype``; returns self.  Errors: as of `Codec.load`."""

    @abstractmethod
    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        """One transcript per waveform."""


class SpeakerEncoder(OnDevice, ABC):
    """Who speaks, as a vector.  Its ``speaker_id`` (name and version) is part of the names of metrics that rest on it."""

    speaker_id: str

    @abstractmethod
    def load(self, device: str = "cpu", dtype: str = "float32") -> SpeakerEncoder:
        """Bring the weights to ``device``, the network's in ``dtype``; returns self.  Errors: as of `Codec.load`."""

    @abstractmethod
    def embed(self, waves: Sequence[Waveform]) -> np.ndarray:
        """One vector of length 1 per waveform, f32 [n, E]."""


class Normalizer(ABC):
    """How text is normalised before words are compared; named in every metric."""

    @abstractmethod
    def normalize(self, text: str) -> str:
        """The text as its words are compared."""

    def characters(self, text: str) -> str:
        """The text as its characters are compared (CER); a blank is a character like any other.

        The same as `normalize`, unless that puts in blanks of its own.
        """
        return self.normalize(text)


class OptimizerSpec(ABC):
    """Which optimiser, with the settings that it has alone; what all have (lr, betas, eps, ...) stands in ``train``.

    ``elementwise``: no number moves by what other numbers do, so that ZeRO may hand out flat pieces of parameters.
    ``clips``: it limits gradients by a rule of its own, and ``train.clip_norm`` is left out.  ``beta1_may_move``: its groups'
    ``betas`` may change from step to step (``train.final_beta1``).
    """

    elementwise: ClassVar[bool] = False
    clips: ClassVar[bool] = False
    beta1_may_move: ClassVar[bool] = False

    @abstractmethod
    def build(self, model: torch.nn.Module, train: Any) -> torch.optim.Optimizer:
        """The optimiser over the trainable parameters of ``model``; ``train``: the section of the configuration.

        Its state lies in tensors by parameter (checkpoints hold ``optimizer.state`` by parameter name); ``lr`` of every group
        is set before each step.
        """


@dataclass(frozen=True)
class ScheduleState:
    """When an update happens: its number (from 0), whole epochs done, and the share of the decay that is over, 0 to 1."""

    update: int
    epoch: int
    decayed: float
    warmup_steps: int


class LrSchedule(ABC):
    """The learning rate as a pure function of progress: ``train.lr`` x `warmup` x `decay`, the latter above its floor."""

    def warmup(self, at: ScheduleState) -> float:
        """Linear over ``at.warmup_steps`` updates, 1 afterwards."""
        return min(1.0, (at.update + 1) / at.warmup_steps) if at.warmup_steps else 1.0

    @abstractmethod
    def decay(self, at: ScheduleState) -> float:
        """Factor >= 0; ``at.decayed`` goes from 0 (end of the warm-up, or ``train.decay_start``) to 1 (end of the run)."""


class Converter(ABC):
    """Reads a foreign data format row by row; nothing of it is kept in memory.

    ``makes``: ``examples`` (`convert` gives records in the form of `ttt.data.read.examples.example_to_json`, whose audio spans may
    still be sound files: ``{"wav": path, "style": ...}``) or ``utterances`` (it gives `ttt.data.convert.core.Speech`).
    """

    makes: ClassVar[str] = "examples"

    @abstractmethod
    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """(place, raw row) of a file or folder, in order.  Raises `DataError` when it cannot be read at all."""

    @abstractmethod
    def convert(self, where: str, row: Any) -> Any:
        """One row.  Raises `ttt.data.read.records.RecordError` naming ``where``, the reason and the mend."""

    @abstractmethod
    def sample(self, folder: Path) -> Path:
        """Write a tiny valid input into an empty folder and name it: documentation, and what `ttt check` reads."""
