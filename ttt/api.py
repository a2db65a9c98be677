"""Trained models in Python: load a run, ask it, listen while it answers.

>>> import ttt
>>> model = ttt.load("exp/ttt")  # doctest: +SKIP
>>> model.generate("what is the capital of france", task="qa").text  # doctest: +SKIP
'paris'

Imports nothing heavy until something is loaded.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from ttt.audio.loading import load_part
from ttt.config.load import load_config
from ttt.config.schema import RunConfig, Weights
from ttt.errors import ConfigError, DataError, suggest
from ttt.interfaces import Codec, LanguageModel, Network, ShowsAttention, Task
from ttt.io import devices
from ttt.io.pretrained import own_code
from ttt.registry import name_of
from ttt.registry.trust import trusting
from ttt.types import AudioCodes, Example, Generation, Prompt, Span, Turn, Waveform

if TYPE_CHECKING:
    from ttt.sampling.decoder.decoder import Decoder
    from ttt.sampling.decoder.stream import StreamEvent
    from ttt.sampling.trace.record import TraceRecord
    from ttt.text.tokenizer import TextTokenizer

    # A question: text (audio may be spelled in it, and it may be a whole ChatML prompt), speech, its codes [F, Q], a wav
    # file, a conversation, or an example whose own answer is left out.
    Question = str | Waveform | np.ndarray | Path | Sequence[Turn] | Example

log = logging.getLogger(__name__)

N = TypeVar("N", bound=Network)
# What a network cannot do that is not of a protocol, as messages say it.
_LACKS: dict[type, str] = {
    Network: "lacks members of ttt.interfaces.Network", LanguageModel: "writes no text",
    ShowsAttention: "shows no attention maps",
}  # fmt: skip
_DEPTH = 3  # run/checkpoints/step-N/model lies three folders below its run


def load(
    place: str | Path, *settings: str, config: str | Path | Sequence[str | Path] = (), plugins: Sequence[str] = (),
    sound: bool = True, trust: bool = False,
) -> Model:  # fmt: skip
    """A trained model, ready to answer.

    ``place``: a run folder (its latest complete checkpoint is taken), a checkpoint, or a model folder.  The run's own
    ``config.yaml`` says how it answers; ``config`` files and ``settings`` like ``"eval.temperature=0.7"`` or
    ``"run.device=cuda"`` win over it.  ``sound=False`` leaves the codec alone.  ``trust=True`` runs plug-ins that only the
    run's own configuration names (`ttt.registry.trust`).  Raises `ConfigError`, `DataError` or
    `CheckpointError` naming what is missing.
    """
    files = [config] if isinstance(config, (str, Path)) else list(config)
    with trusting(trust):
        read = open_run(place, settings, files, plugins)
    lm = open_model(*read)
    return Model(read[0], lm, open_codec(read[0], lm.tokenizer) if sound else None)


@dataclass(frozen=True)
class Answer:
    """What a model answered.  ``sound``: the codec's one-shot sound of all codes; None without codes or codec.

    ``trace``: every step of decoding, if asked for.
    """

    generation: Generation
    sound: Waveform | None = None
    trace: TraceRecord | None = None

    @property
    def text(self) -> str:
        """All text, as it was written."""
        return self.generation.text

    def save(self, path: str | Path) -> None:
        """Write the sound as a wav.  Raises `DataError` when there is none."""
        from ttt.audio.wav import write

        if self.sound is None:
            raise DataError(f"{path}: answer {self.generation.uid!r} has no sound to write")
        write(path, self.sound)


@dataclass
class Model:
    """A model that answers questions.  Change how it answers by loading it with other settings.

    A question's ``task`` (a name of ``config.tasks``) brings the system message that the task was trained with; ``system``
    is one of your own.  ``uid`` names the draws of a sampling decoder: the same question under the same uid and
    ``run.seed`` is answered alike, alone or in a batch.
    """

    config: RunConfig
    lm: Network
    codec: Codec | None = None
    _asked: int = field(default=0, repr=False)

    def decoder(self) -> Decoder:
        """A new decoder of token ids (`ttt.sampling.decoder.decoder`): one for every answer, because it counts its calls."""
        from ttt.sampling.decoder.decoder import Decoder

        mask = getattr(self.config.objective, "mask", None)
        if mask is None:
            raise ConfigError(
                f"objective: {name_of(self.config.objective)!r} has no mask rule to decode with"
            )
        return Decoder(self.lm, mask, self.config.eval.sampler, decode_settings(self.config))

    @property
    def tokenizer(self) -> TextTokenizer:
        """Text <-> ids, and the vocabulary."""
        return self.lm.tokenizer

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The run's tasks by label."""
        return {task.label: task for task in self.config.tasks}

    def generate(
        self, question: Question, task: str = "", system: str = "", uid: str = "", trace: bool = False, answer: str = ""
    ) -> Answer:
        """The whole answer to one question; ``answer``: as far as it is given (`generate_batch`)."""
        return self.generate_batch([question], task, system, [uid] if uid else None, trace, [answer])[0]

    def generate_batch(
        self, questions: Sequence[Question], task: str = "", system: str = "", uids: Sequence[str] | None = None,
        trace: bool = False, answers: Sequence[str] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """Answers to several questions, at most ``eval.batch_size`` of them in work at a time.

        ``answers``: what is given of each, with holes ``[MASK:n]`` of n tokens (`ttt.data.read.holes`); empty: nothing is.
        """
        from ttt.sampling.trace.record import Tracer

        names: Sequence[str] = uids if uids is not None else [""] * len(questions)
        given: Sequence[str] = answers if answers is not None else [""] * len(questions)
        prompts = [self.prompt(q, task, system, u, a) for q, u, a in zip(questions, names, given, strict=True)]
        tracer = Tracer() if trace else None
        made = self.decoder().generate(prompts, tracer, self.config.eval.batch_size)
        return [Answer(g, self._sound(g), tracer.records[g.uid] if tracer else None) for g in made]

    def stream(
        self, question: Question, task: str = "", system: str = "", uid: str = "",
        chunk_frames: Sequence[int] | None = None, sound: bool = True,
    ) -> Iterator[StreamEvent]:  # fmt: skip
        """The answer as it comes: text, audio blocks and their sound, then the end; see `ttt.sampling.decoder.stream.StreamEvent`.

        ``chunk_frames``: codes of the first, second, ... piece of sound (default 25, 50, 100, 150, 200).  Leaving the loop
        early stops decoding.  Raises `ConfigError` when there is no codec for the sound; ``sound=False`` does without.
        """
        from ttt.audio.streaming import CHUNK_FRAMES
        from ttt.sampling.decoder.stream import stream

        if sound and self.codec is None:
            raise ConfigError(
                "stream: there is no codec to make sound with; configure codec=, or stream(..., sound=False)"
            )
        sizes = CHUNK_FRAMES if chunk_frames is None else chunk_frames
        return stream(self.decoder(), [self.prompt(question, task, system, uid)], self.codec if sound else None, sizes)

    def logits(self, ids: Any, attentions: bool = False) -> Any:
        """Logits f32 [T, V] of a row of ids [T] as it stands, mask tokens included, under the run's attention mask; all of it
        counts as prompt.  Rows [B, T] give [B, T, V].

        With ``attentions`` also the attention probabilities [L, H, T, T] (queries, keys) of every layer and head; load the
        run with ``model.attention=eager`` for them.  Returns NumPy arrays.
        """
        import numpy as np

        from ttt.objective.row_logits import row_logits

        rows = np.asarray(ids, dtype=np.int64)
        found = [row_logits(self.lm, self.decoder().mask, row, attentions) for row in np.atleast_2d(rows)]
        logits, maps = zip(*found, strict=True)
        parts = (logits, maps) if attentions else (logits,)
        out = [np.stack(part) if rows.ndim == 2 else part[0] for part in parts]
        return tuple(out) if attentions else out[0]

    def prompt(
        self, question: Question, task: str = "", system: str = "", uid: str = "", answer: str = ""
    ) -> Prompt:
        """The question as the model reads it; ``answer``: see `generate_batch`."""
        from ttt.data.read.holes import has_holes, prompt_with_holes

        self._asked += not uid and not isinstance(question, Example)
        asked = self._example(question, task, system, uid or f"question/{self._asked}")
        whole = question if isinstance(question, Example) else asked
        if answer:
            whole = dataclasses.replace(asked, turns=(*asked.turns, Turn("assistant", (Span("text", answer),))))
            if not has_holes(whole):
                raise DataError("answer: has no hole to fill; write one as [MASK:n], n being the number of its tokens")
        return prompt_with_holes(whole, asked, self.tokenizer, uid)

    def _example(self, question: Question, task: str, system: str, uid: str) -> Example:
        from ttt.data.read.examples import prompt_turns
        from ttt.tasks.records import by_label

        if isinstance(question, Example):
            if task or system:
                raise ConfigError(
                    f"example {question.uid!r} has its own task and system message; leave task and system empty"
                )
            known = by_label(self.config.tasks)
            if question.task in known:
                return known[question.task].prompt(question)
            cut = question.turns[-1].role == "assistant"
            return Example(question.uid, question.turns[:-1] if cut else question.turns, question.task, question.meta)
        if task:
            if task not in self.tasks:
                raise ConfigError(f"task {task!r}: the run has none of this name.{suggest(task, self.tasks)} "
                                  f"Tasks: {', '.join(self.tasks)}")  # fmt: skip
            system = system or getattr(self.tasks[task], "system", "")
        first = (Turn("system", (Span("text", system),)),)
        if isinstance(question, (Path, Waveform, np.ndarray)):
            return Example(uid, (*first, Turn("user", (self._user_span(question),))), task)
        turns = prompt_turns(question, "the question") if isinstance(question, str) else tuple(question)
        if not all(isinstance(turn, Turn) for turn in turns):
            raise DataError(f"the question: expected text, a Path of a sound file, a Waveform, a numpy array of codes or turns, "
                            f"got {type(question).__name__}")  # fmt: skip
        if not turns or turns[-1].role != "user":
            raise DataError("a conversation to answer ends with a turn of the user's")
        if turns[0].role == "system":
            if system:
                raise ConfigError("the conversation has its own system message; leave task and system empty")
            return Example(uid, turns, task)
        return Example(uid, (*first, *turns), task)

    def _user_span(self, question: Path | Waveform | np.ndarray) -> Span:
        from ttt.audio.signal import resample
        from ttt.audio.wav import read

        if isinstance(question, np.ndarray):
            q = self.tokenizer.vocab.num_codebooks
            if question.ndim != 2 or question.shape[1] != q or question.dtype.kind not in "iu" or not len(question):
                raise DataError(
                    f"the question: codes are whole numbers [frames, {q}] of one frame or more, got {question.dtype} "
                    f"{list(question.shape)}"
                )
            return Span("audio", codes=question.astype(np.int32), style="user")
        if self.codec is None:
            raise ConfigError("a spoken question needs a codec to encode it; configure codec=")
        wave = read(question, mono=True) if isinstance(question, Path) else question
        (codes,) = self.codec.encode([resample(wave, self.codec.encode_rate_hz)])
        return Span("audio", codes=codes.ids, style="user")

    def _sound(self, made: Generation) -> Waveform | None:
        if self.codec is None or not len(made.codes):
            return None
        return self.codec.decode([AudioCodes(made.codes, self.codec.frame_rate_hz, self.codec.codec_id)])[0]


# -- from a folder to its parts, also for the command line


def open_run(
    place: str | Path, settings: Sequence[str] = (), config: Sequence[str | Path] = (), plugins: Sequence[str] = ()
) -> tuple[RunConfig, Path]:
    """(configuration, model folder) of a run, a checkpoint, or a model folder together with ``config`` files.

    The run's ``config.yaml`` comes first, then ``config``, then ``settings``.  Raises `DataError` for a place without
    weights, `ConfigError` when nothing says how the model was trained.
    """
    place = Path(place)
    if not place.is_dir():
        raise DataError(f"{place}: no such folder; name a run (run.dir of 'ttt train'), a checkpoint or a model folder")
    run = next((f for f in (place, *place.resolve().parents[:_DEPTH]) if (f / "config.yaml").is_file()), None)
    if run is None and not config:
        raise ConfigError(
            f"{place}: no config.yaml here or above, so nothing says how this model was trained; give its recipe as config"
        )
    stored = [run / "config.yaml"] if run else []
    read = load_config([*stored, *config], settings, plugins, stored=stored)
    asked = any(item.startswith("eval.checkpoint=") for item in settings)
    folder = model_folder(read.eval.checkpoint if asked else place, read.eval.weights)
    if read.run.threads:
        import torch

        torch.set_num_threads(read.run.threads)
    return read, folder


@overload
def open_model(config: RunConfig, folder: Path) -> Network: ...


@overload
def open_model(
    config: RunConfig, folder: Path, needs: type[N], *, instead: str = "", attention: str = ""
) -> N: ...


def open_model(
    config: RunConfig, folder: Path, needs: type = Network, *, instead: str = "", attention: str = ""
) -> Any:
    """The network of a model folder, of any architecture, with weights of ``model.dtype``, on ``run.device``, in evaluation mode.

    ``needs``: the protocol of `ttt.interfaces` that the caller uses; raises `ConfigError` with one line for a network that
    is not one (``instead``: what to do then).  ``attention``: an implementation other than ``model.attention``.
    """
    from ttt.model.arch import missing_members, open_network
    from ttt.model.backbone import weight_type
    from ttt.model.folder import stored_arch
    from ttt.model.reading import refuse_other_reading

    # FlexAttention cannot decode.
    usual = "sdpa" if config.model.attention == "flex_attention" else config.model.attention
    with own_code(config.model.trust_remote_code):
        network = open_network(folder, attention or usual, weight_type(config.model))
    if hasattr(network, "transformers_model") and hasattr(config.objective, "mask"):
        alignment = getattr(config.objective, "logit_alignment", "same")
        refuse_other_reading(folder, network.transformers_model.config, name_of(config.objective.mask), alignment)
    if missing_members(network, needs):
        name = dict(stored_arch(folder) or {"name": "causal_lm"})["name"]
        raise ConfigError(f"{folder}: architecture {name!r} {_LACKS[needs]}" + (f"; {instead}" if instead else ""))
    return network.to(pick_device(config))


def start_model(config: RunConfig, tokenizer: TextTokenizer, codec: Codec | None = None) -> Network:
    """The network a run starts with: of ``train.init_from``, else of ``model``; ``codec``: loaded, or None."""
    from ttt.model.reading import note_attention
    from ttt.train.checkpoint import check_model_folder

    if config.train.init_from:
        start = model_folder(config.train.init_from)
        check_model_folder(start, tokenizer.vocab.digest)
        with own_code(config.model.trust_remote_code):
            network = config.model.arch.start(config.model, tokenizer, config.run.seed, weights=start)
    else:
        vectors = codec.code_vectors() if codec is not None else None
        network = config.model.arch.start(config.model, tokenizer, config.run.seed, vectors)
    if hasattr(network, "transformers_model") and hasattr(config.objective, "mask"):
        alignment = getattr(config.objective, "logit_alignment", "same")
        note_attention(network.transformers_model.config, name_of(config.objective.mask), alignment)
    return network


def with_reference(config: RunConfig, tokenizer: TextTokenizer) -> RunConfig:
    """The configuration with the model folder of ``objective.reference``, where an objective has one; checked here.

    Raises `ConfigError` when none is named, `CheckpointError` for weights of another vocabulary.
    """
    from ttt.train.checkpoint import check_model_folder

    reference = getattr(config.objective, "reference", None)
    if not config.objective.reads_pairs or reference in (None, "none"):
        return config
    if not reference:
        raise ConfigError(
            "objective.reference: name the frozen model that the policy is compared with, in most cases the run "
            "that train.init_from names ('none': no reference)"
        )
    folder = model_folder(reference)
    check_model_folder(folder, tokenizer.vocab.digest)
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, reference=str(folder)))


def open_codec(config: RunConfig, tokenizer: TextTokenizer) -> Codec | None:
    """The run's codec, ready; None if it has none.  Raises `ConfigError` when its codes are not the model's."""
    from ttt.sampling.decoder.stream import check_codec

    codec = load_part(config, "codec")
    if codec is not None:
        check_codec(codec, tokenizer)
    return codec


def model_folder(path: str | Path, weights: Weights = "raw") -> Path:
    """The folder with ``weights`` of a run or a checkpoint; a folder that holds a model itself is taken as it is."""
    from ttt.train.checkpoint import latest_complete

    path = Path(path)
    if (path / "config.json").is_file():
        return path
    found = path if (path / "model" / "config.json").is_file() else latest_complete(path / "checkpoints")
    if found is None:
        raise DataError(
            f"{path}: no complete checkpoint here; train first, or name a model folder with eval.checkpoint="
        )
    folder = found / ("model_ema" if weights == "ema" else "model")
    if not folder.is_dir():
        raise DataError(f"{found}: no averaged weights (model_ema) here; train with train.ema, or set eval.weights=raw")
    return folder


def pick_device(config: RunConfig) -> str:
    """``run.device``, with "auto" resolved."""
    return devices.pick_device(config.run.device)


def decode_settings(config: RunConfig) -> Any:
    """`DecodeSettings` of the configuration.  Raises `ConfigError` for a sampler that cannot write what was learned."""
    from ttt.model.arch import check_arch
    from ttt.sampling.decoder.decoder import DecodeSettings

    e = config.eval
    learnt = config.objective.canvases
    if config.objective.canvas != "span" and e.sampler.canvas not in learnt:
        what = "whole answers, text included" if "answer" in learnt else "the codes of answers that are speech alone"
        raise ConfigError(
            f"eval.sampler.canvas: objective {name_of(config.objective)!r} diffuses {what}; choose a sampler with "
            f"this field (not 'ar') and set eval.sampler.canvas={' or '.join(learnt)}"
        )
    if e.sampler.canvas == "speech" and not getattr(config.objective, "learns_ends", True) and e.length.exact_codes(True) is None:
        raise ConfigError(
            "eval.length: objective.ends=keep never teaches where speech ends; say how long it is with "
            "eval.length='{name: fixed, last_codes: N}', or train with objective.ends=learn"
        )
    check_arch(config.model.arch, e.sampler.arch, f"eval.sampler {name_of(e.sampler)!r}")
    if e.strict and e.temperature == 0 and (e.top_k > 0 or e.top_p < 1):
        log.warning("eval.top_k, eval.top_p: without effect at eval.temperature=0 (greedy); set eval.temperature=1 to draw text")
    return DecodeSettings(
        max_tokens=e.max_tokens, temperature=e.temperature, top_k=e.top_k, top_p=e.top_p,
        min_text_tokens_after_audio=e.min_text_tokens_after_audio, strict=e.strict, cache=e.cache,
        seed=config.run.seed, length=e.length, speak=e.speak,
        constraint=e.constraint or getattr(config.objective, "constraint", None), batch_tokens=e.batch_tokens,
        logit_alignment=getattr(config.objective, "logit_alignment", "same"),
    )  # fmt: skip
