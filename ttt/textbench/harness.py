"""Our model as lm-evaluation-harness makes it: a `TextScorer` from its ``--model_args``."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from ttt.errors import ConfigError, suggest

if TYPE_CHECKING:
    from ttt.textbench.scorer import TextScorer

_OWN = {"pretrained": "", "config": "", "plugins": "", "objective": "", "device": "auto", "dtype": ""}
_DRAWS = {"mc_num": 128, "mc_batch": 16, "estimator": "spread", "cfg": 0.0}


def load_scorer(**arguments: Any) -> TextScorer:
    """A `TextScorer` of the harness's ``--model_args``.  Raises `ConfigError` for arguments there are none of.

    ``pretrained``: run, checkpoint or model folder; ``config``: recipe YAML (default: the run's own); ``objective``: name,
    where there is no run to say it; ``device``, ``dtype``; the fields of `ScorerSettings`; ``mc_num``, ``mc_batch``,
    ``estimator``, ``cfg``: how a diffusion model's bound is estimated.  ``text_vocab_only=False`` means
    ``vocabulary=full``.
    """
    from ttt.likelihood import Draws
    from ttt.textbench.opening import checkpoint_folder, make_scorer, read_config
    from ttt.textbench.scorer import ScorerSettings

    if "text_vocab_only" in arguments:
        arguments["vocabulary"] = "text" if arguments.pop("text_vocab_only") else "full"
    arguments.pop("max_batch_size", None)
    if re.fullmatch(r"auto(:\d+(\.\d+)?)?", str(arguments.get("batch_size") or "auto")):  # auto:N: measure again N times
        arguments.pop("batch_size", None)
    fields = {f.name for f in dataclasses.fields(ScorerSettings)} - {"draws"}
    known = [*_OWN, *_DRAWS, *fields, "text_vocab_only"]
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"--model_args: no argument {name!r}.{suggest(name, known)} Known: {', '.join(sorted(known))}"
            )
    own = {name: str(arguments.get(name, default) or default) for name, default in _OWN.items()}
    drawn: dict[str, Any] = {name: arguments.get(name, default) for name, default in _DRAWS.items()}
    folder = checkpoint_folder(own["pretrained"])
    # the harness asks for "cuda:0" wherever nobody said otherwise
    device = "auto" if own["device"].startswith("cuda") else own["device"]
    overrides = [f"run.device={device}"]
    overrides += [f"objective={own['objective']}"] * bool(own["objective"])
    overrides += [f"model.dtype={own['dtype']}"] * bool(own["dtype"])
    plugins = [p for p in own["plugins"].split(":") if p]
    config = read_config(own["pretrained"], [own["config"]] if own["config"] else [], overrides, plugins)
    given: dict[str, Any] = {n: v for n, v in arguments.items() if n in fields}
    given |= {n: _number(given[n], n) for n in ("batch_size", "seed") if n in given}
    draws = Draws(int(drawn["mc_num"]), drawn["estimator"], int(drawn["mc_batch"]), False, float(drawn["cfg"]))
    settings = ScorerSettings(**{"seed": config.run.seed, **given, "draws": draws})
    return make_scorer(folder, config, settings)


def _number(value: Any, name: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ConfigError(f"--model_args: {name} must be a whole number, got {value!r}") from None


def __getattr__(name: str) -> Any:
    """``Ttt``, the class of our model, for harnesses that read the entry-point group ``lm_eval.models``."""
    if name == "Ttt":
        from ttt.textbench.harness_model import register

        return register(load_scorer)
    raise AttributeError(name)
