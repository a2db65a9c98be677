"""Fit the codec, for those that learn (mel_kmeans, rvq, units).

Reads the train split of data.corpus and saves the codec to codec.path.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.cli.common import add_common
from ttt.cli.fit import fit_component

if TYPE_CHECKING:
    from ttt.interfaces import TrainableCodec

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Fit and save."""
    return fit_component(arguments, "codec", ["train"], "fit", fit)


def fit(codec: TrainableCodec, manifests: Sequence[Path], seed: int) -> Mapping[str, float]:
    """Fit the codec on the recordings of a manifest."""
    from ttt.audio.recordings import LazyWaves, Recordings
    from ttt.data.manifest import read_manifest

    (manifest,) = manifests
    recordings = Recordings(getattr(codec, "encode_rate_hz", None))
    waves = LazyWaves(recordings, [manifest.parent / utterance.wav for utterance in read_manifest(manifest)])
    log.info("codec: fitting on %d utterances", len(waves))
    measured = codec.fit(waves, seed)
    if recordings.summary():
        log.info("codec: %s", recordings.summary())
    return measured
