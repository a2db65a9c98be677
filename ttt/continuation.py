"""What a trained model plays or says after recordings, or in a hole in them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ttt.audio.signal import resample
from ttt.audio.wav import read, write
from ttt.errors import ConfigError, DataError
from ttt.io.names import read_index, write_index
from ttt.tasks.continuation import Continuation
from ttt.types import AudioCodes, Example, Prompt, Span, Turn, Waveform

if TYPE_CHECKING:
    from ttt.api import Model

log = logging.getLogger(__name__)


def continue_files(
    model: Model, paths: Sequence[Path], targets: Sequence[tuple[Path, Path]], hole: tuple[float, float] | None = None,
    prompt_s: float = 0.0, longest_s: float = 0.0, text: str = "", voice: Sequence[float] = (),
) -> int:  # fmt: skip
    """Continue every file; write what was made, and the prompt and it in one piece, to its two ``targets``.

    ``hole``: write these seconds anew instead, hearing both sides.  ``prompt_s``: hear only so much of each file (0: all);
    ``longest_s``: go on for so long at most (0: as configured).  ``text``: what is said in each file and after it.
    ``voice``: the vector of who speaks.
    -> how many files the model had nothing to add to.
    """
    codec = model.codec
    assert codec is not None, "see check_model"
    if not codec.code_rate_hz and (hole or longest_s):
        raise ConfigError(
            f"codec {codec.codec_id!r} removes runs of equal codes, so seconds are no number of codes: leave out "
            "--hole and --seconds, or use a model of codes with their runs (codec.dedup=false)"
        )
    if 0 < prompt_s * codec.frame_rate_hz < 1:
        raise ConfigError(
            f"--prompt-seconds: {prompt_s:g} s are less than a frame of the codec ({1 / codec.frame_rate_hz:g} s)"
        )
    if longest_s:
        model = limited(model, longest_s, codec.frame_rate_hz)
    waves: list[Waveform] = []
    for path in paths:
        wave = read(path, mono=True)
        if prompt_s:
            wave = Waveform(wave.samples[: int(prompt_s * wave.rate_hz)], wave.rate_hz)
        waves.append(resample(wave, codec.encode_rate_hz))
    codes = codec.encode(waves)
    prompts = [prompt_of(model, p, c, hole, text, voice) for p, c in zip(paths, codes, strict=True)]
    for path, prompt in zip(paths, prompts, strict=True):
        if len(prompt.ids) > model.config.data.row_tokens:
            log.warning(
                "continue: %s: %d codes to hear, and training had at most %d in a row (data.row_tokens); "
                "--prompt-seconds hears less",
                path,
                len(prompt.ids),
                model.config.data.row_tokens,
            )
    made = model.decoder().generate(prompts, batch_size=model.config.eval.batch_size)
    out = targets[0][0].parent
    make_folder(out)
    names = {alone.name.removesuffix("_continuation.wav"): path.name for path, (alone, _) in zip(paths, targets, strict=True)}
    write_index(out, {**read_index(out), **names})
    silent = 0
    for path, heard, answer, (alone, whole) in zip(paths, codes, made, targets, strict=True):
        if not len(answer.codes):
            log.warning(
                "continue: %s: the model stopped at once, nothing is written; a sampler's min_frames forbids it", path
            )
            silent += 1
            continue
        start = round(hole[0] * codec.frame_rate_hz) if hole else len(heard.ids)
        length = round(hole[1] * codec.frame_rate_hz) - start if hole else len(answer.codes)
        parts = (answer.codes[:length], np.concatenate([heard.ids[:start], answer.codes]))
        sounds = codec.decode([AudioCodes(c.astype(np.int32), codec.frame_rate_hz, codec.codec_id) for c in parts])
        for target, sound in zip((alone, whole), sounds, strict=True):
            write(target, sound)
        log.info(
            "continue: %s: %.2f s heard, %.2f s made (%s), %s -> %s",
            path.name,
            heard.duration_s,
            codec.duration_s(parts[0]),
            answer.stopped,
            ", ".join(f"{n} {k} calls" for k, n in answer.calls.items()),
            alone,
        )
    return silent


def make_folder(out: Path) -> None:
    """Make the folder of the results.  Raises `DataError` when that is not possible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out: {out}: cannot be made ({error.strerror}); name another folder") from error


def check_model(model: Model, run: str, text: str = "", voice: Sequence[float] = ()) -> None:
    """Raise `ConfigError` for a run that cannot go on where sound ends, or not with ``text`` or ``voice`` or without them."""
    if model.codec is None:
        raise ConfigError("codec: missing; sound files need one")
    if not any(isinstance(task, Continuation) for task in model.config.tasks):
        learnt = ", ".join(model.tasks) or "none"
        raise ConfigError(
            f"{run}: was not trained to go on (its tasks: {learnt}; needed: continuation); "
            "'ttt chat' and 'ttt stream' ask such a model"
        )
    reads_text = any(task.reads_text for task in model.config.tasks if isinstance(task, Continuation))
    if text and not reads_text:
        raise ConfigError(f"--text: {run} was trained without text; leave it out")
    if reads_text and not text:
        raise ConfigError(f"{run}: speaks a text; say the words of the sound file, then those to speak, with --text")
    size = getattr(model.config.model.arch, "voice_dim", 0)
    if voice and not size:
        raise ConfigError(f"--voice-vector: {run} reads no vector (model.arch.voice_dim=0); leave it out")
    if len(voice) != size:
        raise ConfigError(
            f"--voice-vector: {run} reads a vector of {size} numbers (model.arch.voice_dim), got {len(voice) or 'none'}; name a "
            "JSON file with a list of as many"
        )


def limited(model: Model, seconds: float, frame_rate_hz: float) -> Model:
    """The model with decoding limits of ``seconds``."""
    frames = max(1, round(seconds * frame_rate_hz))
    e = model.config.eval
    tokens = model.tokenizer.vocab.places(frames) + 1
    sampler = e.sampler
    if "max_frames" in {f.name for f in dataclasses.fields(sampler)}:
        sampler = dataclasses.replace(sampler, max_frames=frames, min_frames=min(sampler.min_frames, frames))
    section = dataclasses.replace(e, sampler=sampler, max_tokens=tokens)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, eval=section))


def prompt_of(
    model: Model, path: Path, heard: AudioCodes, hole: tuple[float, float] | None, text: str = "", voice: Sequence[float] = ()
) -> Prompt:
    """What the decoder gets: text and codes as a user's turn, and with a hole what is known behind it."""
    ids = heard.ids
    start, stop = len(ids), len(ids)
    if hole is not None:
        start, stop = (round(t * heard.frame_rate_hz) for t in hole)
        if stop > len(ids):
            raise DataError(f"{path}: is {heard.duration_s:.2f} s long; --hole {hole[0]}:{hole[1]} does not lie inside")
        if not 0 < start < stop:
            raise DataError(
                f"{path}: --hole {hole[0]}:{hole[1]} holds no whole frame, or none is before it; a frame has "
                f"{1 / heard.frame_rate_hz:g} s"
            )
    words = (Span("text", text),) if text else ()
    user = Turn("user", (*words, Span("audio", codes=ids[:start], style="user")))
    meta = {"voice_vector": voice} if len(voice) else {}
    prompt = model.prompt(Example(path.stem, (user,), "", meta), uid=path.stem)
    if hole is None:
        return prompt
    vocab = model.tokenizer.vocab
    open_ = [vocab.mask_id] * ((stop - start) * vocab.num_codebooks)
    return dataclasses.replace(prompt, known=[*open_, *vocab.code_ids(ids[stop:], str(path)).tolist()])
