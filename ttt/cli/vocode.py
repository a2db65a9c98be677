"""Decode a JSON file of speech tokens to a wav by the configured codec."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ttt.cli.common import add_common, configure, dry_run
from ttt.io.outputs import check_file

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tokens, which wav."""
    tokens = 'JSON: {"speech_tokens": [...]} or a list'
    parser.add_argument("--tokens", "--speech-tokens", required=True, metavar="FILE", help=tokens)
    parser.add_argument("--out", "--output", required=True, metavar="WAV", help="the wav to write")
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decode one file of `ttt.audio.tokens`."""
    from ttt.audio.loading import load_part
    from ttt.audio.tokens import read_durations, read_tokens
    from ttt.audio.wav import write
    from ttt.types import AudioCodes

    config = configure(arguments, ("codec",))
    out = Path(arguments.out)
    if dry_run(arguments, config, [f"decode {arguments.tokens} -> {out}"]):
        return 0
    check_file(out, [Path(arguments.tokens)], overwrite=arguments.overwrite)
    codec = load_part(config, "codec")
    codes = read_tokens(arguments.tokens, codec.num_codes, codec.num_codebooks, codec.code_rate_hz)
    durations = read_durations(arguments.tokens, len(codes))
    (wave,) = codec.decode([AudioCodes(codes, codec.frame_rate_hz, codec.codec_id, durations)])
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, wave)
    length = f"{wave.duration_s:.2f} s at {wave.rate_hz} Hz"
    log.info("vocode: %d frames -> %s: %s, codec %s", len(codes), out, length, codec.codec_id)
    return 0
