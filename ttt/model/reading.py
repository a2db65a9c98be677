"""How a model has to be read outside this toolkit: which attention it was trained with, and which logits predict what.

Plain transformers runs every decoder with a causal mask unless ``config.json`` says ``is_causal: false``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt.errors import ConfigError
from ttt.io.yaml_input import read_yaml

log = logging.getLogger(__name__)

KEY = "ttt_reading"  # of config.json
MEND = "put the run's own back, or move it away"
_ATTENTION = {
    "full": (
        "Every position attends to every other one. `config.json` says `is_causal: false`, which transformers 5 obeys in\n"
        "`model(input_ids)`. Transformers 4 does not know the key and would attend to the left only: do not use it. In a batch,\n"
        "pad on the right and pass `attention_mask`."
    ),
    "causal": "Attention goes to the left, as in every decoder of transformers.",
}
_OTHER = (
    "Attention follows the mask rule `{mask}` of this toolkit, which plain transformers does not know: it would attend to the\n"
    "left only, and give other logits. Use `ttt.load(...)`, or pass your own four-dimensional `attention_mask`."
)
_NEXT = "Logits at position i - 1 predict a masked token at position i: shift them right by one (the first keeps its own)."
_README = """\
# How to load this model

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

{attention}

{logits}
"""


def objective_of(folder: Path) -> dict[str, Any]:
    """The section ``objective`` of a checkpoint's own recipe (``config.yaml`` beside ``model/``); empty without one."""
    recipe = folder.parent / "config.yaml"
    objective = read_yaml(recipe, MEND).get("objective") if recipe.is_file() else None
    return objective if isinstance(objective, dict) else {}


def reading_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Mask and alignment of logits of a model folder: from its recipe, else from its ``config.json``; empty where neither says."""
    objective = objective_of(folder)
    mask = objective.get("mask")
    name = mask.get("name") if isinstance(mask, Mapping) else mask
    if isinstance(name, str):
        return {"mask": name, "logit_alignment": objective.get("logit_alignment", "same")}
    stored = config.get(KEY)
    return dict(stored) if isinstance(stored, Mapping) else {}


def write_readme(folder: Path, reading: Mapping[str, Any]) -> None:
    """``README.md`` of an exported folder."""
    mask = str(reading["mask"])
    attention = _ATTENTION.get(mask, _OTHER.format(mask=mask))
    logits = []
    if mask != "causal":
        token = f" (id {reading['mask_token_id']})" if reading.get("mask_token_id", -1) >= 0 else ""
        logits = [f"Unknown tokens hold the mask token{token} and are filled in any order, which `model.generate` does not do."]
        logits.append(_NEXT if reading.get("logit_alignment") == "next" else "Logits at position i predict the token at i.")
    text = _README.format(attention=attention, logits="\n".join(logits)).rstrip() + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def note_attention(hf_config: Any, mask: str, logit_alignment: str = "same") -> None:
    """Have transformers attend as a model trained under the rule ``mask`` does, where it can (``is_causal``).

    Says in the log where training begins with weights that were trained to be read otherwise.
    """
    if other := _other_reading(hf_config, mask, logit_alignment):
        log.warning("%s: training has to change that", other)
    if mask == "full" or hasattr(hf_config, "is_causal"):
        hf_config.is_causal = mask != "full"
    if hasattr(hf_config, KEY):
        delattr(hf_config, KEY)  # of a folder that training began from; a run's own recipe says it from here on


def refuse_other_reading(folder: Path, hf_config: Any, mask: str, logit_alignment: str) -> None:
    """Raise `ConfigError` where an imported folder was trained to be read otherwise than a configuration says."""
    if other := _other_reading(hf_config, mask, logit_alignment):
        shifted = " objective.logit_alignment=next" if getattr(hf_config, KEY).get("logit_alignment") == "next" else ""
        raise ConfigError(f"{other} ({folder}/config.json: {KEY}); say so, with objective.name=nar{shifted}")


def _other_reading(hf_config: Any, mask: str, logit_alignment: str) -> str:
    """What a configuration says otherwise than the folder of the weights; empty: nothing."""
    stored = getattr(hf_config, KEY, None)
    stored = stored if isinstance(stored, Mapping) else {}
    for key, asked in (("mask", mask), ("logit_alignment", logit_alignment)):
        if stored.get(key, asked) != asked:
            return f"objective.{key}: {asked!r}, but the weights were trained with {stored[key]!r}"
    return ""
