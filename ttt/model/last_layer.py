"""Makes the last layer of a decoding call compute only the tokens whose logits are needed.

Of the other tokens only keys and values are needed there.  The layer may be of any class, because it is run twice.  The
first run stops inside its attention, which has then received the keys and values of all tokens.  The second run gets the
needed tokens alone, and its attention uses those keys and values.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from ttt.model.cache import KeysKnown, PackedCall


class LastLayer:
    """Stands in for the forward of a decoder's last layer; gives [1, n, D], the states of the wanted tokens alone."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(
        self, hidden_states: Tensor, *positional: Any, packed: PackedCall | None = None, position_embeddings: Any = None,
        **others: Any,
    ) -> Any:  # fmt: skip
        """As the layer's own forward; without ``packed`` it is that."""
        run = type(self.layer).forward
        if packed is None:
            return run(self.layer, hidden_states, *positional, position_embeddings=position_embeddings, **others)
        wanted = packed.wanted.to(hidden_states.device)
        if len(wanted) == hidden_states.shape[1]:
            return run(
                self.layer, hidden_states, *positional, packed=packed, position_embeddings=position_embeddings, **others
            )
        asking = dataclasses.replace(packed, stage="keys")
        try:
            run(self.layer, hidden_states, *positional, packed=asking, position_embeddings=position_embeddings, **others)
        except KeysKnown as known:
            answering = dataclasses.replace(packed, given=(known.key, known.value))
        cos_sin = tuple(x[:, wanted] for x in position_embeddings)
        return run(
            self.layer, hidden_states[:, wanted], *positional, packed=answering, position_embeddings=cos_sin, **others
        )


def narrow(decoder: nn.Module) -> None:
    """Let the last of the decoder's layers work so (not if it is compiled)."""
    layers = getattr(decoder, "layers", None)
    if layers is not None and layers[-1]._compiled_call_impl is None and not is_narrow(decoder):
        layers[-1].forward = LastLayer(layers[-1])


def is_narrow(decoder: nn.Module) -> bool:
    """Does the decoder give the states of wanted tokens alone?"""
    layers = getattr(decoder, "layers", None)
    return layers is not None and isinstance(vars(layers[-1]).get("forward"), LastLayer)


def widen(decoder: nn.Module) -> None:
    """Undo `narrow`."""
    if is_narrow(decoder):
        del decoder.layers[-1].forward  # type: ignore[index, union-attr]
