"""Decoding in pieces with the state of every layer, for causal decoders of transformers (EnCodec, Mimi).

Joined, the pieces are what decoding at once gives, up to rounding.  What a layer keeps from piece to piece: a convolution
the last inputs that its next outputs look back at, a transposed one the outputs that it has begun, an LSTM its state, a
transformer its keys and values (the caller's).  Letters: ``F`` frames, ``Q`` codebooks, ``S`` wav samples, ``C`` channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ttt.interfaces import StreamDecoder


def can_stream(decoder: nn.Module) -> bool:
    """Are all convolutions of ``decoder`` causal, and padded and trimmed on one side only?"""
    return all(
        m.causal and getattr(m, "norm_type", "weight_norm") == "weight_norm" and getattr(m, "trim_right_ratio", 1.0) == 1.0
        for m in _convolutions(decoder)
    )


class CausalStream(StreamDecoder):
    """A stream through ``decoder``, the causal part of a model.

    ``decode``: ids i64 [1, Q, F] -> samples; it runs ``decoder``, once.  ``check`` refuses bad codes [F, Q].  The layers are
    changed while a piece is decoded, and only then: pieces of two streams must not be decoded at the same time.
    """

    def __init__(self, decoder: nn.Module, decode: Callable[[Tensor], Tensor], check: Callable[[np.ndarray], None]) -> None:
        self._decoder, self._decode, self._check = decoder, decode, check
        self._state: dict[nn.Module, Any] = {}
        # Padding by reflection looks at so many frames of the beginning: the first piece must hold them.
        mirrored = [int(m.padding_total) for m in _convolutions(decoder) if getattr(m, "pad_mode", "") == "reflect"]
        self._held = max(mirrored, default=0)
        self._waiting: list[np.ndarray] = []

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Codes [F, Q] -> their samples; nothing until the first piece is long enough."""
        self._check(codes)
        self._waiting.append(codes)
        if not self._state and sum(map(len, self._waiting)) <= self._held:
            return np.zeros(0, dtype=np.float32)
        return self.finish()

    @torch.inference_mode()
    def finish(self) -> np.ndarray:
        """The samples of all codes that wait."""
        waiting, self._waiting = self._waiting, []
        if not sum(map(len, waiting)):
            return np.zeros(0, dtype=np.float32)
        ids = torch.from_numpy(np.concatenate(waiting).T.astype(np.int64))[None]
        with self._stateful():
            return self._decode(ids).flatten().float().cpu().numpy().clip(-1.0, 1.0)

    @contextlib.contextmanager
    def _stateful(self) -> Iterator[None]:
        changed = [m for m in self._decoder.modules() if _is_convolution(m) or isinstance(m, nn.LSTM)]
        try:
            for m in changed:
                step = self._lstm if isinstance(m, nn.LSTM) else self._transposed if _is_transposed(m) else self._convolution
                m.forward = partial(step, m)
            yield
        finally:
            for m in changed:
                m.__dict__.pop("forward", None)

    def _convolution(self, layer: Any, x: Tensor, **unused: Any) -> Tensor:
        """[1, C, F] -> [1, C', F]; in decoders the stride is 1."""
        before = int(layer.padding_total)
        if layer in self._state:
            x = torch.cat([self._state[layer], x], -1)
        else:
            x = layer._pad1d(x, (before, 0), mode=layer.pad_mode)
        self._state[layer] = x[..., x.shape[-1] - before :]
        return layer.conv(x)

    def _transposed(self, layer: Any, x: Tensor) -> Tensor:
        """[1, C, F] -> [1, C', F * stride]: what later inputs add to is kept back."""
        conv = layer.conv
        stride, overlap = conv.stride[0], conv.kernel_size[0] - conv.stride[0]
        y = conv(x)
        if layer in self._state:
            y = torch.cat([y[..., :overlap] + self._state[layer], y[..., overlap:]], -1)
        final, begun = y[..., : x.shape[-1] * stride], y[..., x.shape[-1] * stride :]
        self._state[layer] = begun if conv.bias is None else begun - conv.bias[:, None]  # it is added once
        return final

    def _lstm(self, layer: Any, x: Tensor, given: Any = None) -> Any:
        result, self._state[layer] = nn.LSTM.forward(layer, x, self._state.get(layer, given))
        return result, self._state[layer]


def _is_transposed(module: nn.Module) -> bool:
    return _is_convolution(module) and isinstance(module.conv, nn.ConvTranspose1d)


def _is_convolution(module: nn.Module) -> bool:
    """One of transformers' wrappers that pad, convolve and trim."""
    return hasattr(module, "causal") and hasattr(module, "conv")


def _convolutions(decoder: nn.Module) -> list[Any]:
    return [m for m in decoder.modules() if _is_convolution(m)]
