"""``ttt vocode TOKENS.json OUT.wav codec.name=...``: speech tokens of a file -> sound."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ttt.cli.common import configure, dry_run
from ttt.errors import ConfigError

log = logging.getLogger(__name__)


def vocode(arguments: argparse.Namespace) -> int:
    """Decode one file of `ttt.audio.tokens` with the configured codec."""
    from ttt.audio.tokens import read_tokens
    from ttt.audio.wav import write
    from ttt.types import AudioCodes

    config = configure(arguments, ("codec",))
    out = Path(arguments.out)
    if dry_run(arguments, config, [f"decode {arguments.tokens} -> {out}"]):
        return 0
    if out.exists() and not arguments.overwrite:
        raise ConfigError(f"{out}: is there already; name another file, or give --overwrite")
    codec = config.codec.load()
    codes = read_tokens(arguments.tokens, codec.num_codes, codec.num_codebooks, codec.frame_rate_hz)
    (wave,) = codec.decode([AudioCodes(codes, codec.frame_rate_hz, codec.codec_id)])
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, wave)
    log.info(
        "vocode: %d frames -> %s: %.2f s at %d Hz, codec %s",
        len(codes),
        out,
        wave.duration_s,
        wave.rate_hz,
        codec.codec_id,
    )
    return 0
