"""Continue sound files, or fill a hole in them, by a model trained to.

Writes NAME_continuation.wav (what was made) and NAME_full.wav (the prompt and it in one piece) for every file.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.cli.common import add_common
from ttt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ttt.api import Model
    from ttt.types import AudioCodes

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recordings, by which model, how far."""
    parser.set_defaults(overrides=[])  # settings may stand among the files and behind the options
    sounds = "sound files (and section.key=value settings over the run's own)"
    parser.add_argument("sounds", nargs="+", metavar="WAV", help=sounds)
    run_help = "run folder; or a checkpoint or model folder (with --config)"
    parser.add_argument("--run", required=True, metavar="DIR", help=run_help)
    parser.add_argument("--out", default="", metavar="DIR", help="where sound goes (default: RUN/continuations)")
    parser.add_argument(
        "--prompt-seconds", type=float, default=0.0, metavar="S", help="hear only the first S seconds of each file"
    )
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="go on for S seconds at most")
    parser.add_argument(
        "--hole", default="", metavar="A:B", help="write seconds A to B anew, hearing both sides (nar=masked_all)"
    )
    add_common(
        parser, "plugins", config="recipe YAML over the run's own settings", overwrite="replace files of earlier calls"
    )


def run(arguments: argparse.Namespace) -> int:
    """Continue every file and write the sounds.  Exit code 1 when the model stopped at once on all of them."""
    settings = [s for s in arguments.sounds if "=" in s and not Path(s).is_file()]
    paths = [Path(s) for s in arguments.sounds if s not in settings]
    settings += arguments.overrides
    for option in ("seconds", "prompt_seconds"):
        if not 0 <= getattr(arguments, option) < float("inf"):
            raise ConfigError(f"--{option.replace('_', '-')}: must be a time > 0, got {getattr(arguments, option):g}")
    out = Path(arguments.out) if arguments.out else Path(arguments.run) / "continuations"
    targets = _targets(paths, out, arguments.overwrite)
    hole = _hole(arguments.hole, arguments)
    standing = next(p for p in (out, *out.parents) if p.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise DataError(f"--out: {standing}: is no folder that may be written to; name another")
    import numpy as np

    import ttt
    from ttt.audio.signal import resample
    from ttt.audio.wav import read, write
    from ttt.types import AudioCodes, Waveform

    model = ttt.load(arguments.run, *settings, config=arguments.config, plugins=arguments.plugins)
    codec = model.codec
    _check_run(model, arguments.run)
    assert codec is not None
    if 0 < arguments.prompt_seconds * codec.frame_rate_hz < 1:
        raise ConfigError(
            f"--prompt-seconds: {arguments.prompt_seconds:g} s are less than a frame of the codec "
            f"({1 / codec.frame_rate_hz:g} s)"
        )
    if arguments.seconds:
        model = _as_long(model, arguments.seconds, codec.frame_rate_hz)
    waves: list[Waveform] = []
    for path in paths:
        wave = read(path, mono=True)
        if arguments.prompt_seconds:
            wave = Waveform(wave.samples[: int(arguments.prompt_seconds * wave.rate_hz)], wave.rate_hz)
        waves.append(resample(wave, codec.rate_hz))
    codes = codec.encode(waves)
    prompts = [_prompt(model, p, c, hole) for p, c in zip(paths, codes, strict=True)]
    for path, prompt in zip(paths, prompts, strict=True):
        if len(prompt.ids) > model.config.data.row_tokens:
            log.warning(
                "continue: %s: %d codes to hear, and training had at most %d in a row (data.row_tokens); --prompt-seconds hears "
                "less", path, len(prompt.ids), model.config.data.row_tokens,
            )  # fmt: skip
    made = model.decoder().generate(prompts, batch_size=model.config.eval.batch_size)
    _make(out)
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
            "continue: %s: %.2f s heard, %.2f s made (%s), %s -> %s", path.name, heard.duration_s,
            length / codec.frame_rate_hz, answer.stopped, ", ".join(f"{n} {k} calls" for k, n in answer.calls.items()), alone,
        )  # fmt: skip
    return int(silent == len(paths))


def _check_run(model: Model, run: str) -> None:
    """Raise `ConfigError` for a run that cannot go on where sound ends."""
    from ttt.tasks.continuation import Continuation

    if model.codec is None:
        raise ConfigError("codec: missing; sound files need one")
    if not any(isinstance(task, Continuation) for task in model.config.tasks):
        learnt = ", ".join(model.tasks) or "none"
        raise ConfigError(
            f"{run}: was not trained to go on (its tasks: {learnt}; needed: continuation); "
            "'ttt chat' and 'ttt stream' ask such a model"
        )


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out: {out}: cannot be made ({error.strerror}); name another folder") from error


def _targets(paths: list[Path], out: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    if not paths:
        raise ConfigError("continue: no sound file; name at least one WAV")
    stems: dict[str, Path] = {}
    made = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if path.stem in stems:
            raise DataError(f"{path}: has the name of {stems[path.stem]}, and so would its sound; rename one")
        stems[path.stem] = path
        pair = (out / f"{path.stem}_continuation.wav", out / f"{path.stem}_full.wav")
        for target in pair:
            if target.exists() and not overwrite:
                raise DataError(f"{target}: exists; --overwrite replaces it, --out writes elsewhere")
        made.append(pair)
    return made


def _hole(text: str, arguments: argparse.Namespace) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        start, stop = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"--hole: expected two times in seconds like 1.5:2.5, got {text!r}") from None
    if not 0 < start < stop:
        raise ConfigError(f"--hole: needs 0 < A < B (something must be heard before it), got {text!r}")
    if arguments.seconds:
        raise ConfigError("--hole says how much is written; leave --seconds out")
    return start, stop


def _as_long(model: Model, seconds: float, frame_rate_hz: float) -> Model:
    """The model with decoding limits of ``seconds``."""
    frames = max(1, round(seconds * frame_rate_hz))
    e = model.config.eval
    tokens = frames * model.tokenizer.vocab.num_codebooks + 1
    sampler = e.sampler
    if "max_frames" in {f.name for f in dataclasses.fields(sampler)}:
        sampler = dataclasses.replace(sampler, max_frames=frames, min_frames=min(sampler.min_frames, frames))
    section = dataclasses.replace(e, sampler=sampler, max_tokens=tokens)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, eval=section))


def _prompt(model: Model, path: Path, heard: AudioCodes, hole: tuple[float, float] | None):
    """What the decoder gets: the codes as a user's turn, and with a hole what is known behind it."""
    from ttt.types import Example, Span, Turn

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
    user = Turn("user", (Span("audio", codes=ids[:start], style="user"),))
    prompt = model.prompt(Example(path.stem, (user,), ""), uid=path.stem)
    if hole is None:
        return prompt
    vocab = model.tokenizer.vocab
    open_ = [vocab.mask_id] * ((stop - start) * vocab.num_codebooks)
    return dataclasses.replace(prompt, known=[*open_, *vocab.code_ids(ids[stop:], str(path)).tolist()])
