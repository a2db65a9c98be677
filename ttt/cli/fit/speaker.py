"""Fit the speaker encoder, which compares voices.

Reads the original recordings of the splits train and dev of data.corpus and saves the encoder to speaker.path.
"""

from __future__ import annotations

import argparse

from ttt.cli.common import add_common
from ttt.cli.fit import fit_component
from ttt.cli.fit.judge import fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Fit and save."""
    return fit_component(arguments, "speaker", ["train", "dev"], "fit_manifests", fit)
