"""``model.compile``: the parts of a decoder's layers that are the same for every batch, compiled."""

from __future__ import annotations

from typing import Any

from ttt.errors import ConfigError


def compile_layers(hf: Any) -> int:
    """Compile norms and feed-forward parts of every layer of ``hf`` in place, for any length.  -> how many modules.

    Attention is left out: packed attention runs other tiles for every batch, which would be compiled anew each time, and
    FlexAttention is compiled by itself.  Weights, names and saved files stay as they are.
    """
    layers = getattr(hf.get_decoder(), "layers", None)
    if layers is None:
        raise ConfigError(f"model.compile: {type(hf).__name__} has no list of layers to compile; leave it off")
    parts = [child for layer in layers for name, child in layer.named_children() if "attn" not in name]
    for part in parts:
        part.compile(dynamic=True)
    return len(parts)
