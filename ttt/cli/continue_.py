"""Continue sound files, or fill a hole in them, by a model trained to.

Writes NAME_continuation.wav (what was made) and NAME_full.wav (the prompt and it in one piece) for every file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ttt.cli.common import add_common
from ttt.errors import ConfigError, DataError


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
    parser.add_argument(
        "--text", default="", metavar="TEXT", help="what is said: the words of the sound file, then those to speak (arch.text)"
    )
    parser.add_argument(
        "--voice-vector", default="", metavar="FILE", help="JSON list of numbers: the vector of who speaks (arch.voice_dim)"
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
    import ttt
    from ttt.continuation import check_model, continue_files
    from ttt.io.json_input import read_json

    file = arguments.voice_vector
    voice = read_json(file, "name a file with a list of numbers", list) if file else []

    model = ttt.load(arguments.run, *settings, config=arguments.config, plugins=arguments.plugins)
    check_model(model, arguments.run, arguments.text, voice)
    silent = continue_files(
        model, paths, targets, hole, arguments.prompt_seconds, arguments.seconds, arguments.text, voice
    )
    return int(silent == len(paths))


def _targets(paths: list[Path], out: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """The two files of each sound file; refuses what would replace a sound file, or anything that no earlier call made."""
    from ttt.io.names import read_index
    from ttt.io.outputs import check_file

    if not paths:
        raise ConfigError("continue: no sound file; name at least one WAV")
    stems: dict[str, Path] = {}
    made, listed = [], set(read_index(out))
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if path.stem in stems:
            raise DataError(f"{path}: has the name of {stems[path.stem]}, and so would its sound; rename one")
        stems[path.stem] = path
        name = _name(path)
        pair = (out / f"{name}_continuation.wav", out / f"{name}_full.wav")
        for target in pair:
            is_ours = name in listed
            if is_ours and target.exists() and not overwrite:
                raise DataError(f"{target}: exists; --overwrite replaces it, --out writes elsewhere")
            check_file(target, paths, is_ours=is_ours, mend="move it away, or write elsewhere with --out")
        made.append(pair)
    return made


def _name(path: Path) -> str:
    """The name of a sound file, shortened where ``_continuation.wav`` would not fit behind it."""
    from ttt.io.names import file_name

    return path.stem if len(os.fsencode(path.stem)) <= 230 else file_name(path.stem)


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
