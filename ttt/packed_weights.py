"""Linear layers of networks that answer on a CPU: their weights lie in memory as oneDNN multiplies them fastest.

A decoding call multiplies a few dozen rows.  At that size a plain `linear` spends a third to two thirds of its time on
converting the weight to that layout, in every call; here it is converted once.  The result of a row also does not depend
on how many rows are multiplied with it, as it may with `linear`.  The price is a second copy of the weights.

The two operators are private to PyTorch; `setup.py` names the versions they are known to work in.  Without them decoding
gives the same answers, slower, and one line of the log says so.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

_OPS = torch.ops.mkldnn
_NAMES = ("_reorder_linear_weight", "_linear_pointwise")  # what torch.compile itself uses on a CPU
ROWS = 32  # number of rows that the layout is chosen for; it works for other numbers as well


@lru_cache(maxsize=1)
def available() -> bool:
    """Does this build of PyTorch have oneDNN and the two operators?  Logs one line when it has not."""
    missing = [name for name in _NAMES if not hasattr(_OPS, name)]
    if torch.backends.mkldnn.is_available() and not missing:
        return True
    reason = f"operators mkldnn::{', mkldnn::'.join(missing)} are missing" if missing else "it was built without oneDNN"
    log.warning(
        "torch %s: %s; decoding on a CPU is slower than it could be (install a version that setup.py names)",
        torch.__version__, reason,
    )  # fmt: skip
    return False


class Packed:
    """``linear`` on a rearranged copy of a layer's weight; in training, or once the weight changed, plain.

    ``ids``: only these rows of the weight.  Several layers with one input are multiplied at once, their results side by side.
    """

    def __init__(self, layers: nn.Linear | Sequence[nn.Linear], ids: slice = slice(None)) -> None:
        self.layers = (layers,) if isinstance(layers, nn.Linear) else tuple(layers)
        self.ids = ids
        self.key = self._now()
        weight, bias = self._plain()
        self.bias = None if bias is None else bias.detach().contiguous()
        self.weight = _OPS._reorder_linear_weight(weight.detach().contiguous(), ROWS)

    @property
    def fresh(self) -> bool:
        """Is the copy still that of the layers' weights?"""
        return self.key == self._now()

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if x.dtype != torch.float32 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not self.fresh:
            return nn.functional.linear(x, *self._plain())
        return self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        """Without looking whether the copy is fresh."""
        return _OPS._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def _plain(self) -> tuple[Tensor, Tensor | None]:
        weights, biases = [m.weight[self.ids] for m in self.layers], [m.bias for m in self.layers]
        if len(self.layers) == 1:
            return weights[0], None if biases[0] is None else biases[0][self.ids]
        if all(b is None for b in biases):
            return torch.cat(weights), None
        return torch.cat(weights), torch.cat(
            [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
        )

    def _now(self) -> tuple[int, ...]:
        return tuple(n for m in self.layers for n in (m.weight.data_ptr(), m.weight._version))

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        # Of the copied layer, whose weight may not be there yet: computes plainly until it is packed again.
        twin = object.__new__(Packed)
        twin.layers, twin.ids, twin.key = copy.deepcopy(self.layers, memo), self.ids, ()
        return twin


def pack(module: nn.Module) -> None:
    """Let all plain float32 layers on the CPU under ``module`` compute on rearranged copies of their weights.

    Names, types and parameters stay as they are.  Layers that are packed already and unchanged are left alone.
    """
    for layer in module.modules():
        packed = vars(layer).get("forward")
        # A derived class has its own way to compute.
        if type(layer) is nn.Linear and packable(layer) and not (isinstance(packed, Packed) and packed.fresh):
            layer.forward = Packed(layer)  # type: ignore[assignment, method-assign]


def packable(layer: nn.Linear) -> bool:
    """Float32 on a CPU, here as a whole (ZeRO-3 leaves a rank an empty tensor), and not compiled (which has its own code)?"""
    w = layer.weight
    here = w.device.type == "cpu" and w.dtype == torch.float32 and w.ndim == 2 and w.numel() > 0
    return available() and here and layer._compiled_call_impl is None


def unpack(module: nn.Module) -> None:
    """Take the copies away again."""
    for layer in module.modules():
        if isinstance(vars(layer).get("forward"), Packed):
            del layer.forward
