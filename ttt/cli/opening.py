"""A trained run, or a plain model folder, opened for looking and talking: its configuration, its weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.cli.run import model_folder, pick_device
from ttt.config.load import load_config
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ttt.interfaces import Codec
    from ttt.model.lm import SpeechTextLM

_DEPTH = 3  # run/checkpoints/step-N/model lies three folders below its run


def find_run(place: Path) -> Path | None:
    """The run folder (with ``config.yaml``) that ``place`` is, or is a checkpoint or model folder of."""
    for folder in (place, *place.resolve().parents[:_DEPTH]):
        if (folder / "config.yaml").is_file():
            return folder
    return None


def open_config(arguments: argparse.Namespace) -> tuple[RunConfig, Path]:
    """(configuration, model folder) of ``arguments.run``: a run, a checkpoint, or a model folder together with ``--config``.

    A run's own ``config.yaml`` comes first, then ``--config`` files, then settings.  Raises `DataError` for a place where
    no weights are, `ConfigError` when nothing says how the model was trained.
    """
    place = Path(arguments.run)
    if not place.is_dir():
        raise DataError(f"{place}: no such folder; name a run (run.dir of 'ttt train'), a checkpoint or a model folder")
    run = find_run(place)
    if run is None and not arguments.config:
        raise ConfigError(
            f"{place}: no config.yaml here or above, so nothing says how this model was trained; give its recipe with --config"
        )
    layers = [*([run / "config.yaml"] if run is not None else []), *arguments.config]
    config = load_config(layers, arguments.overrides, arguments.plugins)
    asked = any(item.startswith("eval.checkpoint=") for item in arguments.overrides)
    folder = model_folder(config.eval.checkpoint if asked else place)
    if config.run.threads:
        import torch

        torch.set_num_threads(config.run.threads)
    return config, folder


def load_model(config: RunConfig, folder: Path, attention: str = "") -> SpeechTextLM:
    """The weights on ``run.device``; ``attention`` overrides the configuration's (flex_attention cannot decode)."""
    from ttt.model.lm import SpeechTextLM

    own = "sdpa" if config.model.attention == "flex_attention" else config.model.attention
    return SpeechTextLM.load(folder, attention or own).to(pick_device(config)).eval()


def load_codec(config: RunConfig, model: SpeechTextLM) -> Codec | None:
    """The run's codec, ready; None if it has none.  Raises `ConfigError` when its codes are not the model's."""
    if config.codec is None:
        return None
    codec = config.codec.load()
    vocab = model.tokenizer.vocab
    if codec.num_codes * codec.num_books != vocab.num_codes * vocab.num_books:
        raise ConfigError(
            f"codec: {codec.codec_id!r} has {codec.num_books} book(s) of {codec.num_codes} codes, the model's vocabulary "
            f"{vocab.num_books} of {vocab.num_codes}; name the codec the data were made with"
        )
    return codec
