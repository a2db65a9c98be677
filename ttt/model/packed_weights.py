"""Linear layers whose weights lie in the order that oneDNN multiplies fastest: what decoding on a CPU runs on.

A call of the decoder multiplies a few dozen rows.  At that size a plain `linear` spends a third to two thirds of its time on
rearranging the weight, in every call; here it is rearranged once.  One row's result also does not depend on how many
rows come with it, which of `linear` cannot be said.  Costs a second copy of the weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

# PyTorch's own compiler makes its CPU code with these two; there is no public name for them.
_OPS = torch.ops.mkldnn
ROWS = 32  # for how many rows the order is chosen; it serves other numbers as well


def available() -> bool:
    """Does this build of PyTorch have oneDNN and the two operators?"""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(_OPS, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


class Packed:
    """``linear`` on a rearranged copy of the rows ``ids`` of a layer's weight; in training, or once the weight changed, plain."""

    def __init__(self, layer: nn.Linear, ids: slice = slice(None)) -> None:
        self.layer, self.ids = layer, ids
        weight = layer.weight.detach()[ids]
        self.key = _key(layer.weight)
        self.bias = None if layer.bias is None else layer.bias.detach()[ids].contiguous()
        self.weight = _OPS._reorder_linear_weight(weight.contiguous(), ROWS)

    @property
    def fresh(self) -> bool:
        """Is the copy still that of the layer's weight?"""
        return self.key == _key(self.layer.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if x.dtype != torch.float32 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not self.fresh:
            w, b = self.layer.weight, self.layer.bias
            return nn.functional.linear(x, w[self.ids], None if b is None else b[self.ids])
        return _OPS._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        # Of the copied layer, whose weight may not be there yet: computes plainly until it is packed again.
        twin = object.__new__(Packed)
        twin.layer, twin.ids, twin.key = copy.deepcopy(self.layer, memo), self.ids, (0, -1)
        return twin


def pack(module: nn.Module) -> None:
    """Let all plain float32 layers on the CPU under ``module`` compute on rearranged copies of their weights.

    Names, types and parameters stay as they are.  Layers that are packed already and unchanged are left alone.
    """
    if not available():
        return
    for layer in module.modules():
        # A compiled layer has its own code; a derived class its own way to compute.
        if type(layer) is not nn.Linear or layer._compiled_call_impl is not None:
            continue
        packed = vars(layer).get("forward")
        if not packable(layer.weight) or (isinstance(packed, Packed) and packed.fresh):
            continue
        layer.forward = Packed(layer)  # type: ignore[assignment, method-assign]


def packable(weight: Tensor) -> bool:
    """Is it worth it, and possible?"""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0


def unpack(module: nn.Module) -> None:
    """Take the copies away again."""
    for layer in module.modules():
        if isinstance(vars(layer).get("forward"), Packed):
            del layer.forward


def _key(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version
