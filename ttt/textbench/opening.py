"""A checkpoint for text benchmarks: from a run, a model folder, or a plain Hugging Face model without speech tokens."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.config.load import load_config
from ttt.config.schema import RunConfig, Weights
from ttt.errors import ConfigError, DataError
from ttt.interfaces import LanguageModel
from ttt.registry.families import INITIALIZER
from ttt.text.forms import LladaTts, LladaTtsAudio
from ttt.text.special_tokens import code_token

if TYPE_CHECKING:
    from ttt.textbench.scorer import ScorerSettings, TextScorer

log = logging.getLogger(__name__)
# One of these is in every tokenizer that has speech tokens, whatever their form (`ttt.text.forms.FORMS`).
SPEECH_MARKS = (code_token(0), *(form.token(form.start_of_speech) for form in (LladaTts(), LladaTtsAudio())))


def read_config(path: str, files: Sequence[str], overrides: Sequence[str], plugins: Sequence[str]) -> RunConfig:
    """The configuration a checkpoint is read with: ``files``, or its run's own ``config.yaml``, or the defaults.

    The default objective reads text from left to right, as any causal language model does.
    """
    files, stored = list(files), []
    if not files:
        # run, run/checkpoints/step-N, run/checkpoints/step-N/model
        found = [f for f in (Path(path), *list(Path(path).parents)[:3]) if (f / "config.yaml").is_file()]
        if found:
            files = stored = [str(found[0] / "config.yaml")]
            log.info("%s: objective and sampler of %s", path, files[0])
        else:
            log.info("%s: no config.yaml of a run: text is read by the default objective (see objective=)", path)
    return load_config(files, list(overrides), list(plugins), stored=stored)


def checkpoint_folder(path: str, weights: Weights = "raw") -> Path:
    """The folder with weights.  Raises `DataError` when there is none."""
    from ttt.api import model_folder

    if not path:
        raise ConfigError("--model: missing; name a run, a checkpoint or a model folder")
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder (--model)")
    return model_folder(path, weights)


def load_model(folder: Path, config: RunConfig, vocabulary: str) -> tuple[Any, int | None]:
    """(the language model on its device, rows of its table that the checkpoint brought; None: all).

    A model without speech tokens gets them in memory, untrained and never asked.
    """
    from ttt.api import open_model, pick_device
    from ttt.model.causal_lm import build_lm
    from ttt.text.tokenizer import TextTokenizer, read_backend
    from ttt.text.vocab import Vocabulary

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{file}: missing; text benchmarks need the model's tokenizer beside its weights")
    backend = read_backend(file)
    if any(backend.token_to_id(t) is not None for t in SPEECH_MARKS) or Vocabulary.is_saved(folder / "vocab.json"):
        return open_model(config, folder, LanguageModel), None
    if vocabulary == "full":
        raise ConfigError(f"--vocabulary full: {folder} is a text model, so there is nothing else; use text")
    attention = "sdpa" if config.model.attention == "flex_attention" else config.model.attention
    own = backend.get_vocab_size(with_added_tokens=True)
    log.info("%s: a text model of %d tokens; speech tokens are added in memory and never asked", folder, own)
    init = INITIALIZER.build("normal", "model.init")
    section = dataclasses.replace(
        config.model, path=str(folder), preset="", attention=attention, overrides={}, init=init
    )
    model = build_lm(section, TextTokenizer.extended(folder, 1), config.run.seed)
    return model.to(pick_device(config)), own


def make_scorer(folder: Path, config: RunConfig, settings: ScorerSettings) -> TextScorer:
    """The model, ready to be asked."""
    from ttt.textbench.scorer import TextScorer

    model, own = load_model(folder, config, settings.vocabulary)
    return TextScorer(model, config.objective, config.eval.sampler, settings, own)
