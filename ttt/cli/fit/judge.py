"""Fit the judge, the speech recognizer that scores answers.

Reads the original recordings of the splits train and dev of data.corpus and saves the judge to judge.path.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt.cli.common import add_common
from ttt.cli.fit import fit_component


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Fit and save."""
    return fit_component(arguments, "judge", ["train", "dev"], "fit_manifests", fit)


def fit(component: Any, manifests: Sequence[Path], seed: int) -> Mapping[str, float]:
    """Fit a judge or a speaker encoder on the recordings of two manifests, of training and of validation."""
    from ttt.data.manifest import read_manifest

    train, dev = (read_manifest(manifest) for manifest in manifests)
    return component.fit_manifests(train, dev, manifests[0].parent, seed)
